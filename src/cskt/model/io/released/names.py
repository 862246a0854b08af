"""Names of the tensors in checkpoints of released codes: one list of rules for each method part."""

from __future__ import annotations

import re

from cskt.model.io.layouts import TOWERS, Rules, openai_name, replaced

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
_BLOCKS = (
    (r"^vision\.(\d+)\.", r"base_model.visual.transformer.resblocks.\1."),
    (r"^text\.(\d+)\.", r"base_model.transformer.resblocks.\1."),
)
UP_PERSON: Rules = (
    (r"\.before_attention\.(\d+)\.scale$", r".\1.scale_1"),
    (r"\.before_mlp\.(\d+)\.scale$", r".\1.scale_2"),
    (r"\.before_attention\.(\d+)\.", r".\1.adapter_ln_msa."),
    (r"\.before_mlp\.(\d+)\.", r".\1.adapter_ln_mlp."),
    *_BLOCKS,
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
)
"""Our names after `parts.up_person.` -> UP-Person's."""
DM_ADAPTER: Rules = (
    *_BLOCKS,
    (r"\.norm\.", ".ln_3."),
    (r"\.task$", ".task_param"),
    (r"\.(alpha$|input_gate\.|task_gate\.|experts\.)", r".feed_forward.\1"),
)
"""Our names after `parts.dm_adapter.` -> DM-Adapter's."""
TOKEN_SELECTION: Rules = (  # "visul" and "texual" are RDE's
    (r"^vision\.skip\.", "visul_emb_layer.fc."),
    (r"^text\.skip\.", "texual_emb_layer.linear."),
    (r"^vision\.", "visul_emb_layer."),
    (r"^text\.", "texual_emb_layer."),
    (r"\.first\.", ".mlp.layers.0."),
    (r"\.norm\.", ".mlp.bns.0."),
    (r"\.second\.", ".mlp.layers.1."),
)
"""Our names after `parts.tse.` -> RDE's."""
PREFIX_TWICE: Rules = (
    (r"^base_model\.visual\.transformer\.resblocks\.(\d+)\.attn\.prefix\.", r"vit_prefix_learner.vit_prefix.\1."),
    (r"^base_model\.transformer\.resblocks\.(\d+)\.attn\.prefix\.", r"text_prefix_learner.text_prefix.\1."),
)
"""Second name of a prefix, under which UP-Person stores it again after the first forward -> its first name."""
PREFIX_AGAIN: Rules = (
    (r"^vit_prefix_learner\.vit_prefix\.(\d+)\.", r"base_model.visual.transformer.resblocks.\1.attn.prefix."),
    (r"^text_prefix_learner\.text_prefix\.(\d+)\.", r"base_model.transformer.resblocks.\1.attn.prefix."),
)
"""Its first name -> its second."""


def base_name(name: str) -> str:
    """Return the released name of a parameter that is of no section `parts`: of a tower, or of CSKT's or IRRA's parts.

    `prompts.text.0` -> `prompt_learner.ctx`, `adapters.text.3.norm.bias` ->
    `base_model.transformer.resblocks.3.ln_3.bias`, `vision.proj` -> `base_model.visual.proj`,
    `interaction.cross_blocks.0.ln_1.bias` -> `cross_modal_transformer.resblocks.0.ln_1.bias`.
    """
    if name.startswith("classifier."):
        return name
    if name.startswith("interaction."):
        return replaced(name, _INTERACTION)
    for pattern, first, later in _METHOD:
        if match := re.match(pattern, name):
            block = int(match[1])
            return (first if block == 0 else later.format(block - 1)) + name[match.end() :]
    if name.startswith("adapters."):
        return replaced(name, _ADAPTERS)
    return f"{TOWERS}{openai_name(name)}"
