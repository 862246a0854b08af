"""Pictures whose bytes occur nowhere else."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int) -> Image.Image:
    """Return a crop of 32 x 64 random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 32, 3), np.uint8))
