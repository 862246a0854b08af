"""Records -> batches: which pairs meet in a batch, and images decoded ahead of the step that needs them.

The unit of training is an (image, caption) pair, as in the released code: an image with two captions is two pairs.
With `captions_per_image` k a unit is an image with k of its captions: k pairs that share one decoded, encoded image.
The order of an epoch is a function of the seed and the epoch alone, so a resumed run continues with the batches that
the interrupted one would have seen. Images are decoded in threads ahead of their step, or come from where they are
kept, in memory or in a folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.config import DataConfig
from cskt.data.ahead import work_ahead
from cskt.data.images import Source, read_image
from cskt.data.pixel_cache import KeptImages, cached_images
from cskt.data.records import Split
from cskt.data.tokenizer import Tokenizer
from cskt.types import Batch

logger = logging.getLogger(__name__)

Share = Callable[[int], range]
"""A number of rows -> the rows next to one another that a process takes."""
IMAGES_AT_ONCE = 64
"""Images that go into memory together."""


class TrainingLoader:
    """Training batches of one split; pixels stay uint8 and unaugmented, see `cskt.data.images.augment`.

    Args:
        split: the training split; its identities are renumbered from 0, in ascending order of the file's numbers.
        tokenizer: encodes every caption once, here.
        data: batch size, captions per image, sampler, decoding threads, cache.
        image_height, image_width: size of the images in pixels.
        seed: decides the order together with the epoch.

    Raises:
        ValueError: the batch is larger than the split or does not divide into `instances`, these do not divide into
            `captions_per_image`, or the split has too few identities for the identity sampler.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        data: DataConfig,
        *,
        image_height: int,
        image_width: int,
        seed: int,
    ) -> None:
        self._paths = split.image_paths
        self._data = data
        self._size = (image_height, image_width)
        self._seed = seed
        self._caption_ids = tokenizer(split.captions)
        self._lengths = self._caption_ids.argmax(dim=1) + 1  # the end token has the highest id and comes once
        self._image_ids = torch.tensor(split.caption_image_ids)
        pids, renumbered = np.unique(np.array(split.caption_pids, dtype=np.int64), return_inverse=True)
        self._pids = torch.from_numpy(renumbered.astype(np.int64))
        self._kept: KeptImages | None = None
        self.num_identities = len(pids)
        self.num_pairs = len(self._pids)
        per_image = data.captions_per_image
        num_units = int((-(-torch.bincount(self._image_ids) // per_image)).sum())
        self.steps_per_epoch = -(-num_units * per_image // data.batch_size)
        _check_batch_size(data, num_units * per_image, self.num_identities)

    def epoch(self, epoch: int, start_step: int = 0, share: Share = range) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on; what lies before is not decoded.

        Args:
            share: the number of images in a batch -> those that are decoded, never none; by default all.

        Raises:
            ValueError: an image is missing or damaged; names the file.
        """
        batches = self._draw_batches(epoch)[start_step:]
        image_ids = [self._image_ids[units[:, 0]] for units in batches]
        shares = [share(len(ids)) for ids in image_ids]
        wanted = [ids[mine.start : mine.stop] for ids, mine in zip(image_ids, shares, strict=True)]
        for units, ids, mine, images in zip(batches, image_ids, shares, self._read(wanted), strict=True):
            pairs = units.flatten()
            yield Batch(
                images=images,
                caption_ids=self._caption_ids[pairs, : int(self._lengths[pairs].max())],
                pids=self._pids[pairs],
                image_ids=ids,
                first_image=mine.start,
            )

    def _draw_batches(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, each [B / k, k]: one unit per row, and in it the positions of its pairs."""
        data, per_image = self._data, self._data.captions_per_image
        random = np.random.default_rng([self._seed, epoch])
        units = draw_units(self._image_ids.numpy(), per_image, random)
        batch_size = data.batch_size // per_image
        if data.sampler == "identity":
            pids, instances = self._pids.numpy()[units[:, 0]], data.instances // per_image
            batches = identity_batches(pids, batch_size, instances, self.steps_per_epoch, random)
        else:
            batches = random_batches(len(units), batch_size, random)
        return [torch.from_numpy(units[batch]) for batch in batches]

    def _read(self, image_ids: Sequence[Tensor]) -> Iterator[Tensor]:
        if self._data.cache_images or self._data.cache_dir is not None:
            yield from _gather_ahead(self._kept_images(), image_ids, self._data.num_workers)
            return
        # An image that occurs several times in a batch, once per caption, is decoded once.
        distinct = [torch.unique(ids, return_inverse=True) for ids in image_ids]
        wanted = [[self._paths[image_id] for image_id in ids.tolist()] for ids, _ in distinct]
        for images, (_, positions) in zip(
            _decode_ahead(wanted, *self._size, self._data.num_workers), distinct, strict=True
        ):
            yield images[positions]

    def _kept_images(self) -> KeptImages:
        """All images of the split, read when they are first asked for; what changes on disk later is not seen."""
        if self._kept is None:
            data = self._data
            if data.cache_dir is not None:
                self._kept = cached_images(Path(data.cache_dir), self._paths, *self._size, data.num_workers)
            else:
                self._kept = _in_memory(self._paths, *self._size, data.num_workers)
        return self._kept


def iter_images(
    sources: Sequence[Source],
    height: int,
    width: int,
    batch_size: int,
    num_workers: int,
    *,
    cache_dir: Path | None = None,
) -> Iterator[Tensor]:
    """All images in order, [b, 3, H, W] uint8 with b = `batch_size` but for the last; read ahead in threads.

    Args:
        cache_dir: a folder as `cached_images` keeps it, for files; pictures and bytes are decoded all the same.

    Raises:
        ValueError: an image is missing or damaged; names the file.
    """
    paths = [source for source in sources if isinstance(source, Path)]
    starts = range(0, len(sources), batch_size)
    if cache_dir is None or len(paths) < len(sources):
        return _decode_ahead([sources[start : start + batch_size] for start in starts], height, width, num_workers)
    kept = cached_images(cache_dir, paths, height, width, num_workers)
    return _gather_ahead(kept, [torch.arange(len(kept))[start : start + batch_size] for start in starts], num_workers)


def _decode_ahead(batches: Sequence[Sequence[Source]], height: int, width: int, num_workers: int) -> Iterator[Tensor]:
    def decode(source: Source) -> Tensor:
        return read_image(source, height, width)

    for images in work_ahead(decode, batches, num_workers):
        yield torch.stack(images)


def _gather_ahead(kept: KeptImages, batches: Sequence[Tensor], num_workers: int) -> Iterator[Tensor]:
    for (images,) in work_ahead(kept.__getitem__, ([positions] for positions in batches), num_workers):
        yield images


def _in_memory(paths: Sequence[Path], height: int, width: int, num_workers: int) -> KeptImages:
    pixels = np.empty((len(paths), 3, height, width), np.uint8)
    logger.info("reading %d images into memory (%.1f GB)", len(paths), pixels.nbytes / 1e9)
    starts = range(0, len(paths), IMAGES_AT_ONCE)
    for start, images in zip(starts, iter_images(paths, height, width, IMAGES_AT_ONCE, num_workers), strict=True):
        pixels[start : start + IMAGES_AT_ONCE] = images.numpy()
    return KeptImages(pixels, np.arange(len(paths)))


def draw_units(image_ids: NDArray[np.int64], per_image: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Pairs gathered into units of one image with `per_image` of its captions, image by image.

    Every caption is in a unit: an image with c captions has ceil(c / per_image), which deal its captions in random
    order and begin again where they run out. So the last unit is filled up with captions of the others; it repeats a
    caption only if c is below `per_image`. Units of one caption are the pairs in their order, and draw nothing.

    Args:
        image_ids: [N] image of each pair, numbered from 0 without gaps.

    Returns:
        [U, per_image] positions of pairs.
    """
    if per_image == 1:
        return np.arange(len(image_ids))[:, None]
    return np.concatenate(
        [
            np.resize(random.permutation(pairs), (-(-len(pairs) // per_image), per_image))  # repeats to fill
            for pairs in _positions_by_id(image_ids)
        ]
    )


def random_batches(num_units: int, batch_size: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Every unit once, in random order; the last batch may be smaller."""
    order = random.permutation(num_units)
    return [order[start : start + batch_size] for start in range(0, num_units, batch_size)]


def identity_batches(
    pids: NDArray[np.int64], batch_size: int, instances: int, num_batches: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Batches of batch_size / instances distinct identities with `instances` units each (Hermans et al. 2017).

    Identities come in rounds, each once per round, so all are drawn about equally often however many units they
    have. An identity deals its units like a deck, shuffled anew when too few are left; one with fewer units than
    `instances` is drawn with replacement.

    Args:
        pids: [U] identity of each unit, numbered from 0 without gaps.
        batch_size, instances: counted in units.
    """
    by_identity = _positions_by_id(pids)
    decks: list[NDArray[np.int64]] = [units[:0] for units in by_identity]
    per_batch = batch_size // instances
    batches: list[NDArray[np.int64]] = []
    while len(batches) < num_batches:
        round_of_identities = random.permutation(len(by_identity))
        for start in range(0, len(round_of_identities) - per_batch + 1, per_batch):
            drawn = []
            for identity in round_of_identities[start : start + per_batch]:
                units, deck = by_identity[identity], decks[identity]
                if len(units) < instances:
                    drawn.append(random.choice(units, instances))
                    continue
                if len(deck) < instances:
                    deck = random.permutation(units)
                drawn.append(deck[:instances])
                decks[identity] = deck[instances:]
            batches.append(np.concatenate(drawn))
    return batches[:num_batches]


def _positions_by_id(ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Where each of the ids 0, 1, ... stands, in order."""
    return np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])


def _check_batch_size(data: DataConfig, num_pairs: int, num_identities: int) -> None:
    if data.batch_size > num_pairs:
        raise ValueError(
            f"data.batch_size {data.batch_size} is more than the {num_pairs} training pairs; lower data.batch_size"
        )
    if data.sampler != "identity":
        return
    if data.batch_size % data.instances:
        raise ValueError(
            f"data.batch_size {data.batch_size} is not divisible by data.instances {data.instances}; "
            "the identity sampler needs whole groups"
        )
    if data.instances % data.captions_per_image:
        raise ValueError(
            f"data.instances {data.instances} is not divisible by data.captions_per_image {data.captions_per_image}; "
            "the identity sampler counts pairs and draws whole images"
        )
    if data.batch_size // data.instances > num_identities:
        raise ValueError(
            f"data.batch_size {data.batch_size} with data.instances {data.instances} needs "
            f"{data.batch_size // data.instances} identities, the training split has {num_identities}; "
            "lower data.batch_size or raise data.instances"
        )
