"""Files of uploaded crops, which the gallery stores itself: named by their content, each only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cskt.errors import CsktError, file_system_errors
from cskt.gallery.conditions import All, Comparison
from cskt.gallery.stores.base import SHA256, VectorStore, check_sha256, operator_errors
from cskt.utils.files import write_atomically
from cskt.utils.paths import inside

ORIGINALS = "originals"
"""Folder of these files, within a gallery."""
PENDING = "originals.unsettled"
"""File, within a gallery, with the digests of files that are being changed; it remains if the change is interrupted."""


def original_path(gallery: Path, sha256: str) -> Path:
    """Return the path of an uploaded file; it is named by its content, so that no name from outside is a path."""
    check_sha256(sha256)
    return inside(gallery, ORIGINALS, sha256[:2], sha256, follow_links=False)


class Originals:
    """Uploaded files, kept consistent with the crops that need them; the caller holds the lock of the gallery."""

    def __init__(self, gallery: Path, store: VectorStore) -> None:
        self._gallery = gallery
        self._store = store

    @contextmanager
    def changing(self, digests: Iterable[str]) -> Iterator[None]:
        """Surround a change of crops and files that may leave some files without a crop.

        After an error or a kill, the next change deletes unused files among them; otherwise the picture of a deleted
        crop, for example, could stay for good.
        """
        marker = inside(self._gallery, PENDING, follow_links=False)
        with operator_errors(), file_system_errors(marker):
            if marker.is_file():
                self.delete_unused(filter(SHA256.fullmatch, marker.read_text("ascii", errors="replace").split()))
            elif marker.exists():  # writing into a pipe would wait for a reader
                raise CsktError(f"{marker}: not a file; delete it")
            marker.write_text("\n".join(digests), encoding="ascii")
        yield
        with operator_errors(), file_system_errors(marker):
            marker.unlink(missing_ok=True)

    def save(self, data: bytes, sha256: str) -> None:
        """Write a file completely or not at all; an existing one is unchanged."""
        path = original_path(self._gallery, sha256)
        if not path.is_file():
            with operator_errors():
                write_atomically(path, lambda temporary: temporary.write_bytes(data))

    def delete_unused(self, digests: Iterable[str]) -> None:
        """Delete those files that no crop needs."""
        for sha256 in digests:
            path = original_path(self._gallery, sha256)
            if not self._store.count(All((Comparison("sha256", "=", sha256), Comparison("kept", "=", True)))):
                with operator_errors(), file_system_errors(path):
                    path.unlink(missing_ok=True)
