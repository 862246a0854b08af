"""Build wheel and sdist of a commit twice, in two folders, compare them, and put them into dist/.

    python tools/make_dist.py [COMMIT]

Both are made from `git archive`, so uncommitted files are no part of them, and carry the time of the commit
(SOURCE_DATE_EPOCH of reproducible-builds.org; a value in the environment is used instead). Needs build, setuptools and
twine of constraints.txt; nothing is downloaded. The digests are those of any other machine with the same versions.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"


def build(commit: str, epoch: int, folder: Path) -> dict[str, bytes]:
    """Return name -> content of the wheel and the sdist of a commit, built in a new folder."""
    source, built = folder / "source", folder / "dist"
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source],
        env=environment | {"SOURCE_DATE_EPOCH": str(epoch)}, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    files = {path.name: path.read_bytes() for path in built.iterdir()}
    return {name: repacked(data, epoch) if name.endswith(".tar.gz") else data for name, data in files.items()}


def repacked(sdist: bytes, epoch: int) -> bytes:
    """Return an sdist with sorted members of one time and no owner; setuptools writes those of the build."""
    written = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as tar,
        gzip.GzipFile(filename="", fileobj=written, mode="wb", mtime=epoch) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(tar.getmembers(), key=lambda one: one.name):
            content = tar.extractfile(member)
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime, member.pax_headers = epoch, {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, content)
    return written.getvalue()


def main(arguments: list[str]) -> int:
    """Build twice, compare, check with twine, and print the digests; return the exit code."""
    commit = arguments[0] if arguments else "HEAD"
    time = subprocess.run(
        ["git", "log", "-1", "--format=%ct", commit], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or time)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        files, again = (build(commit, epoch, Path(folder)) for folder in (first, second))
    if different := sorted(name for name in files.keys() | again.keys() if files.get(name) != again.get(name)):
        print(f"two builds differ: {', '.join(different)}", file=sys.stderr)
        return 1
    DIST.mkdir(exist_ok=True)
    for name, data in files.items():
        (DIST / name).write_bytes(data)
        print(hashlib.sha256(data).hexdigest(), name)
    return subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *(DIST / name for name in files)], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
