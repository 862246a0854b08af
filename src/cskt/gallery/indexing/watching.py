"""A folder that is indexed again whenever it changes, by looking at it at an interval.

The system's notifications (inotify, which `watchfiles` and `watchdog` use) do not report what other machines write to a
network drive, and none says that a file is complete. So the folder is listed again and again, and a file is indexed
once it is the same in two lists. Nothing is stored between two of them but the gallery: after a kill, the first list
says what is missing.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cskt.errors import CsktError, GalleryChangedError
from cskt.gallery.indexing.commits import IndexReport, Progress
from cskt.gallery.indexing.encoding import Engine
from cskt.gallery.indexing.scanning import Files
from cskt.gallery.indexing.updating import index
from cskt.gallery.opening import source_to_index
from cskt.gallery.state import GalleryState, Row

logger = logging.getLogger(__name__)

Rows = Mapping[str, Row]


def watch(
    state: GalleryState,
    engine: Engine,
    images: str | Path | None,
    metadata: Callable[[], Rows],
    ignore: str | Sequence[str] | None,
    *,
    prune: bool,
    seconds: float,
    wait: Callable[[float], object],
    on_progress: Progress | None,
) -> Iterator[IndexReport]:
    """Index a folder, or the files of a list, whenever they or their metadata have changed; see `Gallery.watch`."""
    before: Files | None = None
    indexed: Files | None = None
    indexed_rows: Rows = {}
    reason = ""
    while True:
        report = None
        try:
            rows = metadata()
            scan = source_to_index(state.folder, state.refresh().manifest, images, ignore).scan(state.folder)
            now = dict(scan.files)
            scan.leave_growing(before or {})
            is_settled = before is not None and (bool(scan.files) or not scan.growing)
            before = now
            known = indexed and {name: file for name, file in indexed.items() if name not in scan.growing}
            if is_settled and (scan.files != known or rows != indexed_rows):
                due = _due(rows, indexed_rows, scan.files, indexed or {})
                report = index(state, engine, images, due, ignore, prune=prune, on_progress=on_progress, scan=scan)
                indexed, indexed_rows, reason = scan.files, rows, ""
        except GalleryChangedError:
            raise
        except CsktError as error:
            if indexed is None:
                raise
            if str(error) != reason:  # else it was logged at the last look
                reason = str(error)
                logger.warning("not indexed now, to be tried again every %g s: %s", seconds, reason)
        if report is not None:
            yield report
        wait(seconds)


def _due(rows: Rows, indexed_rows: Rows, files: Files, indexed: Files) -> Rows:
    """Return the rows that are new, and those of files that are: all others are in the gallery."""
    same = {unicodedata.normalize("NFC", name) for name, state in files.items() if indexed.get(name) == state}
    return {
        name: row
        for name, row in rows.items()
        if unicodedata.normalize("NFC", name) not in same or indexed_rows.get(name) != row
    }
