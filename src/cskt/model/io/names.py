"""Our parameter names beside OpenAI's, Hugging Face's and those of the released checkpoints."""

from __future__ import annotations

import re

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
_ADAPTER = re.compile(r"^adapters\.(vision|text)\.(\d+)\.(norm|down|up)\.(weight|bias)$")

TRAINING_ONLY = (
    "classifier.", "cross_attn.", "cross_modal_transformer.", "ln_pre_t.", "ln_pre_i.", "ln_post.", "mlm_head.",
)  # fmt: skip
"""How the names in released checkpoints begin that serve the losses `id` and `mlm` alone."""


def openai_name(name: str) -> str:
    """Our name of a backbone parameter -> its name in OpenAI's files (`vision.proj` -> `visual.proj`)."""
    return _replaced(name, _BACKBONE)


def hugging_face_names(name: str) -> tuple[str, ...]:
    """Our name of a backbone parameter -> the one or three names whose tensors, one below the other, make it up.

    `text.blocks.0.attn.in_proj.bias` -> `text_model.encoder.layers.0.self_attn.q_proj.bias`, the same of `k_proj`, and
    of `v_proj`. The projections (`vision.proj`, `text.proj`) are stored transposed.
    """
    name = _replaced(name, _HUGGING_FACE)
    if ".in_proj." not in name:
        return (name,)
    return tuple(name.replace(".in_proj.", f".{part}_proj.") for part in "qkv")


def released_name(name: str) -> str:
    """Our name of any parameter, of model or objective -> its name in a released CSKT or IRRA checkpoint.

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
    if match := _ADAPTER.match(name):
        side, block_index, part, leaf = match.groups()
        tower = "visual.transformer" if side == "vision" else "transformer"
        place = "ln_3" if part == "norm" else f"adapter_mlp.{part}"
        return f"base_model.{tower}.resblocks.{block_index}.{place}.{leaf}"
    return f"base_model.{openai_name(name)}"


def _replaced(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
