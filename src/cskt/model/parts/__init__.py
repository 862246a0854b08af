"""Parts of methods: prompts, adapters, low-rank updates, embedding heads, one file each; plug-ins add others.

To add a part, write a subclass of `Part` in a file of its own and decorate it with `register`.
"""

from __future__ import annotations

from cskt.model.parts.adapters import Adapters
from cskt.model.parts.base import PARTS, EmbedWords, Part, PartExtras, Side, complete_parts, part_config, register
from cskt.model.parts.dm_adapter import DMAdapter
from cskt.model.parts.lora import Lora
from cskt.model.parts.prompts import PromptLearner
from cskt.model.parts.token_selection import TokenSelection
from cskt.model.parts.up_person import UpPerson

__all__ = [
    "PARTS", "Adapters", "DMAdapter", "EmbedWords", "Lora", "Part", "PartExtras", "PromptLearner", "Side",
    "TokenSelection", "UpPerson",
    "complete_parts", "part_config", "register",
]  # fmt: skip
