"""What changes a gallery: a folder indexed, crops handed over or removed, all of them encoded by another model."""

from __future__ import annotations

import shlex
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cskt.embed import Encoder, ModelSource
from cskt.errors import CsktError
from cskt.gallery.indexing.commits import IndexReport, Progress, brought_up, fill, in_the_way, restate
from cskt.gallery.indexing.encoding import Engine, LocalEngine, Pending, Stated, batched
from cskt.gallery.indexing.files import check_image_id
from cskt.gallery.indexing.ignoring import IgnorePatterns
from cskt.gallery.indexing.scanning import IGNORED, ImageSource, Scan, reason_of
from cskt.gallery.indexing.shards import ShardCrop, crops_of
from cskt.gallery.indexing.upright import encode_turned_crops
from cskt.gallery.manifest import Manifest
from cskt.gallery.originals import original_path
from cskt.gallery.state import Contents, open_store
from cskt.gallery.stores.base import FileState, VectorStore
from cskt.image_files.decode import Source
from cskt.utils.paths import inside

T = TypeVar("T")

AT_ONCE = 1000
"""Crops whose facts are held at a time."""
CROPS_AT_ONCE = 256
"""Crops of a shard that are held at a time, with the bytes of their images."""


def index_source(
    contents: Contents,
    engine: Engine,
    source: ImageSource,
    metadata: Mapping[str, Mapping[str, object]],
    *,
    prune: bool,
    on_progress: Progress | None,
) -> IndexReport:
    """Bring a gallery up to date with a folder, or with the files of a list; see `Gallery.index`."""
    started = time.monotonic()
    scan = source.scan(contents.folder)
    rows = _by_file(metadata, scan.files)
    contents.check_stated(rows.items())
    contents.remember_source(source)
    stated = contents.stated(rows)
    report = IndexReport(
        unreadable=scan.unreadable, unreadable_folders=scan.unreadable_folders, passed_over=dict(scan.passed_over)
    )
    if prune:
        with contents.writing():
            report.removed = contents.store.delete_corrupt()
    known = contents.store.files()
    pending: list[Pending] = []
    same: dict[str, int] = {}
    for name, (num_bytes, modified_ns) in scan.files.items():
        before = known.get(name)
        try:
            check_image_id(name)
        except ValueError as error:
            report.unreadable.append((name, str(error)))
            continue
        if (conflict := in_the_way(before, kept=False)) is not None:
            report.unreadable.append((name, conflict))
        elif before is not None and (before.num_bytes, before.modified_ns) == (num_bytes, modified_ns):
            same[name] = modified_ns
        else:
            pending.append(Pending(name, source.folder / name, modified_ns, False, stated.get(name, {}), before))
    report.updated = _restate_unchanged(contents, same, stated)
    report.unchanged = len(same) - report.updated
    fill(contents.store, engine, pending, report, writing=contents.writing, on_progress=on_progress)
    absent = [name for name, state in known.items() if not state.kept and name not in scan.files]
    vanished = [name for name in absent if not scan.is_unchecked(name)]
    report.unchecked = len(absent) - len(vanished)
    report.vanished = len(vanished)
    if prune and (vanished or report.outdated):
        if not scan.files:
            reason = "ignore less" if scan.passed_over[IGNORED] else "is it mounted?"
            raise CsktError(
                f"{source.folder}: holds no image; not removing all {len(vanished)} crops for that; {reason}"
            )
        report.removed += _prune(contents, {name: known[name] for name in [*vanished, *report.outdated]})
        report.vanished, report.outdated = 0, []
    if pending or report.removed or report.updated:
        with contents.writing():
            contents.store.compact()
    encode_turned_crops(contents, engine, report)
    report.seconds = time.monotonic() - started
    return report


def _by_file(rows: Mapping[str, T], files: Collection[str]) -> dict[str, T]:
    """Rows by the names of the files that they mean: a table and a file system may use other normal forms."""
    in_nfc = {unicodedata.normalize("NFC", name): name for name in files}
    return {
        name if name in files else in_nfc.get(unicodedata.normalize("NFC", name), name): row
        for name, row in rows.items()
    }


def add_crops(
    contents: Contents,
    encoder: Encoder,
    images: Sequence[Source | str],
    image_ids: Sequence[str],
    metadata: Sequence[Mapping[str, object]] | None,
) -> IndexReport:
    """Take crops that are handed over; see `Gallery.add`."""
    started = time.monotonic()
    if len(images) != len(image_ids) or (metadata is not None and len(metadata) != len(images)):
        raise CsktError(f"{len(images)} images with {len(image_ids)} names; give one name, and one row, for each")
    if len(set(map(check_image_id, image_ids))) < len(image_ids):
        raise CsktError("a name occurs twice; give every crop its own")
    contents.refresh()
    before = contents.store.get(image_ids)
    for name, facts in before.items():
        if (conflict := in_the_way(facts, kept=True)) is not None:
            raise CsktError(f"{name}: {conflict}")
    stated = contents.stated(dict(zip(image_ids, metadata or [{}] * len(images), strict=True)))
    pending = []
    for image, name in zip(images, image_ids, strict=True):
        source = Path(image) if isinstance(image, str) else image
        known = before[name].state if name in before else None
        pending.append(Pending(name, source, 0, True, stated[name], known))
    report = IndexReport()
    fill(contents.store, LocalEngine(encoder), pending, report, writing=contents.writing, originals=contents.originals)
    with contents.writing():
        contents.store.compact()
    report.seconds = time.monotonic() - started
    return report


def add_shards(
    contents: Contents,
    engine: Engine,
    shards: Sequence[Path],
    *,
    ignore: Sequence[str] = (),
    on_progress: Progress | None,
) -> IndexReport:
    """Take the crops of Parquet files and archives as handed over; see `Gallery.add_shards`."""
    started = time.monotonic()
    contents.refresh()
    report, scan, patterns = IndexReport(), Scan(), IgnorePatterns(ignore)

    def pending() -> Iterator[Pending]:
        for crop, known, stated in _of_shards(contents, shards, report, scan, patterns):
            yield Pending(crop.image_id, crop.data, 0, True, stated, known)

    fill(
        contents.store, engine, pending(), report, writing=contents.writing, originals=contents.originals,
        on_progress=on_progress,
    )  # fmt: skip
    report.passed_over = dict(scan.passed_over)
    with contents.writing():
        contents.store.compact()
    encode_turned_crops(contents, engine, report)
    report.seconds = time.monotonic() - started
    return report


def check_shards(contents: Contents, shards: Sequence[Path], ignore: Sequence[str]) -> None:
    """See that a gallery can hold the metadata of shards, before anything of them is stored.

    Raises:
        CsktError: see `Contents.check_stated`.
    """
    patterns = IgnorePatterns(ignore)
    contents.check_stated(row for shard in shards for row in _rows_of(shard, patterns))


def _rows_of(shard: Path, ignore: IgnorePatterns) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Names and metadata of a shard's crops, as far as it can be read: whoever reads the images reports the rest."""
    crops = crops_of(shard, with_images=False)
    while True:
        try:
            crop = next(crops)
        except (StopIteration, ValueError):
            return
        if not ignore.match_file(crop.image_id):
            yield f"{shard}: {crop.image_id}", crop.metadata


def _of_shards(
    contents: Contents, shards: Sequence[Path], report: IndexReport, scan: Scan, ignore: IgnorePatterns
) -> Iterator[tuple[ShardCrop, FileState | None, Stated]]:
    """Every crop, what the gallery knows of it, what is told of it; those that cannot be taken go into the report."""
    seen = set[str]()
    for shard in shards:
        for crops in batched(crops_of(shard, scan), CROPS_AT_ONCE, lambda crop: len(crop.data)):
            fit: dict[str, ShardCrop] = {}
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
                    fit[crop.image_id] = crop
                except ValueError as error:
                    report.unreadable.append((crop.image_id, f"{shard}: {error}"))
            before = contents.store.get(list(fit))
            for name, facts in before.items():
                if (conflict := in_the_way(facts, kept=True)) is not None:
                    report.unreadable.append((name, f"{shard}: {conflict}"))
                    del fit[name]
            stated = contents.stated({name: crop.metadata for name, crop in fit.items()})
            for name, crop in fit.items():
                yield crop, before[name].state if name in before else None, stated[name]


def _prune(contents: Contents, vanished: Mapping[str, FileState]) -> int:
    """Remove crops whose file is gone, unless somebody has put another in their place meanwhile; how many."""
    names, num_removed = list(vanished), 0
    for start in range(0, len(names), AT_ONCE):
        with contents.writing():
            present = contents.store.get(names[start : start + AT_ONCE])
            same = [name for name, facts in present.items() if facts.state == vanished[name]]
            num_removed += contents.store.delete(same)
    return num_removed


def remove_crops(contents: Contents, image_ids: Sequence[str]) -> int:
    """Remove crops by name; see `Gallery.remove`."""
    with contents.writing():
        originals = {facts.sha256 for facts in contents.store.get(image_ids).values() if facts.kept}
        with contents.originals.changing(originals):
            removed = contents.store.delete(image_ids)
            contents.originals.forget(originals)
    return removed


def reindex(
    contents: Contents, encoder: Encoder, model: ModelSource, *, drop_unreadable: bool, on_progress: Progress | None
) -> IndexReport:
    """Encode every crop with another model, beside the old vectors; see `Gallery.reindex`."""
    started = time.monotonic()
    contents.refresh()
    if encoder.fingerprint == contents.manifest.fingerprint:
        if not contents.remember_model(model):
            raise CsktError(f"{contents.folder}: holds the vectors of {model.path} already; nothing to do")
        return IndexReport(unchanged=contents.store.count(), model_moved=True, seconds=time.monotonic() - started)
    manifest = contents.manifest.with_model(encoder, model)
    store = open_store(contents.folder, manifest, create=True)
    try:
        report = _fill_anew(
            contents, store, manifest, encoder, drop_unreadable=drop_unreadable, on_progress=on_progress
        )
    except BaseException:
        if contents.store is not store:
            store.close()  # what it holds stays, for the next try
        raise
    report.seconds = time.monotonic() - started
    return report


def _fill_anew(
    contents: Contents,
    store: VectorStore,
    manifest: Manifest,
    encoder: Encoder,
    *,
    drop_unreadable: bool,
    on_progress: Progress | None,
) -> IndexReport:
    """Bring every crop into the store of another model, and go over to it."""
    report = IndexReport()
    pending, report.unchanged = _not_yet_in(store, contents, report)
    if not report.unchanged:  # else an older version may have begun
        manifest = replace(manifest, upright=True)
    fill(store, LocalEngine(encoder), pending, report, writing=contents.writing, on_progress=on_progress)
    with contents.writing():  # what others did meanwhile is made up for while nobody writes
        report.unreadable = []
        store.add_columns(contents.manifest.columns)
        pending, _ = _not_yet_in(store, contents, report)
        fill(store, LocalEngine(encoder), pending, report, writing=nullcontext)
        if report.unreadable and not drop_unreadable:
            name, reason = report.unreadable[0]
            raise CsktError(
                f"{contents.folder}: {len(report.unreadable)} crops cannot be encoded anew, the first is {name}:"
                f" {reason}; put them back, or drop them from the gallery with --prune; it answers with the old model"
                " until then"
            )
        _check_droppable(contents, [name for name, _ in report.unreadable])
        old = contents.store.files().keys()
        store.delete([name for name in store.files() if name not in old])
        _bring_metadata(contents.store, store)
        store.compact()
        contents.replace_by(manifest, store)
    report.removed = len(report.unreadable)
    return report


def _check_droppable(contents: Contents, names: Sequence[str]) -> None:
    """See that crops are dropped because their own file is gone or corrupt, and not because a folder cannot be read.

    Raises:
        CsktError: nobody can tell whether a file is there, or none of the indexed folder is there.
    """
    files, root = contents.store.files(), contents.images or contents.folder
    num_missing = 0
    for name in names:
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
    if num_missing > 1 and num_missing == sum(not state.kept for state in files.values()):
        remedy = shlex.join(["cskt", "index", str(contents.folder)])
        raise CsktError(
            f"{root}: holds none of the {num_missing} crops; not dropping all of them for that; is it mounted? say"
            f" where it is now: {remedy} --images FOLDER"
        )


def _bring_metadata(old: VectorStore, new: VectorStore) -> None:
    """Let crops that were encoded by an earlier, interrupted reindexing know what the gallery knows of them now."""
    names = list(new.files())
    for start in range(0, len(names), AT_ONCE):
        chunk = names[start : start + AT_ONCE]
        known, stated = old.get(chunk), new.get(chunk)
        changes = {
            name: (facts.metadata, facts.modified_ns) for name, facts in known.items() if facts != stated.get(name)
        }
        restate(new, stated, changes)


def _not_yet_in(store: VectorStore, contents: Contents, report: IndexReport) -> tuple[list[Pending], int]:
    """The crops of a gallery that `store` does not hold in their present state, and how many it does hold.

    Those that it holds in another state are deleted from it. Crops whose file would be read from outside the folder
    that it belongs to go into the report as unreadable.
    """
    old, new = contents.store.files(), store.files()
    missing = [name for name, state in old.items() if new.get(name) != state]
    store.delete([name for name in missing if name in new])  # they would have a say in what comes in their place
    root = contents.images or contents.folder
    pending = []
    for start in range(0, len(missing), AT_ONCE):
        for name, facts in contents.store.get(missing[start : start + AT_ONCE]).items():
            try:
                path = original_path(contents.folder, facts.sha256) if facts.kept else inside(root, name)
            except ValueError as error:
                report.unreadable.append((name, str(error)))
                continue
            pending.append(
                Pending(name, path, facts.modified_ns, facts.kept, facts.metadata, None, sha256=facts.sha256)
            )
    return pending, len(old) - len(missing)


def _restate_unchanged(contents: Contents, unchanged: Mapping[str, int], stated: Mapping[str, Stated]) -> int:
    """Store the metadata of unchanged files where it differs; how many there were.

    Args:
        unchanged: name -> nanoseconds since 1970 at which the file was last changed.
        stated: name -> new metadata.
    """
    names, num_updated = [name for name in stated if name in unchanged], 0
    for start in range(0, len(names), AT_ONCE):
        with contents.writing():
            facts = contents.store.get(names[start : start + AT_ONCE])
            rows = {name: brought_up(known.metadata, stated[name]) for name, known in facts.items()}
            changes = {
                name: (row, unchanged[name]) for name, row in rows.items() if row != dict(facts[name].metadata)
            }  # fmt: skip
            num_updated += restate(contents.store, facts, changes)
    return num_updated
