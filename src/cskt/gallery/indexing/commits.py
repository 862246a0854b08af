"""Processed images into a store: committed in a thread while the next batch is encoded.

The counts of a report are of committed images. After any interruption the next run continues behind them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from cskt.gallery.columns import Value
from cskt.gallery.indexing.encoding import Engine, Pending, Processed, Stated
from cskt.gallery.originals import Originals
from cskt.gallery.stores.base import Crop, CropRecord, FileState, VectorStore

COMMIT_SECONDS = 2.0
"""Smallest distance of commits: each looks at the whole table, and leaves a fragment behind."""
MAX_UNCOMMITTED = 8192
"""Encoded crops that may wait for a slow store."""
MAX_WAITING_BYTES = 256_000_000
"""Size of the files of such crops, where the gallery stores them."""

Progress = Callable[[int, int], None]
"""Called with (finished images, images in all)."""


@dataclass
class IndexReport:
    """Counts of an indexing."""

    added: int = 0
    replaced: int = 0
    """Crops whose file has changed."""
    updated: int = 0
    """Crops with the same file and other metadata."""
    unchanged: int = 0
    turned: int = 0
    """Crops that an older version encoded without their EXIF orientation, and that were encoded again."""
    vanished: int = 0
    """Crops whose file is missing, or ignored, and which are still in the gallery."""
    removed: int = 0
    unchecked: int = 0
    """Crops whose file, or a folder above it, cannot be read, so that it may exist or not."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, reason)."""
    outdated: list[str] = field(default_factory=list)
    """Names among the unreadable whose older version is still in the gallery."""
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, reason); their crops are unchecked."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Kind of files that are not indexed (a suffix, `hidden`, `links`, `ignored`, ...) -> number."""
    model_moved: bool = False
    """True if the manifest now names another path of the same model."""
    seconds: float = 0.0


def fill(
    store: VectorStore,
    engine: Engine,
    pending: Iterable[Pending],
    report: IndexReport,
    *,
    writing: Callable[[], AbstractContextManager[None]],
    originals: Originals | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Encode and store images. An unreadable image is listed in the report and stops nothing.

    An interrupt (Ctrl-C) commits what is encoded before it is passed on.

    Args:
        pending: a sequence, or a stream of unknown length.
        report: is updated after each commit.
        writing: entered for every commit: the lock of the gallery.
        originals: stores the files of uploads, and deletes those that they replace.
    """
    total = len(pending) if isinstance(pending, Sequence) else None
    writer = Writer(store, report, writing, originals)
    num_read = num_finished = 0

    def advance(steps: int) -> None:
        nonlocal num_finished
        num_finished += steps
        if on_progress is not None:
            on_progress(num_finished, num_read if total is None else total)

    def commit(images: Sequence[Processed]) -> None:
        writer.add(images)
        advance(len(images))

    waiting: list[Processed] = []
    commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
    running: Future[None] | None = None
    last_commit = time.monotonic()
    try:
        for batch in engine.work(pending):
            num_read += len(batch)
            failed = [image for image in batch if image.error is not None]
            report.unreadable += [(image.pending.image_id, image.error or "") for image in failed]
            report.outdated += [image.pending.image_id for image in failed if image.pending.known is not None]
            writer.update([image for image in batch if image.crop is None and image.error is None])
            waiting += [image for image in batch if image.crop is not None]
            full = len(waiting) > MAX_UNCOMMITTED or sum(len(image.data) for image in waiting) > MAX_WAITING_BYTES
            if running is not None and (running.done() or full):
                running.result()
                running = None
            if running is None and waiting and (full or time.monotonic() - last_commit >= COMMIT_SECONDS):
                running, waiting, last_commit = commits.submit(commit, waiting), [], time.monotonic()
    finally:
        try:
            if running is not None:
                running.result()
            if waiting:
                commit(waiting)
        finally:
            commits.shutdown()
    advance(num_read - num_finished)


@dataclass(frozen=True)
class Writer:
    """Stores processed images, each call in one commit; see `fill`."""

    store: VectorStore
    report: IndexReport
    writing: Callable[[], AbstractContextManager[None]]
    originals: Originals | None = None

    def add(self, images: Sequence[Processed]) -> None:
        """Store encoded crops, with the metadata that the store has of their older versions."""
        crops, data = [], {}
        with self.writing():
            present = self.store.get([image.pending.image_id for image in images])
            for image in images:
                assert image.crop is not None
                name, facts = image.pending.image_id, image.crop.facts
                if (conflict := conflict_with(present.get(name), kept=facts.kept)) is not None:
                    self.report.unreadable.append((name, conflict))
                    continue
                metadata = merged_metadata(present[name].metadata if name in present else {}, image.pending.stated)
                crops.append(replace(image.crop, facts=replace(facts, metadata=metadata)))
                data[facts.sha256] = image.data
            if self.originals is None:
                self.store.add(crops)
            else:
                replaced = {facts.sha256 for facts in present.values()} - data.keys()
                with self.originals.changing(data.keys() | replaced):
                    for sha256, content in data.items():
                        self.originals.save(content, sha256)
                    self.store.add(crops)
                    self.originals.delete_unused(replaced)
        num_replaced = sum(crop.facts.image_id in present for crop in crops)
        self.report.replaced += num_replaced
        self.report.added += len(crops) - num_replaced

    def update(self, images: Sequence[Processed]) -> None:
        """Store new metadata of images whose content the store has already."""
        if not images:
            return
        with self.writing():
            present = self.store.get([image.pending.image_id for image in images])
            changes: dict[str, tuple[Mapping[str, Value], int]] = {}
            for image in images:
                item = image.pending
                facts, known = present.get(item.image_id), item.known
                if facts is None or known is None or (facts.sha256, facts.kept) != (known.sha256, item.kept):
                    reason = "another program has changed this crop meanwhile; try again"
                    self.report.unreadable.append((item.image_id, reason))
                    continue
                if self.originals is not None:
                    self.originals.save(image.data, facts.sha256)  # in case it was lost
                changes[item.image_id] = merged_metadata(facts.metadata, item.stated), item.modified_ns
            num_updated = restate(self.store, present, changes)
        self.report.updated += num_updated
        self.report.unchanged += len(changes) - num_updated


def conflict_with(present: CropRecord | FileState | None, *, kept: bool) -> str | None:
    """Return why an indexed file, or an upload (`kept`), cannot have the name of a stored crop; None if it can."""
    if present is None or present.kept == kept:
        return None
    if present.kept:
        return "a crop of this name was uploaded; remove it first"
    return "the name of an indexed file; give the crop another"


def merged_metadata(old: Mapping[str, Value], stated: Stated) -> dict[str, Value]:
    """Return metadata with new values; a column set to None is deleted."""
    return {column: value for column, value in {**old, **stated}.items() if value is not None}


def restate(
    store: VectorStore, present: Mapping[str, CropRecord], changes: Mapping[str, tuple[Mapping[str, Value], int]]
) -> int:
    """Store other metadata, or another time of change, of crops without encoding them again.

    The caller holds the lock of the gallery; otherwise a crop that is removed meanwhile would be stored again.

    Args:
        present: name -> facts in the store.
        changes: name -> (all metadata, nanoseconds since 1970).

    Returns:
        Number of crops with other metadata than before.
    """
    stated = [
        replace(present[name], metadata=metadata, modified_ns=modified_ns)
        for name, (metadata, modified_ns) in changes.items()
        if name in present
    ]
    changed = [facts for facts in stated if facts != present[facts.image_id]]
    names = [facts.image_id for facts in changed]
    vectors, thumbnails = store.vectors(names), store.thumbnails(names)
    store.add([Crop(facts, vectors[facts.image_id], thumbnails[facts.image_id]) for facts in changed])
    return sum(facts.metadata != present[facts.image_id].metadata for facts in changed)
