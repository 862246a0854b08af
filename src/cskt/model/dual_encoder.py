"""`DualEncoder`: CLIP's two towers together with what a method adds, and the word on which of it trains."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cskt.config import AdapterConfig, ClipArchitecture, LoraConfig, PromptConfig
from cskt.model.blocks import QUERY_KEY_VALUE, Additions, pick
from cskt.model.clip import PlacedCaptions, TextTower, VisionTower
from cskt.model.parts.adapters import build_adapters
from cskt.model.parts.lora import LowRank, build_lora
from cskt.model.parts.prompts import PromptLearner

ADDED = ("prompts.", "adapters.", "lora.")
PROJECTIONS = ("vision.proj", "text.proj")


NO_PROMPTS, NO_ADAPTERS, NO_LORA = PromptConfig(directions="none"), AdapterConfig(sides="none"), LoraConfig()
LAYERS = {
    "query": "attn.in_proj", "key": "attn.in_proj", "value": "attn.in_proj", "out": "attn.out_proj",
    "fc": "mlp.c_fc", "proj": "mlp.c_proj",
}  # fmt: skip
"""Target of a low-rank update -> the layer of a block that it belongs to."""


class TextTokens(NamedTuple):
    """A batch of captions, token by token; prompt slots are left out."""

    tokens: Tensor
    """[B, L, D] in the shared space, not normalised; position l belongs to the caption's token l."""
    features: Tensor
    """[B, D], the rows of the end tokens."""


class DualEncoder(nn.Module):
    """Images and captions into one space; raw features, normalised only by who compares them.

    A new model holds unset memory: load a backbone (`weights.load_backbone`) or call `initialise_backbone`, then
    `initialise_added`.

    Args:
        architecture: sizes of the towers.
        prompts: which prompts are learned.
        adapters: which adapters are learned.
        lora: which low-rank updates are learned.
        trainable: `added` (prompts, couplings, adapters, low-rank updates), `projections` (these and the two output
            projections), `all` or `none`.
    """

    def __init__(
        self,
        architecture: ClipArchitecture,
        prompts: PromptConfig,
        adapters: AdapterConfig,
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
        prefixes = {"added": ADDED, "projections": ADDED + PROJECTIONS, "all": ("",), "none": ()}[trainable]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))

    def encode_image(self, images: Tensor) -> Tensor:
        """Raw image features.

        Args:
            images: [B, 3, H, W] float, of the architecture's height and width, normalised with its mean and std.

        Returns:
            [B, D], not normalised.
        """
        return self.vision.project(self.vision.class_token(images, self.additions("vision")))

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """Raw text features.

        Args:
            caption_ids: [B, L] int64, start and end tokens included, no prompt slots; L up to the context length.
                Not changed.

        Returns:
            [B, D], not normalised.
        """
        return self.text.project(self.text.end_token(self.place(caption_ids), self.additions("text")))

    def forward(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(image features [B, D], text features [B, D]) of a batch of pairs; see the two encoders."""
        return self.encode_image(images), self.encode_text(caption_ids)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Every token of the images in the shared space, for losses that look at more than the feature.

        Returns:
            [B, N, D], not normalised: the class token, which is the image's feature, then the patches; no prompts.
        """
        return self.vision.project(self.vision(images, self.additions("vision")))

    def text_tokens(self, caption_ids: Tensor) -> TextTokens:
        """Every token of the captions in the shared space; see `encode_text` and `TextTokens`."""
        placed = self.place(caption_ids)
        tokens = self.text.project(self.text(placed, self.additions("text")))
        ends = placed.end_positions - self.prompts.num_text_slots
        return TextTokens(tokens, pick(tokens, ends)[:, 0])

    def place(self, caption_ids: Tensor) -> PlacedCaptions:
        """Captions with room for this model's prompts."""
        return self.text.place(caption_ids, self.prompts.num_text_slots)

    def additions(self, side: Literal["vision", "text"]) -> Additions:
        """What the method adds to one tower, as it is now."""
        prompts = self.prompts()
        return Additions(
            prompts=prompts.vision if side == "vision" else prompts.text,
            adapters=_module_list(self.adapters, side),
            low_rank=_module_list(self.lora, side),
        )

    def bare(self) -> DualEncoder:
        """The same towers, shared and not copied, without what a method adds: zero-shot CLIP."""
        with torch.device("meta"):
            plain = DualEncoder(self.architecture, NO_PROMPTS, NO_ADAPTERS, trainable="none")
        plain.vision, plain.text = self.vision, self.text
        return plain

    @torch.no_grad()
    def fold_lora(self) -> None:
        """Add the low-rank updates to the weights that they update, and drop them: the same function, at no cost."""
        for side, blocks in (("vision", self.vision.blocks), ("text", self.text.blocks)):
            for block, updates in zip(blocks, _module_list(self.lora, side) or (), strict=False):
                assert isinstance(updates, nn.ModuleDict)
                for target, update in updates.items():
                    assert isinstance(update, LowRank)
                    layer = block.get_submodule(LAYERS[target])
                    assert isinstance(layer, nn.Linear)
                    delta, whole = update.delta(), layer.weight.clone()
                    first = len(delta) * QUERY_KEY_VALUE.index(target) if target in QUERY_KEY_VALUE else 0
                    whole[first : first + len(delta)] += delta
                    layer.weight = nn.Parameter(whole, layer.weight.requires_grad)
        self.lora = build_lora(NO_LORA, self.architecture)
        self.method_configs["lora"] = NO_LORA

    def trainable_names(self) -> list[str]:
        """Names of the parameters that train, in order."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """Number of scalars, of all parameters or of those that train."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def checkpoint_activations(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.vision.checkpoint_activations = self.text.checkpoint_activations = enabled

    @torch.no_grad()
    def initialise_added(self, generator: torch.Generator, word_ids: Tensor | None = None) -> None:
        """Draw the starting values of prompts, couplings, adapters and low-rank updates.

        Args:
            generator: CPU generator; the same state gives the same values on every device.
            word_ids: [n] int64 token ids whose embeddings start block 0's text prompts; none leaves those random.
        """
        words = None if word_ids is None else self.text.token_embedding.weight[word_ids]
        self.prompts.initialise(generator, words)
        for side in self.adapters.values():
            for adapter in side:  # type: ignore[attr-defined]
                adapter.initialise(self.method_configs["adapters"], generator)
        for update in self.lora.modules():
            if isinstance(update, LowRank):
                update.initialise(generator)

    @torch.no_grad()
    def initialise_backbone(self, generator: torch.Generator) -> None:
        """Draw random towers with the standard deviations of CLIP's text tower (Radford et al. 2021, released
        `initialize_parameters`) for both; all biases are zero, which the released code leaves as PyTorch draws them."""
        for tower, width, layers in (
            (self.vision, self.architecture.vision_width, self.architecture.vision_layers),
            (self.text, self.architecture.text_width, self.architecture.text_layers),
        ):
            attention_std, fc_std = width**-0.5, (2 * width) ** -0.5
            output_std = attention_std * (2 * layers) ** -0.5
            for name, parameter in tower.named_parameters():
                if ".ln_" in f".{name}":
                    parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                elif name.endswith("bias"):
                    parameter.zero_()
                elif name.endswith(("out_proj.weight", "c_proj.weight")):
                    parameter.normal_(std=output_std, generator=generator)
                elif name.endswith("c_fc.weight"):
                    parameter.normal_(std=fc_std, generator=generator)
                elif name == "conv1.weight":
                    fan_in = parameter[0].numel()
                    parameter.normal_(std=fan_in**-0.5, generator=generator)
                elif name == "token_embedding.weight":
                    parameter.normal_(std=0.02, generator=generator)
                elif name == "positional_embedding" and tower is self.text:
                    parameter.normal_(std=0.01, generator=generator)
                else:
                    parameter.normal_(std=attention_std, generator=generator)


def _module_list(by_side: nn.ModuleDict, side: str) -> nn.ModuleList | None:
    """What a method adds to the blocks of one tower; none if nothing."""
    if side not in by_side:
        return None
    modules = by_side[side]
    assert isinstance(modules, nn.ModuleList)
    return modules
