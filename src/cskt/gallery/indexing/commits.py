"""Images into a store: encoded by an engine, committed behind while the next batch is encoded.

What is reported as stored has been committed; whatever ends the process, the next run goes on behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from cskt.gallery.columns import Value
from cskt.gallery.indexing.encoding import Encoded, Engine, Pending, Stated, Touched
from cskt.gallery.originals import Originals
from cskt.gallery.stores.base import Crop, CropFacts, FileState, VectorStore

COMMIT_SECONDS = 2.0
"""Commits are at least this far apart: each costs a look at the whole table, and leaves a fragment behind."""
MOST_UNCOMMITTED = 8192
"""Encoded crops that may wait for a slow store."""
MOST_WAITING_BYTES = 256_000_000
"""Of the files of such crops, where the gallery is to keep them."""

Progress = Callable[[int, int], None]
"""Called with (images dealt with for good, images in all)."""


@dataclass
class IndexReport:
    """What indexing did."""

    added: int = 0
    replaced: int = 0
    """Crops whose file has changed."""
    updated: int = 0
    """Crops whose file is the same and whose metadata has changed."""
    unchanged: int = 0
    turned: int = 0
    """Crops that an older version encoded without their EXIF orientation, and that were encoded again."""
    vanished: int = 0
    """Crops whose file is gone, or ignored by now, and which are still in the gallery."""
    removed: int = 0
    unchecked: int = 0
    """Crops of which it is not known whether their file is there, because it or its folder cannot be read."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, what is wrong with it)."""
    outdated: list[str] = field(default_factory=list)
    """Names among the unreadable whose older version is still in the gallery."""
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, why it cannot be read); their crops are unchecked."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Kind of files that are not indexed (a suffix, `hidden`, `links`, `ignored`, ...) -> how many."""
    model_moved: bool = False
    """True if the manifest names another path of the same model now."""
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
    """Encode images and store them; what cannot be read is listed, not fatal. Counts go into `report` once committed.

    An interrupt (Ctrl-C) commits what is encoded before it is passed on.

    Args:
        pending: a sequence, or a stream, whose length is then not known ahead.
        writing: entered for every commit: the gallery's lock, which also tells whether it is still the same gallery.
        originals: where those that are handed over are kept, and those that they replace forgotten.
    """
    total = len(pending) if isinstance(pending, Sequence) else None
    num_read = dealt_with = 0
    waiting: list[Encoded] = []
    commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
    running: Future[None] | None = None
    last_commit = time.monotonic()

    def commit(batch: list[Encoded]) -> None:
        with writing():
            present = store.get([image.crop.facts.image_id for image in batch])
            crops = _fitting(batch, present, report)
            if originals is None:
                store.add(crops)
            else:
                _add_kept(store, originals, crops, present, {image.crop.facts.sha256: image.data for image in batch})
        num_replaced = sum(crop.facts.image_id in present for crop in crops)
        report.replaced += num_replaced
        report.added += len(crops) - num_replaced
        advance(len(batch))

    def advance(steps: int) -> None:
        nonlocal dealt_with
        dealt_with += steps
        if on_progress is not None:
            on_progress(dealt_with, num_read if total is None else total)

    try:
        for batch in engine.work(pending):
            num_read += batch.num_images
            report.unreadable += batch.unreadable
            report.outdated += batch.outdated
            if batch.touched:
                _restate_touched(store, batch.touched, report, writing, originals)
            waiting += batch.encoded
            full = len(waiting) > MOST_UNCOMMITTED or sum(len(image.data) for image in waiting) > MOST_WAITING_BYTES
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
    advance(num_read - dealt_with)


def _add_kept(
    store: VectorStore,
    originals: Originals,
    crops: Sequence[Crop],
    present: Mapping[str, CropFacts],
    data: Mapping[str, bytes],
) -> None:
    """Store crops with their originals (SHA-256 -> bytes), and let go of those that they replace."""
    needed = {crop.facts.sha256 for crop in crops}
    replaced = {facts.sha256 for facts in present.values()} - needed
    with originals.changing(needed | replaced):
        for sha256 in needed:
            originals.keep(data[sha256], sha256)
        store.add(crops)
        originals.forget(replaced)


def _fitting(batch: Sequence[Encoded], present: Mapping[str, CropFacts], report: IndexReport) -> list[Crop]:
    """The crops of a batch as they are to be stored beside what is present; what is in the way of one is listed."""
    crops = []
    for image in batch:
        facts = image.crop.facts
        there = present.get(facts.image_id)
        if (conflict := in_the_way(there, kept=facts.kept)) is not None:
            report.unreadable.append((facts.image_id, conflict))
            continue
        metadata = brought_up(there.metadata if there else {}, image.stated)
        crops.append(replace(image.crop, facts=replace(facts, metadata=metadata)))
    return crops


def in_the_way(there: CropFacts | FileState | None, *, kept: bool) -> str | None:
    """Why an indexed file, or a crop that is handed over (kept), cannot have the name of a crop that is there."""
    if there is None or there.kept == kept:
        return None
    if there.kept:
        return "a crop of this name was handed over; remove it first"
    return "the name of an indexed file; give the crop another"


def brought_up(old: Mapping[str, Value], stated: Stated) -> dict[str, Value]:
    """Metadata with what is newly stated; what is stated as None is known no more."""
    return {column: value for column, value in {**old, **stated}.items() if value is not None}


def _restate_touched(
    store: VectorStore,
    touched: Sequence[Touched],
    report: IndexReport,
    writing: Callable[[], AbstractContextManager[None]],
    originals: Originals | None,
) -> None:
    """Let the store know what is newly stated of unchanged images."""
    with writing():
        present = store.get([image.pending.image_id for image in touched])
        changes: dict[str, tuple[Mapping[str, Value], int]] = {}
        for image in touched:
            item, there = image.pending, present.get(image.pending.image_id)
            if there is None or item.known is None or (there.sha256, there.kept) != (item.known.sha256, item.kept):
                report.unreadable.append((item.image_id, "another program has changed this crop meanwhile; try again"))
                continue
            if originals is not None:
                originals.keep(image.data, there.sha256)  # should it have been lost
            changes[item.image_id] = brought_up(there.metadata, item.stated), item.modified_ns
        num_updated = restate(store, present, changes)
    report.updated += num_updated
    report.unchanged += len(changes) - num_updated


def restate(
    store: VectorStore, present: Mapping[str, CropFacts], changes: Mapping[str, tuple[Mapping[str, Value], int]]
) -> int:
    """Give crops other metadata, or another time of change, without encoding them again.

    Call it with the gallery's lock held, or a crop that is removed meanwhile comes back.

    Args:
        present: name -> what the store holds, of those that it does hold.
        changes: name -> (the whole metadata, nanoseconds since 1970).

    Returns:
        How many have other metadata now.
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
