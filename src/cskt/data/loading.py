"""Records -> batches: the pairs that meet in a batch, and images decoded ahead of the step that needs them.

The unit of training is an (image, caption) pair, as in the released code: an image with two captions is two pairs.
With `captions_per_image` k a unit is an image with k of its captions: k pairs that share one decoded, encoded image.
The order of an epoch is a function of the seed and the epoch alone, so a resumed run continues with the batches that
the interrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cskt.config import DataConfig
from cskt.data.images import ImageReader
from cskt.data.mixing import MixPart
from cskt.data.pixel_cache import ImageArray, PixelStore
from cskt.data.records import Split
from cskt.data.samplers import check_batch_size, draw_batches, draw_mixed_batches, draw_units
from cskt.data.tokenizer import Tokenizer, log_caption_warnings
from cskt.errors import out_of_memory_errors
from cskt.image_files.decode import Source, read_bytes
from cskt.types import Batch

logger = logging.getLogger(__name__)

NUM_GROUPS_AHEAD = 2
"""Groups worked on while the current one is in use."""
ITEMS_PER_TASK = 8
"""Items that a thread takes at a time; with one by one, the queue costs as much as decoding an image."""
IMAGES_PER_APPEND = 256
"""Images that are added to a cache folder together."""
IMAGES_AT_ONCE = 64
"""Images that are copied into memory together."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Share = Callable[[int], range]
"""Number of rows -> the consecutive rows that a process takes."""


class TrainingLoader:
    """Training batches of one split; pixels are uint8 and not augmented, see `cskt.data.images.augment`.

    Identities are renumbered from 0, in ascending order of the file's numbers. Every caption is encoded once, here.

    Args:
        seed: decides the order together with the epoch.
        mix_parts: the data sets that the split consists of, one after the other; none if it is one data set.

    Raises:
        CsktError: the sampler cannot draw batches of the configured size from this split.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        data: DataConfig,
        reader: ImageReader,
        *,
        seed: int,
        mix_parts: Sequence[MixPart] = (),
    ) -> None:
        self._paths = split.image_paths
        self._data = data
        self._reader = reader
        self._seed = seed
        log_caption_warnings(f"{split.dataset} {split.name}", tokenizer.warnings(split.captions))
        self._caption_ids = tokenizer(split.captions)
        self._lengths = self._caption_ids.argmax(dim=1) + 1  # the end token has the highest id and comes once
        self._image_ids = torch.tensor(split.caption_image_ids)
        pids, renumbered = np.unique(np.array(split.caption_pids, dtype=np.int64), return_inverse=True)
        self._pids = torch.from_numpy(renumbered.astype(np.int64))
        self.num_identities = len(pids)
        self.num_pairs = len(self._pids)
        per_image = data.captions_per_image
        num_units = int((-(-torch.bincount(self._image_ids) // per_image)).sum())
        check_batch_size(data, num_units * per_image, self.num_identities)
        num_whole, num_left = divmod(num_units * per_image, data.batch_size)
        drops = data.drop_last and data.sampler == "random"
        self._num_even_steps = num_whole + (num_left > 0 and not drops)
        self._drawn: tuple[int, list[Tensor]] = -1, []
        """The epoch that was drawn last, and its batches: counting them should not draw them twice."""
        self._part_of_image = np.repeat(np.arange(len(mix_parts)), [part.num_images for part in mix_parts])
        self._weights = [part.weight for part in mix_parts]
        if mix_parts:
            self._batches(0)  # checks the size of the batches of each data set

    def epoch(self, epoch: int, start_step: int = 0, share: Share = range) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from `start_step` on; those before it are not decoded.

        Args:
            share: the number of images in a batch -> those that are decoded, at least one; by default all.
        """
        return self._load(self._batches(epoch)[start_step:], share)

    def every_pair(self, *position: int) -> Generator[Batch, None, None]:
        """Yield batches that hold every pair once, whatever the sampler and the weights of a mix.

        Args:
            position: numbers that decide the order, together with the seed.
        """
        order = torch.from_numpy(np.random.default_rng([self._seed, *position]).permutation(self.num_pairs))
        return self._load(torch.split(order[:, None], self._data.batch_size), range)

    def _load(self, batches: Sequence[Tensor], share: Share) -> Generator[Batch, None, None]:
        """Yield the batches of units, [B / k, k] positions of pairs each, with their images."""
        image_ids = [self._image_ids[units[:, 0]] for units in batches]
        shares = [share(len(ids)) for ids in image_ids]
        wanted = [ids[own.start : own.stop] for ids, own in zip(image_ids, shares, strict=True)]
        decoded = _read_ahead(self._paths, wanted, self._reader, self._data.num_workers, self._array)
        for units, ids, own, images in zip(batches, image_ids, shares, decoded, strict=True):
            pairs = units.flatten()
            yield Batch(
                images=images,
                caption_ids=self._caption_ids[pairs, : int(self._lengths[pairs].max())],
                pids=self._pids[pairs],
                image_ids=ids,
                first_image=own.start,
                pair_ids=pairs,
            )

    def num_steps(self, epoch: int) -> int:
        """Return the number of batches of an epoch; it differs between epochs with `identity-released` only."""
        if self._data.sampler == "identity-released" or self._weights:
            return len(self._batches(epoch))
        return self._num_even_steps

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches of the first epoch; see `num_steps`."""
        return self.num_steps(0)

    def _batches(self, epoch: int) -> list[Tensor]:
        """Return the batches of an epoch, each [B / k, k]: one unit per row, with the positions of its pairs."""
        if self._drawn[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            units = draw_units(self._image_ids.numpy(), self._data.captions_per_image, random)
            pids = self._pids.numpy()[units[:, 0]]
            if self._weights:
                parts = self._part_of_image[self._image_ids.numpy()[units[:, 0]]]
                batches = draw_mixed_batches(pids, parts, self._weights, self._data, random)
            else:
                batches = draw_batches(pids, self._data, self._num_even_steps, random)
            self._drawn = epoch, [torch.from_numpy(units[batch]) for batch in batches]
        return self._drawn[1]

    @cached_property
    def _array(self) -> ImageArray | None:
        """All images of the split if they are cached, read at the first use; later changes on disk are not seen."""
        paths, reader, num_workers = self._paths, self._reader, self._data.num_workers
        if self._data.cache_dir is not None:
            return cached_images(Path(self._data.cache_dir), paths, reader, num_workers)
        if not self._data.cache_images:
            return None
        with out_of_memory_errors("use data.cache_dir instead of data.cache_images"):
            pixels = np.empty((len(paths), 3, reader.height, reader.width), np.uint8)
        logger.info("reading %d images into memory (%.1f GB)", len(paths), pixels.nbytes / 1e9)
        for index, images in enumerate(iter_images(paths, reader, IMAGES_AT_ONCE, num_workers)):
            pixels[index * IMAGES_AT_ONCE :][: len(images)] = images.numpy()
        return ImageArray(pixels, np.arange(len(paths)))


def iter_images(
    sources: Sequence[Source],
    reader: ImageReader,
    batch_size: int,
    num_workers: int,
    cache_dir: Path | None = None,
) -> Iterator[Tensor]:
    """Yield all images in order, [b, 3, H, W] uint8 with b = `batch_size` but for the last; threads read ahead.

    Args:
        sources: files, PIL images or the bytes of files.
        num_workers: threads; 0 reads in the calling thread.
        cache_dir: folder of a cache, see `cached_images`; used only if all sources are files.
    """
    paths = [source for source in sources if isinstance(source, Path)]
    array = None
    if cache_dir is not None and len(paths) == len(sources):
        array = cached_images(cache_dir, paths, reader, num_workers)
    image_ids = torch.split(torch.arange(len(sources)), batch_size) if sources else ()
    return _read_ahead(sources, image_ids, reader, num_workers, array)


def _read_ahead(
    sources: Sequence[Source],
    image_ids: Sequence[Tensor],
    reader: ImageReader,
    num_workers: int,
    array: ImageArray | None,
) -> Iterator[Tensor]:
    """Yield the images of each batch of positions in `sources`, from the array or decoded."""
    if array is not None:
        for (images,) in work_ahead(array.__getitem__, ([ids] for ids in image_ids), num_workers):
            yield images
        return
    # An image that occurs several times in a batch, once per caption, is decoded once.
    distinct = [torch.unique(ids, return_inverse=True) for ids in image_ids]
    wanted = ([sources[image_id] for image_id in ids.tolist()] for ids, _ in distinct)
    for decoded, (_, positions) in zip(work_ahead(reader.read, wanted, num_workers), distinct, strict=True):
        yield torch.stack([decoded[position] for position in positions.tolist()])


def cached_images(folder: Path, paths: Sequence[Path], reader: ImageReader, num_workers: int) -> ImageArray:
    """Read image files through the cache in `folder`; those that it lacks are decoded and added.

    Every file is read and its SHA-256 computed each time: that costs a thirtieth of decoding it, and a file's size and
    time do not show for certain that it is unchanged. Every reader has a folder of its own in the cache.
    """
    store = PixelStore(folder, reader)
    num_known = len(store.rows)

    def read(path: Path) -> tuple[bytes, Tensor | None]:
        data = read_bytes(path)
        digest = hashlib.sha256(data).digest()
        return digest, None if digest in store.rows else reader.read(data, name=str(path))

    digests: list[bytes] = []
    starts = range(0, len(paths), IMAGES_PER_APPEND)
    for images in work_ahead(read, (paths[start : start + IMAGES_PER_APPEND] for start in starts), num_workers):
        digests += [digest for digest, _ in images]
        new = {digest: pixels for digest, pixels in images if pixels is not None}
        if new and len(store.rows) == num_known:
            logger.info("adding images to %s, which has %d", store.folder, num_known)
        store.append(new)
    if len(store.rows) > num_known:
        logger.info("%s now has %d images", store.folder, len(store.rows))
    return store.images(digests)


def work_ahead(
    work: Callable[[Item], Result], groups: Iterable[Sequence[Item]], num_workers: int
) -> Iterator[list[Result]]:
    """Yield the results of every group in order, while threads work on the groups after it.

    Reading, hashing, decoding and resizing release Python's lock, so threads are as fast as processes here, start
    at once on every system, and pass errors on unchanged. No thread outlives the iterator. Without threads
    (`num_workers` 0) a group is worked on when it is requested.
    """

    def task(items: Sequence[Item]) -> list[Result]:
        return [work(item) for item in items]

    if num_workers == 0:
        yield from map(task, groups)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="ahead")
    pending: deque[list[Future[list[Result]]]] = deque()

    def finish_oldest() -> list[Result]:
        return [result for task in pending.popleft() for result in task.result()]

    try:
        for group in groups:
            starts = range(0, len(group), ITEMS_PER_TASK)
            pending.append([pool.submit(task, group[start : start + ITEMS_PER_TASK]) for start in starts])
            if len(pending) > NUM_GROUPS_AHEAD:
                yield finish_oldest()
        while pending:
            yield finish_oldest()
    finally:  # also when the caller stops early or an item fails
        pool.shutdown(cancel_futures=True)
