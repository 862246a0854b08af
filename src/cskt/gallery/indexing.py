"""Images into a store: read ahead in threads, encoded in batches, committed behind while the next batch is encoded.

What is reported as stored has been committed; whatever ends the process, the next run goes on behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cskt.data.ahead import work_ahead
from cskt.data.images import Source
from cskt.embed import Encoder
from cskt.gallery.columns import Value
from cskt.gallery.files import ReadImage, bytes_of, digest, prepare
from cskt.gallery.store import Crop, CropFacts, FileState, VectorStore

COMMIT_SECONDS = 2.0
"""Commits are at least this far apart: each costs a look at the whole table, and leaves a fragment behind."""
MOST_UNCOMMITTED = 8192
"""Encoded crops that may wait for a slow store."""
MOST_WAITING_BYTES = 256_000_000
"""Of the files of such crops, where the gallery is to keep them."""
MOST_BATCH_BYTES = 64_000_000
"""Of the files of a batch, where they are in memory."""
RESTATED_AT_ONCE = 1000

Item = TypeVar("Item")
Stated: TypeAlias = Mapping[str, Value | None]
"""Metadata of a crop as it was told; None takes a value back."""
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
    stated: Stated
    """What is newly told of it; other values stay as the store has them when it is committed."""
    known: FileState | None
    """What the store held under this name when it was looked at."""


@dataclass(frozen=True)
class Encoded:
    """An image as the store is to hold it."""

    crop: Crop
    """But for its metadata."""
    stated: Stated
    data: bytes
    """Of the file, where the gallery is to keep it."""


@dataclass(frozen=True)
class Touched:
    """An image whose content is what the store already has."""

    pending: Pending
    data: bytes
    """As of `Encoded`."""


@dataclass(frozen=True)
class Worked:
    """What became of a batch of images."""

    encoded: list[Encoded]
    touched: list[Touched]
    unreadable: list[tuple[str, str]]
    """(name, what is wrong with it)."""

    @property
    def num_images(self) -> int:
        """In the batch."""
        return len(self.encoded) + len(self.touched) + len(self.unreadable)


class Engine(Protocol):
    """Reads and encodes images somewhere: in this process (`LocalEngine`) or in others (`ray_engine`)."""

    def work(self, pending: Iterable[Pending]) -> Iterator[Worked]:
        """Batch after batch, each image once, in any order."""


def fill(
    store: VectorStore,
    engine: Engine,
    pending: Iterable[Pending],
    report: IndexReport,
    *,
    writing: Callable[[], AbstractContextManager[None]],
    keep: Callable[[bytes, str], None] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Encode images and store them; what cannot be read is listed, not fatal. Counts go into `report` once committed.

    An interrupt (Ctrl-C) commits what is encoded before it is passed on.

    Args:
        pending: a sequence, or a stream, whose length is then not known ahead.
        writing: entered for every commit: the gallery's lock, which also tells whether it is still the same gallery.
        keep: called, with that lock held, with (bytes, SHA-256) of every image that is committed.
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
            crops = _fitting(batch, present, report, keep)
            store.add(crops)
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
            if batch.touched:
                _restate_touched(store, batch.touched, report, writing, keep)
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


def _fitting(
    batch: Sequence[Encoded],
    present: Mapping[str, CropFacts],
    report: IndexReport,
    keep: Callable[[bytes, str], None] | None,
) -> list[Crop]:
    """The crops of a batch as they are to be stored beside what is present; what is in the way of one is listed."""
    crops = []
    for image in batch:
        facts = image.crop.facts
        there = present.get(facts.image_id)
        if (conflict := in_the_way(there, kept=facts.kept)) is not None:
            report.unreadable.append((facts.image_id, conflict))
            continue
        if keep is not None and facts.kept:
            keep(image.data, facts.sha256)
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
    keep: Callable[[bytes, str], None] | None,
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
            if keep is not None and item.kept:
                keep(image.data, there.sha256)
            changes[item.image_id] = brought_up(there.metadata, item.stated), item.modified_ns
        num_updated = restate(store, changes)
    report.updated += num_updated
    report.unchanged += len(changes) - num_updated


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
            if name in facts and (before := dict(facts[name].metadata), facts[name].modified_ns) != (
                dict(metadata), modified_ns,
            ):  # fmt: skip
                num_updated += before != dict(metadata)
                stated = replace(facts[name], metadata=metadata, modified_ns=modified_ns)
                crops.append(Crop(stated, vectors[name], thumbnails[name]))
        store.add(crops)
    return num_updated


class LocalEngine:
    """Encodes in this process: files are read ahead in threads.

    Args:
        encoder: the gallery's.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def work(self, pending: Iterable[Pending]) -> Iterator[Worked]:
        """Batches in order."""
        encoder = self._encoder
        size = encoder.model.architecture.image_height, encoder.model.architecture.image_width
        batches = batched(pending, encoder.batch_size, bytes_held)
        for images in work_ahead(lambda item: _read(item, size), batches, max(1, encoder.num_workers)):
            yield encode(encoder, images)


def batched(items: Iterable[Item], size: int, num_bytes: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Lists of `size`, shorter where their files would fill more memory than `MOST_BATCH_BYTES`; the last of the rest.

    Args:
        num_bytes: what an item holds in memory.
    """
    batch: list[Item] = []
    held = 0
    for item in items:
        more = num_bytes(item)
        if batch and (len(batch) == size or held + more > MOST_BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += more
    if batch:
        yield batch


def bytes_held(pending: Pending) -> int:
    """Of the image's file, where it is in memory."""
    return len(pending.source) if isinstance(pending.source, bytes) else 0


@dataclass(frozen=True)
class _Decoded:
    pending: Pending
    data: bytes
    image: ReadImage


def encode(encoder: Encoder, images: Sequence[_Decoded | Touched | tuple[str, str]]) -> Worked:
    """Images as `_read` gives them, encoded together."""
    decoded = [image for image in images if isinstance(image, _Decoded)]
    encoded = []
    if decoded:
        vectors = encoder.encode_image(torch.stack([item.image.pixels for item in decoded])).numpy()
        encoded = [_encoded(item, vector) for item, vector in zip(decoded, vectors, strict=True)]
    return Worked(
        encoded,
        touched=[image for image in images if isinstance(image, Touched)],
        unreadable=[image for image in images if isinstance(image, tuple)],
    )


def _encoded(item: _Decoded, vector: NDArray[np.float32]) -> Encoded:
    pending, image = item.pending, item.image
    facts = CropFacts(
        image_id=pending.image_id,
        width=image.width,
        height=image.height,
        num_bytes=image.num_bytes,
        modified_ns=pending.modified_ns,
        sha256=image.sha256,
        kept=pending.kept,
    )
    return Encoded(Crop(facts, vector, image.thumbnail), pending.stated, item.data)


def _read(pending: Pending, size: tuple[int, int]) -> _Decoded | Touched | tuple[str, str]:
    """The image, or (name, what is wrong with it)."""
    try:
        data = bytes_of(pending.source)
        kept = data if pending.kept else b""
        if pending.known is not None and pending.known.num_bytes == len(data) and digest(data) == pending.known.sha256:
            return Touched(pending, kept)
        return _Decoded(pending, kept, prepare(data, *size))
    except ValueError as error:
        return pending.image_id, " ".join(str(error).removeprefix("image: ").split())
