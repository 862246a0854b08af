"""Statements of open_clip_config.json and Hugging Face's config.json about the model beside them.

Sizes are in the tensors; head counts and the activation are not. Settings that would change the function, and that
this architecture does not have, are refused; settings without effect at inference are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskt.errors import CsktError
from cskt.utils.json_files import read_json

REMEDY = "correct the file, or take it away and set backbone.activation, backbone.vision_heads and backbone.text_heads"

SIZES = {
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
"""Settings of open_clip that the tensors or `open_clip_facts` cover."""
WITHOUT_EFFECT = {
    "vision_cfg": {
        "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained",
        "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
    },
    "text_cfg": {
        "output_tokens", "pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
    },
}  # fmt: skip
"""Settings of open_clip that act in training only, or that belong to others which are refused when they are on."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax", "eos"), "pos_embed_type": ("learnable",), "proj_type": ("linear",),
    "norm_kwargs": ({}, {"eps": 1e-5}), "eos_id": (2, 49407),
}  # fmt: skip
"""Values of open_clip's settings that leave the function as it is; empty, zero and false ones do, too."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "eos_token_id": 49407,
    },
    "vision": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
"""Defaults of transformers' CLIPTextConfig and CLIPVisionConfig; files leave out what equals them."""
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu"}
"""Names of transformers for the activations that are supported."""
END_TOKENS = (2, 49407)
"""Values of `eos_token_id` that mean CLIP's end token; 2 is how transformers marks files older than the field."""


def open_clip_facts(path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return activation and head counts from open_clip_config.json.

    Args:
        path: the file.
        sizes: read from the tensors, see `layouts.read_sizes`.

    Raises:
        CsktError: the file cannot be read, or a setting is on that is not supported; names it.
    """
    model = _section(read_json(path, dict[str, Any], remedy=REMEDY), "model_cfg", path, needed=True)
    if model.get("multimodal_cfg"):
        raise CsktError(f"{path}: 'model_cfg.multimodal_cfg' is not supported: the model has a text decoder")
    for name, known in SIZES.items():
        for key, value in _section(model, name, path, prefix="model_cfg.", needed=True).items():
            is_neutral = not value or value in NEUTRAL.get(key, ())
            if not is_neutral and key not in known | WITHOUT_EFFECT[name]:
                raise CsktError(f"{path}: model_cfg.{name}.{key} = {_shown(value)} is not supported")
    quick = model.get("quick_gelu")
    if not isinstance(quick, bool | None):
        raise CsktError(f"{path}: 'model_cfg.quick_gelu' must be true or false, got {_shown(quick)}; {REMEDY}")
    head_width = _whole(model["vision_cfg"].get("head_width", 64), "model_cfg.vision_cfg.head_width", path)
    return {
        "activation": "quick_gelu" if quick else "gelu",
        "vision_heads": sizes["vision_width"] // head_width,
        "text_heads": _whole(model["text_cfg"].get("heads", 8), "model_cfg.text_cfg.heads", path),
    }


def hugging_face_facts(path: Path, sizes: Mapping[str, int], *, weights_name: str) -> dict[str, Any]:
    """Return activation and head counts from the config.json of a `CLIPModel`, resolved as transformers does.

    Args:
        path: the file.
        sizes: read from the tensors, see `layouts.read_sizes`.
        weights_name: what messages call the weight file.

    Raises:
        CsktError: the file cannot be read, does not fit the tensors, or states what is not supported.
    """
    content = read_json(path, dict[str, Any], remedy=REMEDY)
    if content.get("model_type", "clip") != "clip":
        raise CsktError(f"{path}: model_type {_shown(content['model_type'])} is not supported; expected clip")
    facts: dict[str, Any] = {}
    for side in ("text", "vision"):
        section = resolved_section(content, side, path)
        where = f"{side}_config"
        if section["layer_norm_eps"] != 1e-5:
            raise CsktError(
                f"{path}: {side} layer_norm_eps {_shown(section['layer_norm_eps'])} is not supported, only 1e-5"
            )
        for key, size in (("hidden_size", f"{side}_width"), ("num_hidden_layers", f"{side}_layers")):
            if section[key] != sizes[size]:
                raise CsktError(
                    f"{path}: {side} {key} {_shown(section[key])} does not fit {weights_name} ({sizes[size]})"
                )
        if side == "text" and sizes["vocab_size"] >= max(END_TOKENS) and section["eos_token_id"] not in END_TOKENS:
            raise CsktError(
                f"{path}: text eos_token_id {_shown(section['eos_token_id'])} is not supported, only CLIP's end token"
                f" {max(END_TOKENS)}"
            )
        facts[f"{side}_heads"] = _whole(section["num_attention_heads"], f"{where}.num_attention_heads", path)
        activation = section["hidden_act"]
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise CsktError(
                f"{path}: activation '{where}.hidden_act' {_shown(activation)} is not supported, only"
                f" {', '.join(ACTIVATIONS)}"
            )
        if facts.setdefault("activation", ACTIVATIONS[activation]) != ACTIVATIONS[activation]:
            raise CsktError(f"{path}: the towers have different activations, which is not supported")
    return facts


def resolved_section(content: Mapping[str, Any], side: str, path: Path) -> dict[str, Any]:
    """Return the settings of one tower as transformers resolves them.

    Where `text_config_dict` is there, even empty, it replaces `text_config`: what it leaves out has the default of
    CLIPTextConfig, whatever `text_config` says. Likewise for vision.

    Args:
        content: of config.json.
        side: text or vision.
        path: for messages.

    Raises:
        CsktError: a section is no object.
    """
    legacy = content.get(f"{side}_config_dict")
    name = f"{side}_config" if legacy is None else f"{side}_config_dict"
    return DEFAULTS[side] | _section(content, name, path)


def _section(
    content: Mapping[str, Any], name: str, path: Path, *, prefix: str = "", needed: bool = False
) -> dict[str, Any]:
    found = content.get(name)
    if found is None and not needed:
        return {}
    if not isinstance(found, dict):
        told = "no" if found is None else f"{_shown(found)} for"
        raise CsktError(f"{path}: {told} {prefix}{name}, which must be an object; {REMEDY}")
    return found


def _whole(value: object, field: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
        raise CsktError(f"{path}: '{field}' must be a whole number from 1, got {_shown(value)}; {REMEDY}")
    return value


def _shown(value: object) -> str:
    return repr(value)[:80]
