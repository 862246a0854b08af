"""Names of tensors in weight files of each kind, and the architecture that a file implies.

Sizes are read from the tensors. Head counts and the activation are not in them: OpenAI's files have fixed ones, others
come with a config file, and without one the user must state them (`backbone.activation`, ...): a wrong guess would
load without an error and compute something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cskt.config import BackboneConfig, ClipArchitecture, validate
from cskt.config.architecture import HEAD_WIDTH
from cskt.errors import CsktError
from cskt.model.io.cache import is_openais
from cskt.model.io.checkpoints import IRRA_ROOT
from cskt.model.io.json_configs import (
    OPEN_CLIP_CONFIG,
    Preprocessing,
    hugging_face_facts,
    open_clip_facts,
    read_preprocessing,
)

ARCHIVE_LEFTOVERS = ("input_resolution", "context_length", "vocab_size")
"""Tensors beside the weights that only OpenAI's archives have, and state dicts made from them."""

Rules = tuple[tuple[str, str], ...]
"""Regular expression and replacement, of a name."""
SIGNS = ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")
"""Tensors of a vision transformer of OpenAI or open_clip, and of one of Hugging Face."""

_BACKBONE = (  # ours, OpenAI's; every rule that matches is applied
    (r"^vision\.", "visual."),
    (r"^text\.proj$", "text_projection"),
    (r"^text\.", ""),
    (r"\bblocks\.", "transformer.resblocks."),
    (r"attn\.in_proj\.", "attn.in_proj_"),
)
_HUGGING_FACE = (  # ours, the name in a Hugging Face `CLIPModel`; every rule that matches is applied
    (r"^(vision|text)\.proj$", r"\1_projection.weight"),
    (r"^vision_projection", "visual_projection"),
    (r"^(vision|text)\.", r"\1_model."),
    (r"^vision_model\.(class_embedding)$", r"vision_model.embeddings.\1"),
    (r"^vision_model\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"\.token_embedding\.", ".embeddings.token_embedding."),
    (r"\.blocks\.", ".encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
    (r"\.ln_pre\.", ".pre_layrnorm."),  # the misspelling is theirs
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
)
TOWERS = f"{IRRA_ROOT}."
"""Prefix of the names of the towers in checkpoints of IRRA's code and of codes made from it."""
TRAINING_ONLY = (
    "classifier.", "cross_attn.", "cross_modal_transformer.", "ln_pre_t.", "ln_pre_i.", "ln_post.", "mlm_head.",
)  # fmt: skip
"""First letters of the names of tensors in released checkpoints that only the losses `id` and `mlm` use."""


def openai_name(name: str) -> str:
    """Map our name of a backbone parameter to its name in OpenAI's files (`vision.proj` -> `visual.proj`)."""
    return replaced(name, _BACKBONE)


def hugging_face_names(name: str) -> tuple[str, ...]:
    """Map our name of a backbone parameter to the one or three (q, k, v) names whose concatenated tensors it is."""
    name = replaced(name, _HUGGING_FACE)
    if ".in_proj." not in name:
        return (name,)
    return tuple(name.replace(".in_proj.", f".{part}_proj.") for part in "qkv")


def replaced(name: str, rules: Rules) -> str:
    """Return a name after all rules (regular expression, replacement), in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Layout:
    """Names and orientation of our tensors in one kind of file."""

    sources: Callable[[str], tuple[str, ...]]
    """Our name -> names in the file whose concatenated tensors are ours."""
    transposed: frozenset[str] = frozenset()
    """Our names of tensors that the file stores transposed."""


OURS = Layout(lambda name: (name,))
OPENAI = Layout(lambda name: (openai_name(name),))
HUGGING_FACE = Layout(hugging_face_names, frozenset({"vision.proj", "text.proj"}))
IRRA_TOWERS = Layout(lambda name: (f"{TOWERS}{openai_name(name)}",))


def recognise(
    tensors: Mapping[str, Tensor], path: Path, config: BackboneConfig, sha256: str
) -> tuple[Layout, ClipArchitecture, Preprocessing]:
    """Recognise the tensors of a file of OpenAI, open_clip, Hugging Face or IRRA, with the config files beside it.

    The architecture has the image size and stride that the file was made for. Settings of `config` complete what the
    file does not say, and win over what it says.

    Raises:
        CsktError: not a CLIP with a vision transformer, of a kind that is not supported, or a setting is needed.
    """
    layout = layout_of(tensors, path)
    sizes = read_sizes(tensors, layout, str(path))
    facts: dict[str, Any] = {}
    is_of_openai = is_openais(sha256) or all(name in tensors for name in ARCHIVE_LEFTOVERS)
    if layout is IRRA_TOWERS or (layout is OPENAI and is_of_openai):  # IRRA's code starts from OpenAI's weights alone
        facts = {"activation": "quick_gelu", **openai_heads(sizes)}
    elif layout is OPENAI and (beside := path.with_name(OPEN_CLIP_CONFIG)).is_file():
        facts = open_clip_facts(beside, sizes)
    elif layout is HUGGING_FACE and (beside := path.with_name("config.json")).is_file():
        facts = hugging_face_facts(beside, sizes, weights_name=path.name)
    preprocessing = Preprocessing()
    if not is_openais(sha256) and not (config.image_mean and config.image_std):
        preprocessing = read_preprocessing(path, is_open_clip=layout is OPENAI)
    facts |= preprocessing.completed(config)
    images = _images(sizes, config, path, is_square=layout is not IRRA_TOWERS)
    return layout, _complete(sizes, facts | images, config, path), preprocessing


def layout_of(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    """Return how a foreign file names our tensors."""
    names = tensors.keys()
    openai_sign, hugging_face_sign = SIGNS
    if openai_sign in names and not any(name.startswith("visual.layer1.") for name in names):
        return OPENAI
    if hugging_face_sign in names:
        return HUGGING_FACE
    if any(name.startswith(TOWERS) for name in names):
        return IRRA_TOWERS
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
    """Return the fields of `ClipArchitecture` that shapes determine, plus `num_patches`."""

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
    """Return the head counts of OpenAI's models."""
    return {f"{side}_heads": sizes[f"{side}_width"] // HEAD_WIDTH for side in ("vision", "text")}


def _images(sizes: Mapping[str, int], config: BackboneConfig, path: Path, *, is_square: bool) -> dict[str, int]:
    """Return height, width and stride of the images that the positions are of.

    Those of a checkpoint of IRRA's code are resized to the images of its run: 384 x 128, unless `config` has an image
    size and stride that they fit.
    """
    number, patch_size = sizes["num_patches"], sizes["patch_size"]
    if not is_square and config.image_height and config.image_width:
        height, width, stride = config.image_height, config.image_width, config.stride or patch_size
        if ((height - patch_size) // stride + 1) * ((width - patch_size) // stride + 1) == number:
            return {"image_height": height, "image_width": width, "stride": stride}
    for ratio in (1,) if is_square else (3, 1):
        columns = math.isqrt(number // ratio)
        if ratio * columns * columns == number:
            side = columns * patch_size
            return {"image_height": ratio * side, "image_width": side, "stride": patch_size}
    if is_square:
        raise CsktError(f"{path}: {number} patch positions make no square grid")
    raise CsktError(
        f"{path}: {number} patch positions fit no image three times as high as wide; set image size and stride of its"
        " run with backbone.image_height, backbone.image_width and backbone.stride (--image-height, --image-width,"
        " --stride)"
    )


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
    fields = {key: value for key, value in sizes.items() if key != "num_patches"} | chosen
    fields |= {key: facts[key] for key in ("image_height", "image_width", "stride", "image_mean", "image_std")}
    return validate(ClipArchitecture, fields, str(path))
