"""Crops added to a gallery, updated and removed: those of a folder or list, of shards, or single ones."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from PIL import Image

from cskt.errors import CsktError
from cskt.gallery.indexing.commits import IndexReport, Progress, Writer, conflict_with, fill
from cskt.gallery.indexing.encoding import Engine, Pending, Processed, batched
from cskt.gallery.indexing.ignoring import IgnorePatterns
from cskt.gallery.indexing.reencoding import encode_turned_crops
from cskt.gallery.indexing.scanning import IGNORED, Scan
from cskt.gallery.indexing.shards import crops_of, find_shards
from cskt.gallery.opening import source_to_index
from cskt.gallery.state import GalleryState
from cskt.gallery.stores.base import FileState, check_image_id
from cskt.image_files.decode import Source
from cskt.utils.arguments import listed

T = TypeVar("T")

SHARD_CROPS_AT_ONCE = 256
"""Crops of a shard in memory, with the bytes of their images."""


def index(
    state: GalleryState,
    engine: Engine,
    images: str | Path | None,
    metadata: Mapping[str, Mapping[str, object]],
    ignore: str | Sequence[str] | None,
    *,
    prune: bool,
    on_progress: Progress | None,
    scan: Scan | None = None,
) -> IndexReport:
    """Bring a gallery up to date with a folder, or with the files of a list; see `Gallery.index`.

    `scan` is what was found there a moment ago; None: the source is scanned now.
    """
    started = time.monotonic()
    state.refresh()
    if images is None and state.images is None and not state.manifest.upright:
        report = IndexReport()
        encode_turned_crops(state, engine, report)
        return report
    source = source_to_index(state.folder, state.manifest, images, ignore)
    scan = scan or source.scan(state.folder)
    rows = _by_file(metadata, scan.files)
    state.check_metadata(rows.items())
    state.remember_source(source)
    stated = state.convert_metadata(rows)
    report = IndexReport(
        unreadable=scan.unreadable, unreadable_folders=scan.unreadable_folders, passed_over=dict(scan.passed_over)
    )
    if prune:
        with state.writing():
            report.removed = state.store.delete_corrupt()
    known = state.store.files()
    pending: list[Pending] = []
    restated: list[Pending] = []
    for name, (num_bytes, modified_ns) in scan.files.items():
        before = known.get(name)
        try:
            check_image_id(name)
        except CsktError as error:
            report.unreadable.append((name, str(error)))
            continue
        is_unchanged = before is not None and (before.num_bytes, before.modified_ns) == (num_bytes, modified_ns)
        if (conflict := conflict_with(before, kept=False)) is not None:
            report.unreadable.append((name, conflict))
        elif is_unchanged and name not in stated:
            report.unchanged += 1
        else:
            item = Pending(name, source.folder / name, modified_ns, False, stated.get(name, {}), before)
            (restated if is_unchanged else pending).append(item)
    for items in batched(restated):
        Writer(state.store, report, state.writing).update([Processed(item) for item in items])
    fill(state.store, engine, pending, report, writing=state.writing, on_progress=on_progress)
    present = scan.files.keys() | scan.growing
    absent = [name for name, file in known.items() if not file.kept and name not in present]
    vanished = [name for name in absent if not scan.is_unchecked(name)]
    report.unchecked, report.vanished = len(absent) - len(vanished), len(vanished)
    if prune and (vanished or report.outdated):
        if not scan.files:
            reason = "ignore less" if scan.passed_over[IGNORED] else "is it mounted?"
            raise CsktError(
                f"{source.folder}: contains no image; not removing all {len(vanished)} crops for that; {reason}"
            )
        report.removed += _prune(state, {name: known[name] for name in [*vanished, *report.outdated]})
        report.vanished, report.outdated = 0, []
    if pending or report.removed or report.updated:
        with state.writing():
            state.store.compact()
    encode_turned_crops(state, engine, report)
    report.seconds = time.monotonic() - started
    return report


def add_crops(
    state: GalleryState,
    engine: Engine,
    images: Source | str | Sequence[Source | str],
    image_ids: str | Sequence[str],
    metadata: Mapping[str, object] | Sequence[Mapping[str, object]] | None,
) -> IndexReport:
    """Store uploaded crops; see `Gallery.add`."""
    started = time.monotonic()
    images = listed(images, (str, bytes, Path, Image.Image), "images")
    image_ids = listed(image_ids, str, "image_ids")
    metadata = None if metadata is None else listed(metadata, Mapping, "metadata")
    if len(images) != len(image_ids) or (metadata is not None and len(metadata) != len(images)):
        raise CsktError(f"{len(images)} images with {len(image_ids)} names; give one name, and one row, for each")
    if len(set(map(check_image_id, image_ids))) < len(image_ids):
        raise CsktError("a name occurs twice; give every crop its own")
    state.refresh()
    before = state.store.get(image_ids)
    for name, facts in before.items():
        if (conflict := conflict_with(facts, kept=True)) is not None:
            raise CsktError(f"{name}: {conflict}")
    stated = state.convert_metadata(dict(zip(image_ids, metadata or [{}] * len(images), strict=True)))
    pending = []
    for image, name in zip(images, image_ids, strict=True):
        source = Path(image) if isinstance(image, str) else image
        pending.append(Pending(name, source, 0, True, stated[name], before[name].state if name in before else None))
    report = IndexReport()
    fill(state.store, engine, pending, report, writing=state.writing, originals=state.originals)
    with state.writing():
        state.store.compact()
    report.seconds = time.monotonic() - started
    return report


def add_shards(
    state: GalleryState,
    engine: Engine,
    shards: str | Path | Sequence[str | Path] | None,
    ignore: str | Sequence[str] | None,
    *,
    on_progress: Progress | None,
) -> IndexReport:
    """Store the crops of Parquet files and archives as uploads; see `Gallery.add_shards`."""
    started = time.monotonic()
    state.refresh()
    patterns = (
        state.manifest.shards if shards is None else [str(path) for path in listed(shards, (str, Path), "shards")]
    )
    if not patterns:
        raise CsktError(f"{state.folder}: no shards were indexed before; name them")
    files = [file for pattern in patterns for file in find_shards(pattern)]
    ignore = state.manifest.ignore if ignore is None else listed(ignore, str, "ignore")
    ignored = IgnorePatterns(ignore)
    state.check_metadata(row for file in files for row in _metadata_of(file, ignored))
    state.remember_shards(patterns, ignore)
    report, scan = IndexReport(), Scan()
    fill(
        state.store, engine, _pending_of(state, files, report, scan, ignored), report,
        writing=state.writing, originals=state.originals, on_progress=on_progress,
    )  # fmt: skip
    report.passed_over = dict(scan.passed_over)
    with state.writing():
        state.store.compact()
    encode_turned_crops(state, engine, report)
    report.seconds = time.monotonic() - started
    return report


def remove_crops(state: GalleryState, image_ids: Sequence[str]) -> int:
    """Remove crops by name; see `Gallery.remove`."""
    with state.writing():
        uploads = {facts.sha256 for facts in state.store.get(image_ids).values() if facts.kept}
        with state.originals.changing(uploads):
            removed = state.store.delete(image_ids)
            state.originals.delete_unused(uploads)
    return removed


def _by_file(rows: Mapping[str, T], files: Collection[str]) -> dict[str, T]:
    """Return rows by the names of their files: a table and a file system may use other normal forms."""
    in_nfc = {unicodedata.normalize("NFC", name): name for name in files}
    return {
        name if name in files else in_nfc.get(unicodedata.normalize("NFC", name), name): row
        for name, row in rows.items()
    }


def _prune(state: GalleryState, vanished: Mapping[str, FileState]) -> int:
    """Remove crops whose file is missing, unless another program has replaced them, and return their number."""
    num_removed = 0
    for names in batched(vanished):
        with state.writing():
            present = state.store.get(names)
            num_removed += state.store.delete(
                [name for name, facts in present.items() if facts.state == vanished[name]]
            )
    return num_removed


def _metadata_of(shard: Path, ignore: IgnorePatterns) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield names and metadata of a shard's crops up to the first error, which reading the images reports again."""
    with suppress(CsktError):
        for crop in crops_of(shard, with_images=False):
            if not ignore.match_file(crop.image_id):
                yield f"{shard}: {crop.image_id}", crop.metadata


def _pending_of(
    state: GalleryState, shards: Sequence[Path], report: IndexReport, scan: Scan, ignore: IgnorePatterns
) -> Iterator[Pending]:
    """Yield the crops of shards; those that cannot be stored go into the report."""
    seen = set[str]()
    for shard in shards:
        for crops in batched(crops_of(shard, scan), SHARD_CROPS_AT_ONCE, lambda crop: len(crop.data)):
            valid = {}
            for crop in crops:
                if ignore.match_file(crop.image_id):
                    scan.passed_over[IGNORED] += 1
                    continue
                try:
                    if check_image_id(crop.image_id) in seen:
                        raise CsktError("the name occurs twice; the first counts")
                    seen.add(crop.image_id)
                    if crop.wrong:
                        raise CsktError(crop.wrong)
                    valid[crop.image_id] = crop
                except CsktError as error:
                    report.unreadable.append((crop.image_id, f"{shard}: {error}"))
            before = state.store.get(list(valid))
            for name, facts in before.items():
                if (conflict := conflict_with(facts, kept=True)) is not None:
                    report.unreadable.append((name, f"{shard}: {conflict}"))
                    del valid[name]
            stated = state.convert_metadata({name: crop.metadata for name, crop in valid.items()})
            for name, crop in valid.items():
                known = before[name].state if name in before else None
                yield Pending(name, crop.data, 0, True, stated[name], known)
