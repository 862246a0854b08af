"""The pairs of a split as a `torch.utils.data.Dataset`, for training loops of your own.

The package's own trainer uses `cskt.data.loading.TrainingLoader`, which decodes in threads, augments whole batches and
continues an interrupted epoch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cskt.config import AugmentConfig, ClipArchitecture
from cskt.config.types import Interpolation
from cskt.data.images import ImageReader, augment, normalise
from cskt.data.records import Split
from cskt.data.tokenizer import Tokenizer
from cskt.errors import CsktError
from cskt.utils.arguments import expect

IMAGE_SETTINGS = ("flip_probability", "pad_pixels", "erase_probability", "erase_area", "erase_ratio", "ops", "draws")
"""Settings of `AugmentConfig` that `augment` applies to images."""


class PairDataset(Dataset[dict[str, Tensor]]):
    """Pairs of an image and a caption, ready for `DataLoader` and its default collate function.

    An image with two captions is two pairs, as in the released code.

    Args:
        split: of `cskt.read_dataset`.
        tokenizer: of the model, as `cskt.build` returns it.
        architecture: of the model; its image size, mean and standard deviation are used.
        augmentation: of the images; `AugmentConfig()` is that of CSKT's recipe, drawn anew at each access from torch's
            random numbers; None for none.
        interpolation: filter that resizes images.
        apply_orientation: turn images as their EXIF orientation says.

    Attributes:
        num_identities: number of people in the split.

    Raises:
        CsktError: `augmentation` has settings of captions or further views, which the package's trainer alone applies.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> built = cskt.build(cskt.load_config("demo"))
        >>> split = cskt.read_dataset("cuhk-pedes", "data")["train"]
        >>> pairs = cskt.PairDataset(split, built.tokenizer, built.model.architecture)
        >>> batch = next(iter(DataLoader(pairs, batch_size=8, shuffle=True)))
        >>> list(batch), batch["images"].shape
        (['images', 'caption_ids', 'pids', 'image_ids'], torch.Size([8, 3, 128, 64]))
    """

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        architecture: ClipArchitecture,
        augmentation: AugmentConfig | None = None,
        *,
        interpolation: Interpolation = "bilinear",
        apply_orientation: bool = False,
    ) -> None:
        expect(split, Split, "split", "cskt.read_dataset(...)['train'] is one")
        expect(tokenizer, Tokenizer, "tokenizer", "cskt.build(config).tokenizer is one")
        expect(architecture, ClipArchitecture, "architecture", "cskt.build(config).model.architecture is one")
        expect(augmentation, (AugmentConfig, type(None)), "augmentation")
        _check_images_only(augmentation or AugmentConfig())
        self.split, self.architecture, self.augmentation = split, architecture, augmentation
        self._reader = ImageReader(
            architecture.image_height, architecture.image_width, interpolation, apply_orientation
        )
        self._caption_ids = tokenizer(split.captions)
        people, numbers = np.unique(np.array(split.caption_pids, dtype=np.int64), return_inverse=True)
        self._pids = torch.from_numpy(numbers.astype(np.int64))
        self.num_identities = len(people)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._pids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one pair.

        Returns:
            `images` [3, H, W] float32, normalised; `caption_ids` [L] int64 with start and end tokens, zeros after the
            end, L being the longest caption of the split; `pids`, the identity from 0 to `num_identities` - 1;
            `image_ids`, the index of the image in the split.
            The names are those of `cskt.losses.LossInputs`.

        Raises:
            IndexError: there is no such pair.
            CsktError: the image cannot be read; names it.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        image_id = self.split.caption_image_ids[index]
        pixels = self._reader.read(self.split.image_paths[image_id])[None]
        mean, std = self.architecture.image_mean, self.architecture.image_std
        if self.augmentation is None:
            images = normalise(pixels, mean, std)
        else:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            images = augment(pixels, self.augmentation, generator, mean=mean, std=std)
        return {
            "images": images[0],
            "caption_ids": self._caption_ids[index],
            "pids": self._pids[index],
            "image_ids": torch.tensor(image_id),
        }


def _check_images_only(config: AugmentConfig) -> None:
    for field in dataclasses.fields(AugmentConfig):
        if field.name not in IMAGE_SETTINGS and getattr(config, field.name):
            raise CsktError(
                f"augment.{field.name} changes captions or adds views, and PairDataset augments images only; leave it"
                " at its default, or train with cskt.train"
            )
