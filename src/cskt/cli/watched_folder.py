"""`cskt index --watch`: a report after each indexing, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from cskt.cli.gallery_flags import report_indexing
from cskt.cli.metadata_table import read_metadata
from cskt.gallery.gallery import Gallery
from cskt.gallery.state import Row, state_of


def watch_folder(gallery: Gallery, folder: Path, ignore: Sequence[str] | None, flags: argparse.Namespace) -> NoReturn:
    """Index a folder whenever it or the table of `--metadata` changes; only an error or an interruption ends this."""
    table: Callable[[], Mapping[str, Row]] = WatchedTable(flags.metadata, folder, flags.key) if flags.metadata else dict
    reported = set[tuple[str, str]]()
    try:
        for report in gallery.watch(
            flags.images, metadata=table, ignore=ignore, prune=flags.prune, seconds=flags.interval
        ):
            report.unreadable = [entry for entry in report.unreadable if entry not in reported]
            reported.update(report.unreadable)
            report_indexing(report, flags.gallery, gallery.count(), as_json=flags.json)
            sys.stdout.flush()
    except KeyboardInterrupt:
        stored = f"{gallery.count():,} images are in the gallery"
        raise KeyboardInterrupt(f"{stored}; run the same command to continue") from None
    raise AssertionError("a watch has no end")


class WatchedTable:
    """Rows of a table; it is read again when it has changed, and is the same in two calls."""

    def __init__(self, path: Path, folder: Path, key: str | None) -> None:
        self._path, self._folder, self._key = path, folder, key
        self._before: object = None
        self._read_at: object = None
        self._rows: Mapping[str, Row] = {}

    def __call__(self) -> Mapping[str, Row]:
        """Return the rows, those of an earlier call while the table changes."""
        now = (state_of(self._path), self._path.stat().st_size) if self._path.is_file() else None
        if now == self._before != self._read_at:
            self._rows = read_metadata(self._path, self._folder, self._key)
            self._read_at = now
        self._before = now
        return self._rows
