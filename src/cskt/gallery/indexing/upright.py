"""Galleries of older versions, which ignored the EXIF orientation: their turned crops are encoded again, once.

The manifest notes when that is done (`Manifest.upright`); new galleries are upright from the start. Until then every
indexing reads the files of all crops, looks for the tag, and encodes those again that have one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from cskt.data.loading import work_ahead
from cskt.gallery.indexing.commits import IndexReport, fill
from cskt.gallery.indexing.encoding import Engine, Pending
from cskt.gallery.originals import original_path
from cskt.gallery.state import Contents
from cskt.gallery.stores.base import CropFacts
from cskt.image_files.decode import read_bytes, stored_orientation
from cskt.image_files.orientation import UPRIGHT
from cskt.utils.paths import inside

CROPS_AT_ONCE = 64
"""Crops that are encoded again while the gallery is locked."""
CROPS_READ_AT_ONCE = 512
NUM_READING_THREADS = 4

logger = logging.getLogger(__name__)


def encode_turned_crops(contents: Contents, engine: Engine, report: IndexReport) -> None:
    """Encode the crops of an older gallery again whose files have an EXIF orientation; see the module.

    Args:
        contents: the gallery.
        engine: reads and encodes.
        report: `turned` counts the crops; files that cannot be read are listed.
    """
    if contents.manifest.upright:
        return
    names = list(contents.store.files())
    turned: list[str] = []
    num_unread = 0
    starts = range(0, len(names), CROPS_READ_AT_ONCE)
    groups = (list(contents.store.get(names[start : start + CROPS_READ_AT_ONCE]).values()) for start in starts)
    for looks in work_ahead(lambda crop: _look(contents, crop), groups, NUM_READING_THREADS):
        num_unread += sum(look.orientation is None for look in looks)
        turned += [look.image_id for look in looks if look.orientation not in (None, UPRIGHT)]
    if turned:
        logger.info("encoding %d crops again, whose EXIF orientation an older version ignored", len(turned))
    num_failed = 0
    for start in range(0, len(turned), CROPS_AT_ONCE):
        again = IndexReport()
        with contents.writing():  # or a crop that is replaced meanwhile would come back
            present = contents.store.get(turned[start : start + CROPS_AT_ONCE])
            pending = list(_pending(contents, list(present.values()), again))
            fill(contents.store, engine, pending, again, writing=nullcontext)
        report.turned += again.replaced
        report.unreadable += again.unreadable
        num_failed += len(again.unreadable)
    with contents.writing():
        if turned:
            contents.store.compact()
        if not num_unread and not num_failed:
            contents.note_upright()


@dataclass(frozen=True)
class _Look:
    image_id: str
    orientation: int | None
    """None where the file is gone, changed, or cannot be read."""


def _look(contents: Contents, crop: CropFacts) -> _Look:
    try:
        data = read_bytes(_file_of(contents, crop))
    except ValueError:
        return _Look(crop.image_id, None)
    return _Look(crop.image_id, stored_orientation(data))


def _file_of(contents: Contents, crop: CropFacts) -> Path:
    if crop.kept:
        return original_path(contents.folder, crop.sha256)
    return inside(contents.images or contents.folder, crop.image_id)


def _pending(contents: Contents, crops: Sequence[CropFacts], report: IndexReport) -> Iterator[Pending]:
    """Files that the gallery keeps go to the engine as bytes: another machine may not see its folder."""
    for crop in crops:
        try:
            path = _file_of(contents, crop)
            source = read_bytes(path) if crop.kept else path
        except ValueError as error:
            report.unreadable.append((crop.image_id, str(error)))
            continue
        yield Pending(crop.image_id, source, crop.modified_ns, crop.kept, {}, None)
