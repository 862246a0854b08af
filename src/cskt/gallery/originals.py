"""The files that a gallery keeps itself, because they were handed over: named by their content, each only once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cskt.errors import CsktError
from cskt.gallery.conditions import All, Comparison
from cskt.gallery.stores.base import VectorStore, check_sha256, operator_errors
from cskt.utils.files import write_atomically
from cskt.utils.paths import inside

ORIGINALS = "originals"
"""Folder, within a gallery, of these files."""
UNSETTLED = "originals.unsettled"
"""File, within a gallery, that is there while some of them change, and stays if that is broken off: their digests."""


def original_path(gallery: Path, sha256: str) -> Path:
    """Return the path of a file that was added to a gallery; named by its content, so no name from outside is a path.

    Raises:
        CsktError: the digest is none, or a link is in the way.
    """
    check_sha256(sha256)
    return inside(gallery, ORIGINALS, sha256[:2], sha256, follow_links=False)


class Originals:
    """What is kept, in step with the crops that need it; use it with the gallery's lock held.

    Args:
        gallery: its folder.
        store: its crops.
    """

    def __init__(self, gallery: Path, store: VectorStore) -> None:
        self._gallery = gallery
        self._store = store

    @contextmanager
    def changing(self, at_stake: Iterable[str]) -> Iterator[None]:
        """Around a change of crops and originals, which may leave some without a crop.

        Where an error or a kill breaks it off, the next change looks after them: else the picture of a deleted crop,
        for example, could stay for good.

        Args:
            at_stake: the digests of those originals.
        """
        mark = inside(self._gallery, UNSETTLED, follow_links=False)
        if mark.is_file():
            self.forget(filter(_is_digest, mark.read_text(encoding="ascii", errors="replace").split()))
        elif mark.exists():  # writing into a pipe would wait for a reader
            raise CsktError(f"{mark}: not a file; delete it")
        mark.write_text("\n".join(at_stake), encoding="ascii")
        yield
        mark.unlink(missing_ok=True)

    def keep(self, data: bytes, sha256: str) -> None:
        """Keep a file, whole or not at all; one that is kept already is left alone.

        Raises:
            StoreError: the disk is full, the folder is read-only, ...
        """
        path = original_path(self._gallery, sha256)
        if not path.is_file():
            with operator_errors():
                write_atomically(path, lambda temporary: temporary.write_bytes(data))

    def forget(self, digests: Iterable[str]) -> None:
        """Delete those of some files that no crop needs any more."""
        for sha256 in digests:
            path = original_path(self._gallery, sha256)
            same = All((Comparison("sha256", "=", sha256), Comparison("kept", "=", True)))
            if not self._store.count(same):
                path.unlink(missing_ok=True)


def _is_digest(text: str) -> bool:
    try:
        return bool(check_sha256(text))
    except ValueError:
        return False
