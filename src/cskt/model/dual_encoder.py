"""`DualEncoder`: CLIP's two towers with the parts of a method, and which of their parameters train."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from cskt.config import AdapterConfig, ClipArchitecture, LoraConfig, PromptConfig
from cskt.model.blocks import TowerExtras, block_deviations, pick
from cskt.model.clip import PlacedCaptions, TextTower, VisionTower
from cskt.model.parts.adapters import NO_ADAPTERS, build_adapters, initialise_adapters
from cskt.model.parts.lora import NO_LORA, build_lora, fold_lora, initialise_lora
from cskt.model.parts.prompts import NO_PROMPTS, PromptLearner

METHOD_PARTS = ("prompts.", "adapters.", "lora.")
"""First letters of the names of the parameters that a method adds."""
PROJECTIONS = ("vision.proj", "text.proj")
TRAINABLE = {"added": METHOD_PARTS, "projections": METHOD_PARTS + PROJECTIONS, "all": ("",), "none": ()}
"""Value of the config key `trainable` -> first letters of the names of the parameters that train."""


class TextTokens(NamedTuple):
    """A batch of captions, token by token, without the prompt slots."""

    tokens: Tensor
    """[B, L, D] in the shared space, not normalised; position l belongs to the caption's token l."""
    features: Tensor
    """[B, D], the rows of the end tokens."""


class DualEncoder(nn.Module):
    """Images and captions to features of one space, not normalised.

    The memory of a new model is not set: load a backbone (`weights.load_backbone`) or call `initialise_backbone`, then
    `initialise_method`.

    `trainable`: `added` (prompts, couplings, adapters, low-rank updates), `projections` (these and the two output
    projections), `all` or `none`.
    """

    def __init__(
        self,
        architecture: ClipArchitecture,
        prompts: PromptConfig = NO_PROMPTS,
        adapters: AdapterConfig = NO_ADAPTERS,
        lora: LoraConfig = NO_LORA,
        trainable: str = "added",
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.method_configs: dict[str, Any] = {"prompts": prompts, "adapters": adapters, "lora": lora}
        self.vision = VisionTower(architecture)
        self.text = TextTower(architecture)
        self.prompts = PromptLearner(prompts, architecture)
        self.adapters = build_adapters(adapters, architecture)
        self.lora = build_lora(lora, architecture)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINABLE[trainable]))

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float, normalised with the architecture's mean and std -> [B, D], not normalised."""
        return self.vision.project(self.vision.class_token(images, self.extras("vision")))

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """Caption ids [B, L] int64, start and end tokens included, no prompt slots -> [B, D], not normalised."""
        return self.text.project(self.text.end_token(self.place(caption_ids), self.extras("text")))

    def forward(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and text features [B, D] of a batch of pairs."""
        return self.encode_image(images), self.encode_text(caption_ids)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Images as for `encode_image` -> tokens [B, N, D], not normalised: the image's feature, then the patches."""
        return self.vision.project(self.vision(images, self.extras("vision")))

    def text_tokens(self, caption_ids: Tensor) -> TextTokens:
        """Encode every token of the captions; see `encode_text` and `TextTokens`."""
        placed = self.place(caption_ids)
        tokens = self.text.project(self.text(placed, self.extras("text")))
        ends = placed.end_positions - self.prompts.num_text_slots
        return TextTokens(tokens, pick(tokens, ends)[:, 0])

    def place(self, caption_ids: Tensor) -> PlacedCaptions:
        """Insert the slots of this model's prompts into captions."""
        return self.text.place(caption_ids, self.prompts.num_text_slots)

    def extras(self, side: Literal["vision", "text"]) -> TowerExtras:
        """Return what the method adds to one tower, with the prompts as they are now."""
        prompts = self.prompts()
        return TowerExtras(
            prompts=prompts.vision if side == "vision" else prompts.text,
            adapters=_module_list(self.adapters, side),
            low_rank=_module_list(self.lora, side),
        )

    def bare(self) -> DualEncoder:
        """Return zero-shot CLIP: the same towers, shared and not copied, without the parts of the method."""
        with torch.device("meta"):
            plain = DualEncoder(self.architecture, trainable="none")
        plain.vision, plain.text = self.vision, self.text
        return plain

    def fold_lora(self) -> None:
        """Add the low-rank updates to the weights that they update, and remove them: the same function, faster."""
        for side, blocks in (("vision", self.vision.blocks), ("text", self.text.blocks)):
            fold_lora(blocks, _module_list(self.lora, side))
        self.lora = build_lora(NO_LORA, self.architecture)
        self.method_configs["lora"] = NO_LORA

    def trainable_names(self) -> list[str]:
        """Return the names of the parameters that train, in order."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """Return the number of scalars, of all parameters or of those that train."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def checkpoint_activations(self, enabled: bool) -> None:
        """Choose whether blocks compute their activations again in the backward pass instead of storing them."""
        self.vision.checkpoint_activations = self.text.checkpoint_activations = enabled

    @torch.no_grad()
    def initialise_method(self, generator: torch.Generator, word_ids: Tensor | None = None) -> None:
        """Draw the initial values of prompts, couplings, adapters and low-rank updates with a CPU generator.

        The embeddings of `word_ids`, [n] int64, initialise block 0's text prompts; None: drawn as the rest.
        """
        words = None if word_ids is None else self.text.token_embedding.weight[word_ids]
        self.prompts.initialise(generator, words)
        initialise_adapters(self.adapters, self.method_configs["adapters"], generator)
        initialise_lora(self.lora, generator)

    @torch.no_grad()
    def initialise_backbone(self, generator: torch.Generator) -> None:
        """Draw random towers with the standard deviations of CLIP's text tower for both (Radford et al. 2021, released
        `initialize_parameters`); all biases are zero, which the released code leaves as PyTorch draws them."""
        for tower, width, layers in (
            (self.vision, self.architecture.vision_width, self.architecture.vision_layers),
            (self.text, self.architecture.text_width, self.architecture.text_layers),
        ):
            deviations = block_deviations(width, layers) | {
                "conv1.weight": self.vision.conv1.weight[0].numel() ** -0.5,
                "token_embedding.weight": 0.02,
                "positional_embedding": 0.01 if tower is self.text else width**-0.5,
            }
            for name, parameter in tower.named_parameters():
                if ".ln_" in f".{name}":
                    parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                elif name.endswith("bias"):
                    parameter.zero_()
                else:
                    std = next((std for ending, std in deviations.items() if name.endswith(ending)), width**-0.5)
                    parameter.normal_(std=std, generator=generator)


def _module_list(by_side: nn.ModuleDict, side: str) -> nn.ModuleList | None:
    """Return what a part adds to the blocks of one tower, if it adds anything."""
    return cast(nn.ModuleList, by_side[side]) if side in by_side else None
