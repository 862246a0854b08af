"""Stored crops encoded again: all by another model, or those that an older version encoded without their orientation.

Galleries of older versions ignored the EXIF orientation. The manifest notes when all crops are upright
(`Manifest.upright`); new galleries are so from the start. Until then every indexing reads the files of all crops, and
encodes those again that have the tag.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from cskt.data.loading import work_ahead
from cskt.embed import Encoder, ModelSource
from cskt.errors import CsktError
from cskt.gallery.indexing.commits import IndexReport, Progress, fill, restate
from cskt.gallery.indexing.encoding import Engine, LocalEngine, Pending, batched
from cskt.gallery.indexing.scanning import reason_of
from cskt.gallery.opening import open_store
from cskt.gallery.state import GalleryState
from cskt.gallery.stores.base import CropRecord, VectorStore
from cskt.image_files.decode import UPRIGHT, read_bytes, stored_orientation
from cskt.utils.messages import command_text

TURNED_AT_ONCE = 64
"""Crops that are encoded again while the gallery is locked."""
READ_AT_ONCE = 512
NUM_READING_THREADS = 4

logger = logging.getLogger(__name__)


def encode_turned_crops(state: GalleryState, engine: Engine, report: IndexReport) -> None:
    """Encode the crops of an older gallery again whose files have an EXIF orientation; counted as `report.turned`."""
    if state.manifest.upright:
        return
    turned: list[str] = []
    num_failed = 0
    groups = (list(state.store.get(names).values()) for names in batched(state.store.files(), READ_AT_ONCE))
    for found in work_ahead(lambda crop: (crop.image_id, _orientation(state, crop)), groups, NUM_READING_THREADS):
        num_failed += sum(orientation is None for _, orientation in found)
        turned += [name for name, orientation in found if orientation not in (None, UPRIGHT)]
    if turned:
        logger.info("encoding %d crops again, whose EXIF orientation an older version ignored", len(turned))
    for names in batched(turned, TURNED_AT_ONCE):
        again = IndexReport()
        with state.writing():  # otherwise a crop that is replaced meanwhile would come back
            crops = state.store.get(names).values()
            # Uploads go to the engine as bytes: another machine may not see the folder of the gallery.
            pending = [replace(item, sha256=None) for item in _pending_of(state, crops, again, read_uploads=True)]
            fill(state.store, engine, pending, again, writing=nullcontext)
        report.turned += again.replaced
        report.unreadable += again.unreadable
        num_failed += len(again.unreadable)
    with state.writing():
        if turned:
            state.store.compact()
        if not num_failed:
            state.mark_upright()


def reindex(
    state: GalleryState, encoder: Encoder, model: ModelSource, *, prune: bool, on_progress: Progress | None
) -> IndexReport:
    """Encode every crop with another model, beside the old vectors; see `Gallery.reindex`."""
    started = time.monotonic()
    state.refresh()
    if encoder.fingerprint == state.manifest.fingerprint:
        if not state.remember_model(model):
            raise CsktError(f"{state.folder}: contains the vectors of {model.path} already; nothing to do")
        return IndexReport(unchanged=state.store.count(), model_moved=True, seconds=time.monotonic() - started)
    manifest = state.manifest.with_model(encoder, model)
    store = open_store(state.folder, manifest, create=True)
    engine, report = LocalEngine(encoder), IndexReport()
    try:
        pending, report.unchanged = _missing_from(store, state, report)
        if not report.unchanged:  # else an older version may have begun
            manifest = replace(manifest, upright=True)
        fill(store, engine, pending, report, writing=state.writing, on_progress=on_progress)
        with state.writing():  # changes of other programs are repeated while nobody writes
            report.unreadable = []
            store.add_columns(state.manifest.columns)
            pending, _ = _missing_from(store, state, report)
            fill(store, engine, pending, report, writing=nullcontext)
            _check_droppable(state, report.unreadable, prune=prune)
            old = state.store.files().keys()
            store.delete([name for name in store.files() if name not in old])
            _copy_metadata(state.store, store)
            store.compact()
            state.replace_by(manifest, store)
    except BaseException:
        if state.store is not store:
            store.close()  # its content stays for the next try
        raise
    report.removed = len(report.unreadable)
    report.seconds = time.monotonic() - started
    return report


def _check_droppable(state: GalleryState, unreadable: Sequence[tuple[str, str]], *, prune: bool) -> None:
    """Check that crops may be dropped, and are missing or corrupt themselves and not in an unreadable folder."""
    if unreadable and not prune:
        name, reason = unreadable[0]
        raise CsktError(
            f"{state.folder}: {len(unreadable)} crops cannot be encoded anew, the first is {name}: {reason}; put them"
            " back, or drop them from the gallery with --prune; it answers with the old model until then"
        )
    files, root = state.store.files(), state.images or state.folder
    num_missing = 0
    for name, _ in unreadable:
        if files[name].kept:
            continue
        try:
            (root / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            num_missing += 1
        except OSError as error:
            raise CsktError(
                f"{root / name}: {reason_of(error)}; make it readable: --prune drops no crop of a folder that cannot be"
                " read"
            ) from None
    if num_missing > 1 and num_missing == sum(not file.kept for file in files.values()):
        remedy = command_text("index", state.folder, "--images", "FOLDER")
        raise CsktError(
            f"{root}: contains none of the {num_missing} crops; not dropping all of them for that; is it mounted? say"
            f" where it is now: {remedy}"
        )


def _copy_metadata(old: VectorStore, new: VectorStore) -> None:
    """Update the metadata of crops that an earlier, interrupted reindexing encoded."""
    for names in batched(new.files()):
        known, stated = old.get(names), new.get(names)
        changes = {
            name: (facts.metadata, facts.modified_ns) for name, facts in known.items() if facts != stated.get(name)
        }
        restate(new, stated, changes)


def _missing_from(store: VectorStore, state: GalleryState, report: IndexReport) -> tuple[list[Pending], int]:
    """Return the crops of a gallery that `store` has not in their present state, and the number that it has.

    Those that it has in another state are deleted from it. Files outside the indexed folder are listed as unreadable.
    """
    old, new = state.store.files(), store.files()
    missing = [name for name, file in old.items() if new.get(name) != file]
    store.delete([name for name in missing if name in new])  # their metadata would be merged with the new
    pending: list[Pending] = []
    for names in batched(missing):
        pending += _pending_of(state, state.store.get(names).values(), report)
    return pending, len(old) - len(missing)


def _pending_of(
    state: GalleryState, crops: Iterable[CropRecord], report: IndexReport, *, read_uploads: bool = False
) -> Iterator[Pending]:
    """Yield stored crops to be encoded again from the same files."""
    for facts in crops:
        try:
            path = state.file_of(facts)
            source = read_bytes(path) if read_uploads and facts.kept else path
        except CsktError as error:
            report.unreadable.append((facts.image_id, str(error)))
            continue
        yield Pending(
            facts.image_id, source, facts.modified_ns, facts.kept, facts.metadata, known=None, sha256=facts.sha256
        )


def _orientation(state: GalleryState, crop: CropRecord) -> int | None:
    """Return the EXIF orientation of a crop's file; None if it cannot be read."""
    try:
        return stored_orientation(read_bytes(state.file_of(crop)))
    except CsktError:
        return None
