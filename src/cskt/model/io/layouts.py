"""The naming schemes of weight files, and the architecture that each implies.

Sizes are read from the tensors. Head counts and the activation are not in them: OpenAI's files have fixed ones, others
come with a config file, and where neither is there, the user must state them (`backbone.activation`, ...): a wrong
guess would load without an error and compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cskt.config import BackboneConfig, ClipArchitecture, validate
from cskt.errors import CsktError
from cskt.model.io.cache import is_openais
from cskt.model.io.model_config import hugging_face_facts, open_clip_facts
from cskt.model.io.names import hugging_face_names, openai_name
from cskt.model.io.preprocessing import OPEN_CLIP_CONFIG, Preprocessing, read_preprocessing

HEAD_WIDTH = 64
"""Width of a head in every CLIP of OpenAI's."""
ARCHIVE_LEFTOVERS = ("input_resolution", "context_length", "vocab_size")
"""Tensors that only OpenAI's archives, and state dicts made from them, have beside the weights."""
VOCABULARY = 49408
"""Tokens of CLIP's vocabulary; rows of a token embedding beyond them belong to tokens that were appended to it."""

SIGNS = ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")
"""Tensors that tell a vision transformer of OpenAI's or open_clip, and one of Hugging Face."""


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


class Recognised(NamedTuple):
    """Layout, architecture and preprocessing of a weight file."""

    layout: Layout
    architecture: ClipArchitecture
    """With the image size and stride that the file was made for."""
    preprocessing: Preprocessing


def recognise(tensors: Mapping[str, Tensor], path: Path, config: BackboneConfig, sha256: str) -> Recognised:
    """Recognise a weight file of OpenAI, open_clip or Hugging Face.

    Args:
        tensors: of the file, by its names.
        path: for messages, and to find config files beside it.
        config: flags that complete what the file does not say, and win over what it says.
        sha256: digest of the file.

    Raises:
        CsktError: not a CLIP with a vision transformer, of a kind that is not supported, or a flag is needed.
    """
    layout = layout_of(tensors, path)
    sizes = read_sizes(tensors, layout, str(path))
    if layout is OPENAI:
        facts = _openai_facts(tensors, path, sizes, sha256)
    else:
        beside = path.with_name("config.json")
        facts = hugging_face_facts(beside, sizes, weights_name=path.name) if beside.is_file() else {}
    preprocessing = Preprocessing()
    if not is_openais(sha256) and not (config.image_mean and config.image_std):
        preprocessing = read_preprocessing(path, is_open_clip=layout is OPENAI)
    facts |= preprocessing.completed(config)
    return Recognised(layout, _complete(sizes, facts, config, path), preprocessing)


def layout_of(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    """Return how a foreign file names our tensors.

    Raises:
        CsktError: not a CLIP with a vision transformer.
    """
    names = tensors.keys()
    openai_sign, hugging_face_sign = SIGNS
    if openai_sign in names and not any(name.startswith("visual.layer1.") for name in names):
        return OPENAI
    if hugging_face_sign in names:
        return HUGGING_FACE
    if any(name.startswith("base_model.") for name in names):
        raise CsktError(f"{path}: a trained checkpoint, not a backbone; give its folder (with configs.yaml) instead")
    prefixes = (name.removesuffix(sign) for sign in SIGNS for name in names if name.endswith(f".{sign}"))
    if prefix := next(prefixes, ""):
        other = next((f", beside '{name[:80]}'" for name in names if not name.startswith(prefix)), "")
        raise CsktError(
            f"{path}: holds a CLIP under the prefix '{prefix[:80]}'{other}; save its tensors alone:"
            " torch.save(model.state_dict(), FILE)"
        )
    found = next(iter(names), "")[:80]
    raise CsktError(f"{path}: not a CLIP with a vision transformer; found tensors such as '{found}'")


def read_sizes(tensors: Mapping[str, Tensor], layout: Layout, origin: str) -> dict[str, int]:
    """The fields of `ClipArchitecture` that shapes tell, plus `num_patches`.

    Raises:
        CsktError: a tensor is missing or has another number of dimensions; names it.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        source = layout.sources(name)[0]
        if source not in tensors:
            raise CsktError(f"{origin}: tensor '{source}' is missing")
        found = tuple(tensors[source].shape)
        if len(found) != dimensions or 0 in found:
            raise CsktError(f"{origin}: tensor '{source}' has shape {list(found)}, expected {dimensions} dimensions")
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
    chosen = {key: getattr(config, key) or facts.get(key) for key in ("activation", "vision_heads", "text_heads")}
    if open_keys := [key for key, value in chosen.items() if not value]:
        heads = openai_heads(sizes)
        advice = {
            "activation": "quick_gelu for weights of OpenAI's, gelu for most others",
            **{key: f"{number} if heads are {HEAD_WIDTH} wide, as most are" for key, number in heads.items()},
        }
        asked = ", ".join(f"backbone.{key} (--{key.replace('_', '-')}; {advice[key]})" for key in open_keys)
        raise CsktError(f"{path}: does not state its {', '.join(open_keys)}; set {asked}")
    side = math.isqrt(sizes["num_patches"])
    if side * side != sizes["num_patches"]:
        raise CsktError(f"{path}: {sizes['num_patches']} patch positions make no square grid")
    fields = {key: value for key, value in sizes.items() if key != "num_patches"}
    fields |= {"stride": sizes["patch_size"]} | dict.fromkeys(
        ("image_height", "image_width"), side * sizes["patch_size"]
    )
    normalisation = {key: facts[key] for key in ("image_mean", "image_std")}
    return validate(ClipArchitecture, fields | chosen | normalisation, str(path))


def _openai_facts(tensors: Mapping[str, Tensor], path: Path, sizes: Mapping[str, int], sha256: str) -> dict[str, Any]:
    if is_openais(sha256) or all(name in tensors for name in ARCHIVE_LEFTOVERS):
        return {"activation": "quick_gelu", **openai_heads(sizes)}
    if (beside := path.with_name(OPEN_CLIP_CONFIG)).is_file():
        return open_clip_facts(beside, sizes)
    return {}
