"""JSON files beside the weights of open_clip and Hugging Face: head counts, activation, normalisation of images.

Sizes are in the tensors. A setting that would change the function, and that this architecture does not have, is
refused; a setting without effect at inference is ignored.

open_clip writes everything into open_clip_config.json. transformers writes config.json, and the normalisation into
preprocessor_config.json or, since version 5, into the section `image_processor` of processor_config.json. Without any
statement the normalisation is CLIP's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from cskt.config import CLIP_MEAN, CLIP_STD, BackboneConfig
from cskt.errors import CsktError
from cskt.utils.json_files import FOREIGN, read_json

logger = logging.getLogger(__name__)

OPEN_CLIP_CONFIG = "open_clip_config.json"
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")
"""Files of transformers, in the order in which it looks for them."""
MODEL_REMEDY = (
    "correct the file, or delete it and set backbone.activation, backbone.vision_heads and backbone.text_heads"
)
IMAGE_REMEDY = "correct the file, or set backbone.image_mean and backbone.image_std"

OPEN_CLIP_KNOWN = {
    "vision_cfg": {
        "image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio",
        "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained",
        "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
    },
    "text_cfg": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio",
        "output_tokens", "pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
    },
}  # fmt: skip
"""Settings of open_clip that may have any value. First those that the tensors or `open_clip_facts` cover, then those
that act in training only or that modify others which are refused when they are on."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax", "eos"), "pos_embed_type": ("learnable",), "proj_type": ("linear",),
    "norm_kwargs": ({}, {"eps": 1e-5}), "eos_id": (2, 49407),
}  # fmt: skip
"""Values of open_clip's settings that do not change the function, as empty, zero and false ones do not."""

BOTH_TOWERS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TOWER_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": BOTH_TOWERS | {"hidden_size": 512, "num_attention_heads": 8, "eos_token_id": 49407},
    "vision": BOTH_TOWERS | {"hidden_size": 768, "num_attention_heads": 12},
}
"""Defaults of transformers' CLIPTextConfig and CLIPVisionConfig; files omit settings that are equal to them."""
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu"}
"""Names of transformers for the activations that are supported."""
END_TOKENS = (2, 49407)
"""Values of `eos_token_id` that mean CLIP's end token; 2 is in files older than the field."""
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's filters, by number."""

Channels = tuple[float, float, float]
Stated = float | list[float] | None
"""One value for all channels, or one for each."""


def open_clip_facts(path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return activation and head counts from open_clip_config.json; `sizes` are those of `layouts.read_sizes`."""
    model = _section(read_json(path, dict[str, Any], remedy=MODEL_REMEDY), "model_cfg", path, needed=True)
    if model.get("multimodal_cfg"):
        raise CsktError(f"{path}: 'model_cfg.multimodal_cfg' is not supported: the model has a text decoder")
    for name, known in OPEN_CLIP_KNOWN.items():
        for key, value in _section(model, name, path, prefix="model_cfg.", needed=True).items():
            if key not in known and value and value not in NEUTRAL.get(key, ()):
                raise CsktError(f"{path}: model_cfg.{name}.{key} = {_shown(value)} is not supported")
    quick = model.get("quick_gelu")
    if not isinstance(quick, bool | None):
        raise CsktError(f"{path}: 'model_cfg.quick_gelu' must be true or false, got {_shown(quick)}; {MODEL_REMEDY}")
    head_width = _whole(model["vision_cfg"].get("head_width", 64), "model_cfg.vision_cfg.head_width", path)
    return {
        "activation": "quick_gelu" if quick else "gelu",
        "vision_heads": sizes["vision_width"] // head_width,
        "text_heads": _whole(model["text_cfg"].get("heads", 8), "model_cfg.text_cfg.heads", path),
    }


def hugging_face_facts(path: Path, sizes: Mapping[str, int], *, weights_name: str) -> dict[str, Any]:
    """Return activation and head counts from the config.json of a `CLIPModel`, resolved as transformers does."""
    content = read_json(path, dict[str, Any], remedy=MODEL_REMEDY)
    if content.get("model_type", "clip") != "clip":
        raise CsktError(f"{path}: model_type {_shown(content['model_type'])} is not supported; expected clip")
    facts: dict[str, Any] = {}
    for side in ("text", "vision"):
        section = resolved_section(content, side, path)
        if section["layer_norm_eps"] != 1e-5:
            raise _unsupported(path, f"{side} layer_norm_eps", section["layer_norm_eps"], "1e-5")
        for key, size in (("hidden_size", f"{side}_width"), ("num_hidden_layers", f"{side}_layers")):
            if section[key] != sizes[size]:
                found = _shown(section[key])
                raise CsktError(f"{path}: {side} {key} {found} does not fit {weights_name} ({sizes[size]})")
        if side == "text" and sizes["vocab_size"] >= max(END_TOKENS) and section["eos_token_id"] not in END_TOKENS:
            supported = f"CLIP's end token {max(END_TOKENS)}"
            raise _unsupported(path, "text eos_token_id", section["eos_token_id"], supported)
        heads = section["num_attention_heads"]
        facts[f"{side}_heads"] = _whole(heads, f"{side}_config.num_attention_heads", path)
        activation = section["hidden_act"]
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise _unsupported(path, f"activation '{side}_config.hidden_act'", activation, ", ".join(ACTIVATIONS))
        if facts.setdefault("activation", ACTIVATIONS[activation]) != ACTIVATIONS[activation]:
            raise CsktError(f"{path}: the towers have different activations, which is not supported")
    return facts


def resolved_section(content: Mapping[str, Any], side: str, path: Path) -> dict[str, Any]:
    """Return the settings of the `text` or `vision` tower as transformers resolves them.

    `text_config_dict`, even empty, replaces `text_config`: what it omits has the default of CLIPTextConfig, whatever
    `text_config` says. Likewise for vision.
    """
    legacy = content.get(f"{side}_config_dict")
    name = f"{side}_config" if legacy is None else f"{side}_config_dict"
    return TOWER_DEFAULTS[side] | _section(content, name, path)


def _section(
    content: Mapping[str, Any], name: str, path: Path, *, prefix: str = "", needed: bool = False
) -> dict[str, Any]:
    found = content.get(name)
    if found is None and not needed:
        return {}
    if not isinstance(found, dict):
        instead = "no" if found is None else f"{_shown(found)} for"
        raise CsktError(f"{path}: {instead} {prefix}{name}, which must be an object; {MODEL_REMEDY}")
    return found


def _whole(value: object, field: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
        raise CsktError(f"{path}: '{field}' must be a whole number from 1, got {_shown(value)}; {MODEL_REMEDY}")
    return value


def _unsupported(path: Path, name: str, value: object, supported: str) -> CsktError:
    return CsktError(f"{path}: {name} {_shown(value)} is not supported, only {supported}")


def _shown(value: object) -> str:
    return repr(value)[:80]


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation and resizing of images as a file states them; None where it states nothing."""

    image_mean: Channels | None = None
    image_std: Channels | None = None
    interpolation: str | None = None
    """Name of the filter, which may be one that is not supported here."""
    source: Path | None = None
    """The file."""

    def completed(self, config: BackboneConfig) -> dict[str, Channels]:
        """Return mean and standard deviation: those of a config, else of the file, else CLIP's."""
        return {
            "image_mean": config.image_mean or self.image_mean or CLIP_MEAN,
            "image_std": config.image_std or self.image_std or CLIP_STD,
        }

    def log_other_filter(self, config: BackboneConfig) -> None:
        """Log one line if the file states another filter than the config uses."""
        if self.interpolation not in (None, config.interpolation):
            logger.info(
                "%s: states interpolation %s, images are resized %s as in the released codes; to change that, set"
                " backbone.interpolation (--interpolation)",
                self.source, self.interpolation, config.interpolation,
            )  # fmt: skip


def read_preprocessing(weights: Path, *, is_open_clip: bool) -> Preprocessing:
    """Read the preprocessing that the files beside a weight file state; that of open_clip first for its own weights."""
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
    stated = read_json(path, _OpenClipFile, remedy=IMAGE_REMEDY).preprocess_cfg or _PreprocessCfg()
    if stated.mode not in (None, "RGB"):
        raise CsktError(f"{path}: preprocess_cfg.mode must be RGB, got '{stated.mode[:40]}'; {IMAGE_REMEDY}")
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
        stated = read_json(nested, _ProcessorFile, remedy=IMAGE_REMEDY).image_processor
    if stated is None and plain.is_file():
        path, stated = plain, read_json(plain, _ImageProcessor, remedy=IMAGE_REMEDY)
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
            raise CsktError(
                f"{path}: the field '{missing}' is missing, and {kind[:40]} has other defaults; {IMAGE_REMEDY}"
            )
    factor = 255.0 * (1 / 255 if stated.rescale_factor is None else stated.rescale_factor)
    if stated.do_rescale is False:
        factor = 255.0
    if not 1e-6 < factor < 1e6:
        raise CsktError(f"{path}: 'rescale_factor' must be a small positive number; {IMAGE_REMEDY}")
    if abs(factor - 1) > 1e-6:  # (factor * x - mean) / std = (x - mean / factor) / (std / factor)
        mean = _scaled(mean or CLIP_MEAN, factor)
        std = _scaled(std or CLIP_STD, factor)
    return _in_range(Preprocessing(mean, std, _filter_name(stated.resample), path))


def _channels(value: Stated, path: Path, field: str) -> Channels | None:
    if value is None:
        return None
    values = [value] * 3 if isinstance(value, float | int) else value
    if len(values) != 3:
        problem = f"must hold 3 numbers, one for each channel, got {len(values)}"
        raise CsktError(f"{path}: '{field}' {problem}; {IMAGE_REMEDY}")
    return values[0], values[1], values[2]


def _in_range(stated: Preprocessing) -> Preprocessing:
    """Return the argument if means and standard deviations are in the limits of `ClipArchitecture`."""
    mean, std = stated.image_mean, stated.image_std
    if any(abs(value) > 1e6 for value in mean or ()):
        raise CsktError(f"{stated.source}: the image mean must be at most 1e6, got {mean}; {IMAGE_REMEDY}")
    if any(not 1e-6 <= value <= 1e6 for value in std or ()):
        problem = f"the image standard deviation must be from 1e-6 to 1e6, got {std}"
        raise CsktError(f"{stated.source}: {problem}; {IMAGE_REMEDY}")
    return stated


def _scaled(values: Channels, factor: float) -> Channels:
    return values[0] / factor, values[1] / factor, values[2] / factor


def _filter_name(resample: int | str | None) -> str | None:
    if isinstance(resample, str):
        return resample.rpartition(".")[2].lower() or None  # "PIL.Image.BICUBIC"
    return RESAMPLING[resample] if resample is not None and 0 <= resample < len(RESAMPLING) else None
