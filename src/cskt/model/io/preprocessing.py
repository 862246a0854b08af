"""Normalisation and resizing of a backbone's images, as the JSON files beside its weights state them.

open_clip writes `preprocess_cfg` into open_clip_config.json; transformers writes preprocessor_config.json, or since
version 5 the section `image_processor` of processor_config.json. A file that says nothing means CLIP's normalisation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from cskt.config import CLIP_MEAN, CLIP_STD, BackboneConfig
from cskt.errors import CsktError
from cskt.utils.json_files import read_json

logger = logging.getLogger(__name__)

OPEN_CLIP_CONFIG = "open_clip_config.json"
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")
"""Files of transformers, in the order in which it looks into them."""
FOREIGN = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""Configuration for files of other programs: only the fields that are read here are checked."""
REMEDY = "correct the file, or set backbone.image_mean and backbone.image_std"
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's filters, by number."""

Channels = tuple[float, float, float]
Stated = float | list[float] | None
"""One value for all channels, or one for each."""


@dataclass(frozen=True)
class Preprocessing:
    """Statements of the files beside a backbone; None where there are none."""

    image_mean: Channels | None = None
    image_std: Channels | None = None
    interpolation: str | None = None
    """Name of the filter, which may be one that is not supported here."""
    source: Path | None = None
    """The file that states it."""

    def completed(self, config: BackboneConfig) -> dict[str, Channels]:
        """Return mean and standard deviation: a config's own, else the file's, else CLIP's."""
        return {
            "image_mean": config.image_mean or self.image_mean or CLIP_MEAN,
            "image_std": config.image_std or self.image_std or CLIP_STD,
        }

    def log_other_filter(self, config: BackboneConfig) -> None:
        """Log one line where the file states another filter than the config uses."""
        if self.interpolation not in (None, config.interpolation):
            logger.info(
                "%s: states interpolation %s, images are resized %s as in the released codes; to change that, set"
                " backbone.interpolation (--interpolation)",
                self.source, self.interpolation, config.interpolation,
            )  # fmt: skip


def read_preprocessing(weights: Path, *, is_open_clip: bool) -> Preprocessing:
    """Read the preprocessing that is stated beside a weight file.

    Args:
        weights: the file, whose folder is looked into.
        is_open_clip: its tensors have open_clip's names, so that open_clip's file comes first.

    Raises:
        CsktError: a file cannot be read, or states what is not supported; names file and field.
    """
    stated = [_open_clip(weights.with_name(OPEN_CLIP_CONFIG)), _transformers(weights.parent)]
    if not is_open_clip:
        stated.reverse()
    found = [each for each in stated if each.image_mean or each.image_std or each.interpolation]
    unset = BackboneConfig()
    if len(found) > 1 and found[0].completed(unset) != found[1].completed(unset):
        logger.warning(
            "%s: states another normalisation than %s, which is used; to decide, set backbone.image_mean and"
            " backbone.image_std", found[1].source, found[0].source,
        )  # fmt: skip
    return found[0] if found else Preprocessing()


@checked(config=FOREIGN, frozen=True)
class _PreprocessCfg:
    """`preprocess_cfg` of open_clip; size and resize_mode do not apply, the aspect ratio is not kept here."""

    mode: str | None = None
    mean: Stated = None
    std: Stated = None
    interpolation: str | None = None


@checked(config=FOREIGN, frozen=True)
class _OpenClipFile:
    preprocess_cfg: _PreprocessCfg | None = None


def _open_clip(path: Path) -> Preprocessing:
    if not path.is_file():
        return Preprocessing()
    stated = read_json(path, _OpenClipFile, remedy=REMEDY).preprocess_cfg or _PreprocessCfg()
    if stated.mode not in (None, "RGB"):
        raise CsktError(f"{path}: preprocess_cfg.mode must be RGB, got '{stated.mode[:40]}'; {REMEDY}")
    # open_clip takes its default for 0 and for an empty list.
    mean = _channels(stated.mean or None, path, "preprocess_cfg.mean")
    std = _channels(stated.std or None, path, "preprocess_cfg.std")
    interpolation = "bicubic" if stated.interpolation == "random" else stated.interpolation
    return _in_range(Preprocessing(mean, std, interpolation or None, path))


@checked(config=FOREIGN, frozen=True)
class _ImageProcessor:
    """An image processor of transformers; crops and sizes do not apply, the aspect ratio is not kept here."""

    image_mean: Stated = None
    image_std: Stated = None
    do_normalize: bool | None = None
    do_rescale: bool | None = None
    rescale_factor: float | None = None
    resample: int | str | None = None
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None


@checked(config=FOREIGN, frozen=True)
class _ProcessorFile:
    image_processor: _ImageProcessor | None = None


def _transformers(folder: Path) -> Preprocessing:
    nested, plain = (folder / name for name in PROCESSOR_CONFIGS)
    path, stated = nested, None
    if nested.is_file():
        stated = read_json(nested, _ProcessorFile, remedy=REMEDY).image_processor
    if stated is None and plain.is_file():
        path, stated = plain, read_json(plain, _ImageProcessor, remedy=REMEDY)
    if stated is None:
        return Preprocessing()
    mean = _channels(stated.image_mean, path, "image_mean")
    std = _channels(stated.image_std, path, "image_std")
    if stated.do_normalize is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif mean is None or std is None:
        kind = stated.image_processor_type or stated.feature_extractor_type or "CLIPImageProcessor"
        if not kind.startswith("CLIP"):
            missing = "image_mean" if mean is None else "image_std"
            raise CsktError(f"{path}: the field '{missing}' is missing, and {kind[:40]} has other defaults; {REMEDY}")
    factor = 255.0 * (1 / 255 if stated.rescale_factor is None else stated.rescale_factor)
    if stated.do_rescale is False:
        factor = 255.0
    if not 1e-6 < factor < 1e6:
        raise CsktError(f"{path}: 'rescale_factor' must be a small positive number; {REMEDY}")
    if abs(factor - 1) > 1e-6:  # (factor * x - mean) / std = (x - mean / factor) / (std / factor)
        mean = _scaled(mean or CLIP_MEAN, factor)
        std = _scaled(std or CLIP_STD, factor)
    return _in_range(Preprocessing(mean, std, _filter_name(stated.resample), path))


def _channels(value: Stated, path: Path, field: str) -> Channels | None:
    if value is None:
        return None
    values = [value] * 3 if isinstance(value, float | int) else value
    if len(values) != 3:
        raise CsktError(f"{path}: '{field}' must hold 3 numbers, one for each channel, got {len(values)}; {REMEDY}")
    return values[0], values[1], values[2]


def _in_range(stated: Preprocessing) -> Preprocessing:
    """Check that means and standard deviations are usable numbers, in the limits of `ClipArchitecture`."""
    if any(abs(value) > 1e6 for value in stated.image_mean or ()):
        raise CsktError(f"{stated.source}: the image mean must be at most 1e6, got {stated.image_mean}; {REMEDY}")
    if any(not 1e-6 <= value <= 1e6 for value in stated.image_std or ()):
        raise CsktError(
            f"{stated.source}: the image standard deviation must be from 1e-6 to 1e6, got {stated.image_std}; {REMEDY}"
        )
    return stated


def _scaled(values: Channels, factor: float) -> Channels:
    return values[0] / factor, values[1] / factor, values[2] / factor


def _filter_name(resample: int | str | None) -> str | None:
    if isinstance(resample, str):
        return resample.rpartition(".")[2].lower() or None  # "PIL.Image.BICUBIC"
    if resample is None or not 0 <= resample < len(RESAMPLING):
        return None
    return RESAMPLING[resample]


def stated_by(facts: dict[str, Any], path: Path) -> Preprocessing:
    """Return the filter that a backbone file of our own notes among its facts; its normalisation is in its sizes."""
    return Preprocessing(interpolation=facts.get("interpolation"), source=path)
