"""Our parameter names beside OpenAI's and those of the released checkpoints: one table, read in both directions."""

from __future__ import annotations

import re

_BACKBONE = (  # ours, OpenAI's; the first rule that matches is applied, then the next
    (r"^vision\.", "visual."),
    (r"^text\.proj$", "text_projection"),
    (r"^text\.", ""),
    (r"\bblocks\.", "transformer.resblocks."),
    (r"attn\.in_proj\.", "attn.in_proj_"),
)
_METHOD = (  # ours (block index in the first group), released name of block 0, released name of a later block
    (r"^prompts\.text\.(\d+)$", "prompt_learner.ctx", "prompt_learner.compound_prompts_text.{}"),
    (r"^prompts\.vision\.(\d+)$", "prompt_learner.vision", "prompt_learner.compound_prompts_vision.{}"),
    (r"^prompts\.t2v\.(\d+)\.", "prompt_learner.tmap.", "prompt_learner.compound_prompt_projections.{}."),
    (r"^prompts\.v2t\.(\d+)\.", "prompt_learner.vmap.", "prompt_learner.compound_prompt_projections_vision.{}."),
)
_ADAPTER = re.compile(r"^adapters\.(vision|text)\.(\d+)\.(norm|down|up)\.(weight|bias)$")


def openai_name(name: str) -> str:
    """Our name of a backbone parameter -> its name in OpenAI's files (`vision.proj` -> `visual.proj`)."""
    for pattern, replacement in _BACKBONE:
        name = re.sub(pattern, replacement, name)
    return name


def released_name(name: str) -> str:
    """Our name of any parameter -> its name in a released CSKT checkpoint.

    `prompts.text.0` -> `prompt_learner.ctx`, `adapters.text.3.norm.bias` ->
    `base_model.transformer.resblocks.3.ln_3.bias`, `vision.proj` -> `base_model.visual.proj`.
    """
    if name.startswith("classifier."):
        return name
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
