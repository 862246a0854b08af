"""A gallery as one archive: an uncompressed tar file whose last member has the SHA-256 of all others.

It holds the files that this program makes in the folder of a gallery, and no others: the manifest, the calibration, the
vectors of the present model and the originals of uploads. The audit log and the locks are left out.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from cskt.errors import CsktError, file_system_errors
from cskt.gallery.calibration import CALIBRATION_FILE
from cskt.gallery.manifest import MANIFEST, read_manifest
from cskt.gallery.opening import VECTORS, open_store, vectors_folder
from cskt.gallery.originals import ORIGINALS
from cskt.gallery.state import GalleryState
from cskt.utils.files import write_atomically, write_errors
from cskt.utils.paths import check_path, inside

CHECKSUMS = "SHA256SUMS"
"""Last member, as `sha256sum` writes and checks it."""
LOCK_SUFFIX = ".lock"
COPIED_BYTES = 2**20
MAX_CHECKSUMS_BYTES = 2**30
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
Sums: TypeAlias = dict[str, str]
"""Name of a member -> its SHA-256."""


def export_gallery(state: GalleryState, archive: Path) -> int:
    """Write a gallery to an archive, whole or not at all, and return the number of files; changes wait meanwhile.

    Raises:
        CsktError: the archive exists, its folder cannot be written, or the store is not in the gallery's folder.
    """
    if not state.manifest.store_in_folder:
        raise CsktError(
            f"{state.folder}: its crops are in {state.manifest.store}; back that up with the tools of its server, and"
            " copy the folder"
        )
    with file_system_errors(archive):
        if archive.exists():
            raise CsktError(f"{archive}: exists already; name another file, or delete it first")
    sums: Sums = {}
    with state.writing():
        write_atomically(archive, lambda temporary: _write(state, temporary, sums))
    return len(sums)


def import_gallery(archive: Path, folder: Path) -> int:
    """Make a gallery of an archive, whole or not at all, and return the number of its crops.

    Args:
        archive: from `export_gallery`; it may come from a stranger.
        folder: of the new gallery; must not exist, or be empty.

    Raises:
        CsktError: the archive is incomplete, changed or no archive of a gallery; or the folder has files.
    """
    check_path(folder)
    with file_system_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CsktError(f"{folder}: exists already; name a new folder")
        place = folder.resolve()
        if place == Path.cwd():  # it would be replaced, and this program's working directory be gone
            raise CsktError(f"{folder}: is the working directory; name a new folder")
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with write_errors(folder):
            partial.mkdir(parents=True)
            _read(archive, partial)
        manifest = read_manifest(partial)
        if not manifest.store_in_folder:
            raise CsktError(f"{archive}: names a store outside the archive, {manifest.store}; it is no export")
        store = open_store(partial, manifest, create=False)
        num_crops = store.count()
        store.close()
        with write_errors(folder):
            partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return num_crops


def _write(state: GalleryState, path: Path, sums: Sums) -> None:
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as target:
        for name, file in _members(state):
            with file.open("rb") as stream:
                facts = os.fstat(stream.fileno())
                info = tarfile.TarInfo(name)
                info.size, info.mtime = facts.st_size, int(facts.st_mtime)
                hashed = _Hashed(stream)
                target.addfile(info, hashed)
                sums[name] = hashed.sha256.hexdigest()
        text = "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()).encode()
        info = tarfile.TarInfo(CHECKSUMS)
        info.size = len(text)
        target.addfile(info, io.BytesIO(text))


def _members(state: GalleryState) -> Iterator[tuple[str, Path]]:
    """Yield names and paths of the files of a gallery; links are none."""
    folder = state.folder
    places = [folder / MANIFEST, folder / CALIBRATION_FILE]
    for part in (vectors_folder(folder, state.manifest), folder / ORIGINALS):
        places += sorted(part.rglob("*"))
    for path in places:
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and _is_member(name):
            yield name, path


def _is_member(name: str) -> bool:
    """Return whether this program makes a file of this name in a gallery, and an archive may hold it."""
    parts = PurePosixPath(name).parts
    if name in (MANIFEST, CALIBRATION_FILE):
        return True
    is_plain = "/".join(parts) == name and not any(part.startswith(".") or "\\" in part for part in parts)
    return is_plain and len(parts) >= 3 and parts[0] in (VECTORS, ORIGINALS) and not name.endswith(LOCK_SUFFIX)


def _read(archive: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder, and check it."""
    remedy = "restore another copy of the archive"
    found: Sums = {}
    stated: Sums | None = None
    try:
        with file_system_errors(archive), tarfile.open(archive, "r:") as source:
            for info in source:
                stream = source.extractfile(info) if info.isreg() else None
                if stated is not None or stream is None or info.name in found:
                    raise CsktError(f"{archive}: the member {info.name[:80]!r} is not expected there; {remedy}")
                if info.name == CHECKSUMS:
                    stated = _sums(stream.read(MAX_CHECKSUMS_BYTES), archive, remedy)
                    continue
                if not _is_member(info.name):
                    raise CsktError(f"{archive}: {info.name[:80]!r} is no file of a gallery; {remedy}")
                path = inside(folder, info.name, follow_links=False)
                path.parent.mkdir(parents=True, exist_ok=True)
                hashed = _Hashed(stream)
                with path.open("xb") as target:
                    shutil.copyfileobj(hashed, target, COPIED_BYTES)
                    os.fsync(target.fileno())
                found[info.name] = hashed.sha256.hexdigest()
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise CsktError(f"{archive}: no archive of a gallery, or a corrupt one ({error}); {remedy}") from None
    if stated is None:
        raise CsktError(f"{archive}: incomplete: {CHECKSUMS} is missing at its end; {remedy}")
    if wrong := sorted(name for name in found.keys() | stated.keys() if found.get(name) != stated.get(name)):
        raise CsktError(f"{archive}: {wrong[0]!r} is missing, new or changed since the export; {remedy}")


def _sums(data: bytes, archive: Path, remedy: str) -> Sums:
    lines = data.decode().splitlines()
    parsed = [_LINE.fullmatch(line) for line in lines]
    if None in parsed:
        raise CsktError(f"{archive}: {CHECKSUMS} is corrupt; {remedy}")
    return {found[2]: found[1] for found in parsed if found is not None}


class _Hashed(io.RawIOBase):
    """A stream that hashes what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.sha256.update(data)
        return data
