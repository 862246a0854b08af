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
from torch import Tensor

from cskt.config import DataConfig
from cskt.config.types import Interpolation
from cskt.data.ahead import work_ahead
from cskt.data.images import Source, read_image
from cskt.data.pixel_cache import KeptImages, cached_images
from cskt.data.records import Split
from cskt.data.samplers import check_batch_size, draw_batches, draw_units
from cskt.data.tokenizer import Tokenizer, log_caption_warnings
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
        interpolation: filter that resizes them, see `cskt.data.images.resize`.
        seed: decides the order together with the epoch.

    Raises:
        CsktError: the sampler cannot draw batches of the configured size from this split.
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
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self._paths = split.image_paths
        self._data = data
        self._size = (image_height, image_width)
        self._interpolation = interpolation
        self._seed = seed
        log_caption_warnings(f"{split.dataset} {split.name}", tokenizer.warnings(split.captions))
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
        check_batch_size(data, num_units * per_image, self.num_identities)
        self._num_even_steps = -(-num_units * per_image // data.batch_size)
        self._drawn: tuple[int, list[Tensor]] | None = None
        """The last epoch asked for, and its batches: counting them should not draw them twice."""

    def epoch(self, epoch: int, start_step: int = 0, share: Share = range) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on; what lies before is not decoded.

        Args:
            share: the number of images in a batch -> those that are decoded, never none; by default all.

        Raises:
            CsktError: an image is missing or damaged; names the file.
        """
        batches = self._batches(epoch)[start_step:]
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

    def num_steps(self, epoch: int) -> int:
        """Batches of an epoch; only those of the sampler `identity-released` differ from epoch to epoch."""
        if self._data.sampler == "identity-released":
            return len(self._batches(epoch))
        return self._num_even_steps

    @property
    def steps_per_epoch(self) -> int:
        """Batches of the first epoch; see `num_steps`."""
        return self.num_steps(0)

    def _batches(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, each [B / k, k]: one unit per row, and in it the positions of its pairs."""
        drawn = self._drawn
        if drawn is None or drawn[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            units = draw_units(self._image_ids.numpy(), self._data.captions_per_image, random)
            pids = self._pids.numpy()[units[:, 0]]
            batches = draw_batches(pids, self._data, self._num_even_steps, random)
            drawn = self._drawn = epoch, [torch.from_numpy(units[batch]) for batch in batches]
        return drawn[1]

    def _read(self, image_ids: Sequence[Tensor]) -> Iterator[Tensor]:
        if self._data.cache_images or self._data.cache_dir is not None:
            yield from _gather_ahead(self._kept_images(), image_ids, self._data.num_workers)
            return
        # An image that occurs several times in a batch, once per caption, is decoded once.
        distinct = [torch.unique(ids, return_inverse=True) for ids in image_ids]
        wanted = [[self._paths[image_id] for image_id in ids.tolist()] for ids, _ in distinct]
        decoded = _decode_ahead(
            wanted, *self._size, self._data.num_workers,
            interpolation=self._interpolation, apply_orientation=self._data.apply_orientation,
        )  # fmt: skip
        for images, (_, positions) in zip(decoded, distinct, strict=True):
            yield images[positions]

    def _kept_images(self) -> KeptImages:
        """All images of the split, read when they are first asked for; what changes on disk later is not seen."""
        if self._kept is None:
            data = self._data
            if data.cache_dir is not None:
                self._kept = cached_images(
                    Path(data.cache_dir), self._paths, *self._size, data.num_workers,
                    interpolation=self._interpolation, apply_orientation=data.apply_orientation,
                )  # fmt: skip
            else:
                self._kept = _in_memory(
                    self._paths, *self._size, data.num_workers,
                    interpolation=self._interpolation, apply_orientation=data.apply_orientation,
                )  # fmt: skip
        return self._kept


def iter_images(
    sources: Sequence[Source],
    height: int,
    width: int,
    batch_size: int,
    num_workers: int,
    *,
    interpolation: Interpolation = "bilinear",
    apply_orientation: bool = False,
    cache_dir: Path | None = None,
) -> Iterator[Tensor]:
    """All images in order, [b, 3, H, W] uint8 with b = `batch_size` but for the last; read ahead in threads.

    Args:
        interpolation: filter that resizes them, see `cskt.data.images.resize`.
        apply_orientation: turn them as their EXIF orientation says.
        cache_dir: a folder as `cached_images` keeps it, for files; pictures and bytes are decoded all the same.

    Raises:
        CsktError: an image is missing or damaged; names the file.
    """
    paths = [source for source in sources if isinstance(source, Path)]
    starts = range(0, len(sources), batch_size)
    if cache_dir is None or len(paths) < len(sources):
        batches = [sources[start : start + batch_size] for start in starts]
        return _decode_ahead(
            batches, height, width, num_workers, interpolation=interpolation, apply_orientation=apply_orientation
        )
    kept = cached_images(
        cache_dir, paths, height, width, num_workers, interpolation=interpolation, apply_orientation=apply_orientation
    )
    return _gather_ahead(kept, [torch.arange(len(kept))[start : start + batch_size] for start in starts], num_workers)


def _decode_ahead(
    batches: Sequence[Sequence[Source]],
    height: int,
    width: int,
    num_workers: int,
    *,
    interpolation: Interpolation,
    apply_orientation: bool,
) -> Iterator[Tensor]:
    def decode(source: Source) -> Tensor:
        return read_image(source, height, width, interpolation, apply_orientation=apply_orientation)

    for images in work_ahead(decode, batches, num_workers):
        yield torch.stack(images)


def _gather_ahead(kept: KeptImages, batches: Sequence[Tensor], num_workers: int) -> Iterator[Tensor]:
    for (images,) in work_ahead(kept.__getitem__, ([positions] for positions in batches), num_workers):
        yield images


def _in_memory(
    paths: Sequence[Path],
    height: int,
    width: int,
    num_workers: int,
    *,
    interpolation: Interpolation,
    apply_orientation: bool,
) -> KeptImages:
    pixels = np.empty((len(paths), 3, height, width), np.uint8)
    logger.info("reading %d images into memory (%.1f GB)", len(paths), pixels.nbytes / 1e9)
    starts = range(0, len(paths), IMAGES_AT_ONCE)
    batches = iter_images(
        paths, height, width, IMAGES_AT_ONCE, num_workers,
        interpolation=interpolation, apply_orientation=apply_orientation,
    )  # fmt: skip
    for start, images in zip(starts, batches, strict=True):
        pixels[start : start + IMAGES_AT_ONCE] = images.numpy()
    return KeptImages(pixels, np.arange(len(paths)))
