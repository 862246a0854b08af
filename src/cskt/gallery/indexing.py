"""Images into a store: read ahead in threads, encoded in batches, committed behind while the next batch is encoded.

What is reported as stored has been committed; whatever ends the process, the next run goes on behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

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
class Encoded:
    """An image as the store is to hold it."""

    crop: Crop
    is_known: bool
    """Whether the store has a crop of this name."""
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
            for encoded in batch:
                if keep is not None and encoded.crop.facts.kept:
                    keep(encoded.data, encoded.crop.facts.sha256)
            store.add([encoded.crop for encoded in batch])
        for encoded in batch:
            report.replaced += encoded.is_known
            report.added += not encoded.is_known
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
                updated = _restate_touched(store, batch.touched, writing, keep)
                report.updated += updated
                report.unchanged += len(batch.touched) - updated
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


def _restate_touched(
    store: VectorStore,
    touched: Sequence[Touched],
    writing: Callable[[], AbstractContextManager[None]],
    keep: Callable[[bytes, str], None] | None,
) -> int:
    """Let the store know what is newly stated of unchanged images; how many have other metadata now."""
    with writing():
        for image in touched:
            if keep is not None and image.pending.kept:
                keep(image.data, digest(image.data))
        stated = {image.pending.image_id: image.pending for image in touched}
        return restate(store, {name: (item.metadata, item.modified_ns) for name, item in stated.items()})


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
        metadata=pending.metadata,
    )
    return Encoded(Crop(facts, vector, image.thumbnail), pending.known is not None, item.data)


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
