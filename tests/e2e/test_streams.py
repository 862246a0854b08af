"""Standard streams that are closed, full or of another encoding, and a working directory that is gone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import REPOSITORY, typed


def shell(line: str, *, program: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `RUN` runs Python code as the command `cskt` would."""
    imports = "import os, sys\nfrom cskt.cli.main import guarded\nfrom cskt.errors import CsktError, file_system_errors"
    code = f"{imports}\ndef run(argv):\n {program}\n return 0\n"
    run = shlex.join([sys.executable, "-c", code + "sys.exit(guarded(run, sys.argv[1:], 'cskt'))"])
    bash = ["bash", "-o", "pipefail", "-c", line.replace("RUN", run)]
    settings = os.environ | {"PYTHONUNBUFFERED": ""} | (env or {})
    return subprocess.run(bash, capture_output=True, text=True, check=False, env=settings)


@pytest.mark.parametrize(
    ("line", "program", "code", "out", "err"),
    [
        ("RUN >&-", "print('found')", 0, "", ""),
        ("RUN 2>&-", "print('found', flush=True); print('warning', file=sys.stderr)", 0, "found\n", ""),
        ("RUN 2>&-", "raise CsktError('wrong')", 2, "", ""),
        ("RUN <&- >&- 2>&-", "print(sys.stdin.read())", 0, "", ""),
        ("RUN <&-", "print([sys.stdin.read()])", 0, "['']\n", ""),
        ("RUN >&-", "print(os.open('/', os.O_RDONLY) > 2, file=sys.stderr)", 0, "", "True\n"),
        ("RUN >/dev/full", "print('found')", 2, "", "cskt: stdout: No space left on device; free space on the disk\n"),
        ("RUN >/dev/full", "raise CsktError(print('found') or 'wrong')", 2, "", "cskt: wrong\n"),
        ("RUN 2>/dev/full", "print('found'); print('warning', file=sys.stderr)", 0, "found\n", ""),
        ("RUN >/dev/full 2>/dev/full", "print('found')", 2, "", ""),
        ("RUN | head -1", "[print(number, 'a man in red') for number in range(20_000)]", 1, "0 a man in red\n", ""),
        ("RUN 2>&1 >&- | head -1", "raise CsktError('wrong')", 2, "cskt: wrong\n", ""),
    ],
)
def test_streams_that_cannot_be_written(line: str, program: str, code: int, out: str, err: str) -> None:
    finished = shell(line, program=program)
    assert (finished.returncode, finished.stdout, finished.stderr) == (code, out, err)


def test_a_full_disk_under_the_help_is_reported() -> None:
    program = "from cskt.cli.parsing import Parser; Parser(prog='cskt', description='x' * 20_000).parse(['--help'])"
    finished = shell("RUN >/dev/full", program=program)
    assert (finished.returncode, finished.stderr) == (
        2, "cskt: stdout: No space left on device; free space on the disk\n",
    )  # fmt: skip


def test_an_encoding_without_a_character_shows_its_number() -> None:
    finished = shell("RUN", program="print('caf\\xe9')", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert (finished.returncode, finished.stdout) == (0, "caf\\xe9\n")


ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_sentences_are_read_as_utf8_whatever_the_locale() -> None:
    finished = shell("RUN 'un café'", program="print(ascii(argv[0]))", env=ASCII_LOCALE)
    assert (finished.returncode, finished.stdout) == (0, "'un caf\\xe9'\n")
    assert "set LC_ALL=C.UTF-8" in finished.stderr


def test_a_file_that_the_locale_cannot_name_is_one_line() -> None:
    finished = shell(
        "RUN 2>&1 | tail -1", program="with file_system_errors(): open('/nowhere/caf\\xe9')", env=ASCII_LOCALE
    )
    assert finished.returncode == 2
    assert finished.stdout == (
        "cskt: /nowhere/caf\\xe9: cannot be written in the encoding of the locale, ascii; set LC_ALL=C.UTF-8\n"
    )


def test_a_home_folder_that_is_not_known_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("CSKT_CACHE", raising=False)
    assert typed("cskt env").refusal() == "~/.cache/cskt: the home folder is not known; set HOME"


@pytest.mark.parametrize(
    "command", ["-m cskt data check /", f"{REPOSITORY}/train.py --name x", f"{REPOSITORY}/test.py --config_file x"]
)
def test_a_deleted_working_directory_is_one_line(tmp_path: Path, command: str) -> None:
    finished = subprocess.run(
        ["bash", "-c", f"cd {tmp_path} && rmdir {tmp_path} && {sys.executable} {command}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr.endswith(": the working directory no longer exists; change to another with 'cd'\n")
    assert len(finished.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_search_works_without_a_stdout(tmp_path: Path) -> None:
    """The whole way, with torch and LanceDB, which open files of their own."""
    (tmp_path / "crops").mkdir()
    typed(f"cskt index {tmp_path}/gallery --images {tmp_path}/crops")
    search = f"{sys.executable} -m cskt search {tmp_path}/gallery 'a man'"
    finished = subprocess.run(
        ["bash", "-c", f"{search} >&- <&-"], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.startswith("a man: the gallery is empty; fill it: ")
    assert finished.stderr.endswith(f" index {tmp_path}/gallery --images FOLDER\n")
