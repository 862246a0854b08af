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
from cskt.model.io.json_configs import (
    OPEN_CLIP_CONFIG,
    Preprocessing,
    hugging_face_facts,
    open_clip_facts,
    read_preprocessing,
)

ARCHIVE_LEFTOVERS = ("input_resolution", "context_length", "vocab_size")
"""Tensors beside the weights that only OpenAI's archives have, and state dicts made from them."""
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
_METHOD = (  # ours (block index in the first group), released name of block 0, released name of a later block
    (r"^prompts\.text\.(\d+)$", "prompt_learner.ctx", "prompt_learner.compound_prompts_text.{}"),
    (r"^prompts\.vision\.(\d+)$", "prompt_learner.vision", "prompt_learner.compound_prompts_vision.{}"),
    (r"^prompts\.t2v\.(\d+)\.", "prompt_learner.tmap.", "prompt_learner.compound_prompt_projections.{}."),
    (r"^prompts\.v2t\.(\d+)\.", "prompt_learner.vmap.", "prompt_learner.compound_prompt_projections_vision.{}."),
)
_INTERACTION = (  # ours, IRRA's; every rule that matches is applied
    (r"^interaction\.", ""),
    (r"^cross_blocks\.", "cross_modal_transformer.resblocks."),
    (r"attn\.in_proj\.", "attn.in_proj_"),
)
_ADAPTERS = (  # ours, the released name; every rule that matches is applied
    (r"^adapters\.vision\.", "base_model.visual.transformer.resblocks."),
    (r"^adapters\.text\.", "base_model.transformer.resblocks."),
    (r"\.norm\.", ".ln_3."),
    (r"\.(down|up)\.", r".adapter_mlp.\1."),
)
_TOWERS = (
    (r"^vision\.(\d+)\.", r"base_model.visual.transformer.resblocks.\1."),
    (r"^text\.(\d+)\.", r"base_model.transformer.resblocks.\1."),
)
_PARTS = {  # method part -> our name after `parts.<part>.`, the released name; every rule that matches is applied
    "up_person": (
        (r"\.before_attention\.(\d+)\.scale$", r".\1.scale_1"),
        (r"\.before_mlp\.(\d+)\.scale$", r".\1.scale_2"),
        (r"\.before_attention\.(\d+)\.", r".\1.adapter_ln_msa."),
        (r"\.before_mlp\.(\d+)\.", r".\1.adapter_ln_mlp."),
        *_TOWERS,
        (r"^vision\.low_rank\.", "LORA_learner.lora_image."),
        (r"^text\.low_rank\.", "LORA_learner.lora_text."),
        (r"\.key\.(down|up|scale)$", r".\1.0"),
        (r"\.value\.(down|up|scale)$", r".\1.1"),
        (r"\.down\.([01])$", r".lora_A.\1"),
        (r"\.up\.([01])$", r".lora_B.\1"),
        (r"\.scale\.([01])$", r".scale.\1.scale"),
        (r"^vision\.prefix\.", "vit_prefix_learner.vit_prefix."),
        (r"^text\.prefix\.", "text_prefix_learner.text_prefix."),
        (r"\.value(_scale)?$", r".val\1"),
        (r"\.(key|val)$", r".\1.tokens"),
        (r"\.(key|val)_scale$", r".\1.scaler.scale"),
        (r"\.factor$", ".scale_to_grad"),
    ),
    "dm_adapter": (
        *_TOWERS,
        (r"\.norm\.", ".ln_3."),
        (r"\.task$", ".task_param"),
        (r"\.(alpha$|input_gate\.|task_gate\.|experts\.)", r".feed_forward.\1"),
    ),
    "tse": (  # "visul" and "texual" are RDE's
        (r"^vision\.skip\.", "visul_emb_layer.fc."),
        (r"^text\.skip\.", "texual_emb_layer.linear."),
        (r"^vision\.", "visul_emb_layer."),
        (r"^text\.", "texual_emb_layer."),
        (r"\.first\.", ".mlp.layers.0."),
        (r"\.norm\.", ".mlp.bns.0."),
        (r"\.second\.", ".mlp.layers.1."),
    ),
}
RDE_WIDTH = 1024
"""Width of the embeddings of the released RDE."""

TRAINING_ONLY = (
    "classifier.", "cross_attn.", "cross_modal_transformer.", "ln_pre_t.", "ln_pre_i.", "ln_post.", "mlm_head.",
)  # fmt: skip
"""First letters of the names of tensors in released checkpoints that only the losses `id` and `mlm` use."""


def openai_name(name: str) -> str:
    """Map our name of a backbone parameter to its name in OpenAI's files (`vision.proj` -> `visual.proj`)."""
    return _replaced(name, _BACKBONE)


def hugging_face_names(name: str) -> tuple[str, ...]:
    """Map our name of a backbone parameter to the one or three (q, k, v) names whose concatenated tensors it is."""
    name = _replaced(name, _HUGGING_FACE)
    if ".in_proj." not in name:
        return (name,)
    return tuple(name.replace(".in_proj.", f".{part}_proj.") for part in "qkv")


def released_name(name: str) -> str:
    """Map our name of a parameter of model or objective to its name in a checkpoint of its released code.

    `prompts.text.0` -> `prompt_learner.ctx`, `adapters.text.3.norm.bias` ->
    `base_model.transformer.resblocks.3.ln_3.bias`, `vision.proj` -> `base_model.visual.proj`,
    `interaction.cross_blocks.0.ln_1.bias` -> `cross_modal_transformer.resblocks.0.ln_1.bias`.
    """
    if name.startswith("classifier."):
        return name
    if name.startswith("interaction."):
        return _replaced(name, _INTERACTION)
    for pattern, first, later in _METHOD:
        if match := re.match(pattern, name):
            block = int(match[1])
            return (first if block == 0 else later.format(block - 1)) + name[match.end() :]
    if name.startswith("adapters."):
        return _replaced(name, _ADAPTERS)
    if match := re.match(r"^parts\.(\w+)\.", name):
        return _replaced(name[match.end() :], _PARTS[match[1]])
    return f"base_model.{openai_name(name)}"


def unused_shapes(part: str, architecture: ClipArchitecture) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a released checkpoint that its code stores and, if they are no statistics or counts of a
    batch normalisation, trains and counts, but never uses, by name.

    They are written into released folders only. `part` is the method part of the checkpoint.
    """
    if part == "tse":
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        norms = {
            f"{head}.mlp.bns.1.{name}": () if name == "num_batches_tracked" else (RDE_WIDTH,)
            for head in ("visul_emb_layer", "texual_emb_layer")
            for name in names
        }
        linear = {"weight": (RDE_WIDTH, architecture.embed_dim), "bias": (RDE_WIDTH,)}
        return norms | {f"visul_emb_layer.linear.{name}": shape for name, shape in linear.items()}
    if part != "dm_adapter":
        return {}
    vision, text = architecture.vision_width, architecture.text_width
    shapes = {
        "vision_param": (vision,), "text_param": (text,), "co_vision_param": (vision,),
        "v2i_proj.weight": (text, vision), "v2i_proj.bias": (text,),
    }  # fmt: skip
    return {f"base_model.{name}": shape for name, shape in shapes.items()}


def _replaced(name: str, rules: tuple[tuple[str, str], ...]) -> str:
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
RELEASED = Layout(lambda name: (released_name(name),))


def recognise(
    tensors: Mapping[str, Tensor], path: Path, config: BackboneConfig, sha256: str
) -> tuple[Layout, ClipArchitecture, Preprocessing]:
    """Recognise the tensors of a file of OpenAI, open_clip or Hugging Face, with the config files beside it.

    The architecture has the image size and stride that the file was made for. Settings of `config` complete what the
    file does not say, and win over what it says.

    Raises:
        CsktError: not a CLIP with a vision transformer, of a kind that is not supported, or a setting is needed.
    """
    layout = layout_of(tensors, path)
    sizes = read_sizes(tensors, layout, str(path))
    facts: dict[str, Any] = {}
    if layout is OPENAI and (is_openais(sha256) or all(name in tensors for name in ARCHIVE_LEFTOVERS)):
        facts = {"activation": "quick_gelu", **openai_heads(sizes)}
    elif layout is OPENAI and (beside := path.with_name(OPEN_CLIP_CONFIG)).is_file():
        facts = open_clip_facts(beside, sizes)
    elif layout is HUGGING_FACE and (beside := path.with_name("config.json")).is_file():
        facts = hugging_face_facts(beside, sizes, weights_name=path.name)
    preprocessing = Preprocessing()
    if not is_openais(sha256) and not (config.image_mean and config.image_std):
        preprocessing = read_preprocessing(path, is_open_clip=layout is OPENAI)
    facts |= preprocessing.completed(config)
    return layout, _complete(sizes, facts, config, path), preprocessing


def layout_of(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    """Return how a foreign file names our tensors."""
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
    fields = {key: value for key, value in sizes.items() if key != "num_patches"} | chosen
    fields |= {"stride": sizes["patch_size"], "image_mean": facts["image_mean"], "image_std": facts["image_std"]}
    fields |= dict.fromkeys(("image_height", "image_width"), side * sizes["patch_size"])
    return validate(ClipArchitecture, fields, str(path))
