"""The ways in which weight files name a CLIP's tensors, and what each tells of the architecture.

Sizes are read from the tensors. Head counts and the activation are not in them: OpenAI's files have fixed ones, others
bring a config file, and where neither says, the user must (`backbone.activation`, ...): a guess would load without a
complaint and compute something else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cskt.config import BackboneConfig, ClipArchitecture, validate
from cskt.model.names import hugging_face_names, openai_name
from cskt.model.tensors import NamedTensors

HEAD_WIDTH = 64
"""Width of a head in every CLIP of OpenAI's."""
ARCHIVE_LEFTOVERS = ("input_resolution", "context_length", "vocab_size")
"""Entries that only OpenAI's archives, and state dicts made from them, carry beside the weights."""
OPEN_CLIP_KEYS = {
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"},
}
"""Settings of open_clip that this architecture covers; any other that is switched on would change the function."""


@dataclass(frozen=True)
class Layout:
    """How a kind of file names and orients our tensors."""

    sources: Callable[[str], tuple[str, ...]]
    """Our name -> names in the file whose tensors, one below the other, make ours."""
    transposed: frozenset[str] = frozenset()
    """Ours, whose source is stored transposed."""


OURS = Layout(lambda name: (name,))
OPENAI = Layout(lambda name: (openai_name(name),))
HUGGING_FACE = Layout(hugging_face_names, frozenset({"vision.proj", "text.proj"}))


def recognise(file: NamedTensors, path: Path, config: BackboneConfig) -> tuple[Layout, ClipArchitecture]:
    """Layout and architecture of a weight file of OpenAI, open_clip or Hugging Face.

    Args:
        file: its tensors.
        path: for messages, and to find a config file beside it.
        config: flags that complete what the file does not say, and win over what it says.

    Returns:
        The architecture has the image size and stride that the file was made for.

    Raises:
        ValueError: not a CLIP with a vision transformer, of a kind that is not supported, or a flag is needed.
    """
    names = file.tensors.keys()
    if "visual.conv1.weight" in names and not any(name.startswith("visual.layer1.") for name in names):
        sizes = read_sizes(file.tensors, OPENAI, str(path))
        return OPENAI, _complete(sizes, _openai_facts(file, path, sizes), config, path)
    if "vision_model.embeddings.patch_embedding.weight" in names:
        sizes = read_sizes(file.tensors, HUGGING_FACE, str(path))
        return HUGGING_FACE, _complete(sizes, _hugging_face_facts(path, sizes), config, path)
    if any(name.startswith("base_model.") for name in names):
        raise ValueError(f"{path}: a trained checkpoint, not a backbone; give its folder (with configs.yaml) instead")
    found = next(iter(names), "")[:80]
    raise ValueError(f"{path}: not a CLIP with a vision transformer; found tensors such as '{found}'")


def read_sizes(tensors: Mapping[str, Tensor], layout: Layout, origin: str) -> dict[str, int]:
    """The fields of `ClipArchitecture` that shapes tell, plus `num_patches`.

    Raises:
        ValueError: a tensor is missing or has another number of dimensions; names it.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        source = layout.sources(name)[0]
        if source not in tensors:
            raise ValueError(f"{origin}: tensor '{source}' is missing")
        found = tuple(tensors[source].shape)
        if len(found) != dimensions or 0 in found:
            raise ValueError(f"{origin}: tensor '{source}' has shape {list(found)}, expected {dimensions} dimensions")
        return found[::-1] if name in layout.transposed else found

    def layers(side: str) -> int:
        prefix = layout.sources(f"{side}.blocks.0.ln_1.weight")[0].partition(".0.")[0] + "."
        return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})

    vision_width, _, patch_size, _ = shape("vision.conv1.weight", 4)
    context_length, text_width = shape("text.positional_embedding", 2)
    return {
        "embed_dim": shape("text.proj", 2)[1],
        "patch_size": patch_size,
        "vision_width": vision_width,
        "vision_layers": layers("vision"),
        "text_width": text_width,
        "text_layers": layers("text"),
        "context_length": context_length,
        "vocab_size": shape("text.token_embedding.weight", 2)[0],
        "num_patches": shape("vision.positional_embedding", 2)[0] - 1,
    }


def openai_heads(sizes: Mapping[str, int]) -> dict[str, int]:
    """Head counts of OpenAI's models."""
    return {f"{side}_heads": sizes[f"{side}_width"] // HEAD_WIDTH for side in ("vision", "text")}


def _complete(
    sizes: Mapping[str, int], facts: Mapping[str, Any], config: BackboneConfig, path: Path
) -> ClipArchitecture:
    chosen: dict[str, Any] = {}
    for key in ("activation", "vision_heads", "text_heads"):
        chosen[key] = getattr(config, key) or facts.get(key)
        if not chosen[key]:
            advice = (
                "quick_gelu for OpenAI's weights, gelu for most others" if key == "activation" else "often width / 64"
            )
            raise ValueError(f"{path}: the file does not say its {key}; set backbone.{key} ({advice})")
    side = math.isqrt(sizes["num_patches"])
    if side * side != sizes["num_patches"]:
        raise ValueError(f"{path}: {sizes['num_patches']} patch positions make no square grid")
    fields = {key: value for key, value in sizes.items() if key != "num_patches"}
    fields |= {"stride": sizes["patch_size"]} | dict.fromkeys(
        ("image_height", "image_width"), side * sizes["patch_size"]
    )
    return validate(ClipArchitecture, fields | chosen, str(path))


def _openai_facts(file: NamedTensors, path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    if file.is_torchscript or all(name in file.tensors for name in ARCHIVE_LEFTOVERS):
        return {"activation": "quick_gelu", **openai_heads(sizes)}
    if (beside := path.parent / "open_clip_config.json").is_file():
        return _open_clip_facts(beside, sizes)
    return {}


def _open_clip_facts(path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    model = read_json(path).get("model_cfg") or {}
    for name, known in OPEN_CLIP_KEYS.items():
        if not isinstance(model, dict) or not isinstance(model.get(name), dict):
            raise ValueError(f"{path}: no model_cfg.{name}; expected an open_clip config")
        for key, value in model[name].items():
            if value and key not in known:
                raise ValueError(f"{path}: model_cfg.{name}.{key} = {value!r} is not supported")
    return {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "vision_heads": sizes["vision_width"] // model["vision_cfg"].get("head_width", HEAD_WIDTH),
        "text_heads": model["text_cfg"].get("heads", 8),
    }


def _hugging_face_facts(path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    beside = path.parent / "config.json"
    if not beside.is_file():
        return {}
    content = read_json(beside)
    if content.get("model_type", "clip") != "clip":
        raise ValueError(f"{beside}: model_type {content['model_type']!r} is not supported; expected clip")
    facts: dict[str, Any] = {}
    # Files leave out what equals the defaults of transformers' CLIPTextConfig and CLIPVisionConfig.
    for side, default_heads in (("text", 8), ("vision", 12)):
        section = (content.get(f"{side}_config") or {}) | (content.get(f"{side}_config_dict") or {})
        if section.get("layer_norm_eps", 1e-5) != 1e-5:
            raise ValueError(f"{beside}: {side} layer_norm_eps {section['layer_norm_eps']} is not supported, only 1e-5")
        for key, size in (("hidden_size", f"{side}_width"), ("num_hidden_layers", f"{side}_layers")):
            if section.get(key, sizes[size]) != sizes[size]:
                raise ValueError(f"{beside}: {side} {key} {section[key]} does not fit {path.name} ({sizes[size]})")
        facts[f"{side}_heads"] = section.get("num_attention_heads", default_heads)
        activation = section.get("hidden_act", "quick_gelu")
        if facts.setdefault("activation", activation) != activation:
            raise ValueError(f"{beside}: the towers have different activations, which is not supported")
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping from a file.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
