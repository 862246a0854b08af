"""Images into a store: read ahead in threads, encoded in batches, committed behind while the next batch is encoded.

What is reported as stored has been committed; whatever ends the process, the next run goes on behind it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch

from cskt.data.images import Source
from cskt.embed import Encoder
from cskt.gallery.columns import Value
from cskt.gallery.files import ReadImage, bytes_of, digest, prepare
from cskt.gallery.store import Crop, CropFacts, FileState, VectorStore

COMMIT_SECONDS = 2.0
"""Commits are at least this far apart: each costs a look at the whole table, and leaves a fragment behind."""
MOST_UNCOMMITTED = 8192
"""Encoded crops that may wait for a slow store."""
BATCHES_AHEAD = 2
IMAGES_PER_TASK = 8
RESTATED_AT_ONCE = 1000

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
    vanished: int = 0
    """Crops whose file is gone, and which are still in the gallery."""
    removed: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, what is wrong with it)."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Pending:
    """An image that is to be encoded."""

    image_id: str
    source: Source
    modified_ns: int
    kept: bool
    metadata: Mapping[str, Value]
    known: FileState | None
    """What the store holds under this name."""


@dataclass(frozen=True)
class _Read:
    pending: Pending
    data: bytes
    """Of the file, where the gallery is to keep it; nothing otherwise, for thousands may wait for a commit."""
    image: ReadImage | None
    """None where the content is what the store already has."""


def fill(
    store: VectorStore,
    encoder: Encoder,
    pending: Sequence[Pending],
    report: IndexReport,
    *,
    writing: Callable[[], AbstractContextManager[None]],
    keep: Callable[[bytes, str], None] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Encode images and store them; what cannot be read is listed, not fatal. Counts go into `report` once committed.

    An interrupt (Ctrl-C) commits what is encoded before it is passed on.

    Args:
        writing: entered for every commit: the gallery's lock, which also tells whether it is still the same gallery.
        keep: called, with that lock held, with (bytes, SHA-256) of every image that is committed.
    """
    total, dealt_with = len(pending), 0
    waiting: list[_Encoded] = []
    commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
    running: Future[None] | None = None
    last_commit = time.monotonic()

    def commit(batch: list[_Encoded]) -> None:
        with writing():
            for encoded in batch:
                if keep is not None and encoded.crop.facts.kept:
                    keep(encoded.data, encoded.crop.facts.sha256)
            store.add([encoded.crop for encoded in batch])
        for encoded in batch:
            report.replaced += encoded.known
            report.added += not encoded.known
        advance(len(batch))

    def advance(steps: int) -> None:
        nonlocal dealt_with
        dealt_with += steps
        if on_progress is not None:
            on_progress(dealt_with, total)

    try:
        for batch in _read_ahead(pending, encoder, report):
            fresh = [read for read in batch if read.image is not None]
            touched = [read for read in batch if read.image is None]
            updated = 0
            if touched:
                with writing():
                    for read in touched:
                        if keep is not None and read.pending.kept:
                            keep(read.data, digest(read.data))
                    stated = {read.pending.image_id: read.pending for read in touched}
                    changes = {name: (item.metadata, item.modified_ns) for name, item in stated.items()}
                    updated = restate(store, changes)
            report.updated += updated
            report.unchanged += len(touched) - updated
            waiting += _encode(encoder, fresh)
            if running is not None and (running.done() or len(waiting) > MOST_UNCOMMITTED):
                running.result()
                running = None
            if running is None and waiting and time.monotonic() - last_commit >= COMMIT_SECONDS:
                running, waiting, last_commit = commits.submit(commit, waiting), [], time.monotonic()
    finally:
        try:
            if running is not None:
                running.result()
            if waiting:
                commit(waiting)
        finally:
            commits.shutdown()
    advance(total - dealt_with)


def restate(store: VectorStore, changes: Mapping[str, tuple[Mapping[str, Value], int]]) -> int:
    """Give crops other metadata, or another time of change, without encoding them again.

    Call it with the gallery's lock held, or a crop that is removed meanwhile comes back.

    Args:
        changes: name -> (the whole metadata, nanoseconds since 1970).

    Returns:
        How many have other metadata now.
    """
    names, num_updated = list(changes), 0
    for start in range(0, len(names), RESTATED_AT_ONCE):
        chunk = names[start : start + RESTATED_AT_ONCE]
        facts, vectors, thumbnails = store.get(chunk), store.vectors(chunk), store.thumbnails(chunk)
        crops = []
        for name in chunk:
            metadata, modified_ns = changes[name]
            if name in facts:
                num_updated += dict(facts[name].metadata) != dict(metadata)
                stated = replace(facts[name], metadata=metadata, modified_ns=modified_ns)
                crops.append(Crop(stated, vectors[name], thumbnails[name]))
        store.add(crops)
    return num_updated


@dataclass(frozen=True)
class _Encoded:
    crop: Crop
    known: bool
    data: bytes


def _encode(encoder: Encoder, batch: Sequence[_Read]) -> list[_Encoded]:
    images = [read.image for read in batch if read.image is not None]
    if not images:
        return []
    vectors = encoder.encode_image(torch.stack([image.pixels for image in images]))
    encoded = []
    for read, image, vector in zip(batch, images, vectors.numpy(), strict=True):
        pending = read.pending
        facts = CropFacts(
            image_id=pending.image_id,
            width=image.width,
            height=image.height,
            num_bytes=image.num_bytes,
            modified_ns=pending.modified_ns,
            sha256=image.sha256,
            kept=pending.kept,
            metadata=pending.metadata,
        )
        encoded.append(_Encoded(Crop(facts, vector, image.thumbnail), pending.known is not None, read.data))
    return encoded


def _read_ahead(pending: Sequence[Pending], encoder: Encoder, report: IndexReport) -> Iterator[list[_Read]]:
    """Batches of images read in threads; unreadable ones go into the report instead."""
    size = encoder.model.architecture.image_height, encoder.model.architecture.image_width

    def read(task: Sequence[Pending]) -> list[_Read | tuple[str, str]]:
        return [_read(item, size) for item in task]

    readers = ThreadPoolExecutor(max(1, encoder.num_workers), thread_name_prefix="read")
    ahead: deque[list[Future[list[_Read | tuple[str, str]]]]] = deque()

    def finish_oldest() -> list[_Read]:
        found = [item for task in ahead.popleft() for item in task.result()]
        report.unreadable += [item for item in found if not isinstance(item, _Read)]
        return [item for item in found if isinstance(item, _Read)]

    try:
        for start in range(0, len(pending), encoder.batch_size):
            batch = pending[start : start + encoder.batch_size]
            tasks = (batch[first : first + IMAGES_PER_TASK] for first in range(0, len(batch), IMAGES_PER_TASK))
            ahead.append([readers.submit(read, task) for task in tasks])
            if len(ahead) > BATCHES_AHEAD:
                yield finish_oldest()
        while ahead:
            yield finish_oldest()
    finally:
        readers.shutdown(cancel_futures=True)


def _read(pending: Pending, size: tuple[int, int]) -> _Read | tuple[str, str]:
    """The image, or (name, what is wrong with it)."""
    try:
        data = bytes_of(pending.source)
        if pending.known is not None and pending.known.num_bytes == len(data) and digest(data) == pending.known.sha256:
            return _Read(pending, data if pending.kept else b"", None)
        return _Read(pending, data if pending.kept else b"", prepare(data, *size))
    except ValueError as error:
        return pending.image_id, " ".join(str(error).removeprefix("image: ").split())
