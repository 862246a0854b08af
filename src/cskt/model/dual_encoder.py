"""`DualEncoder`: CLIP's two towers together with what a method adds, and the word on which of it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.model.adapters import build_adapters
from cskt.model.clip import TextTower, VisionTower
from cskt.model.prompts import PromptLearner

ADDED = ("prompts.", "adapters.")
PROJECTIONS = ("vision.proj", "text.proj")


class DualEncoder(nn.Module):
    """Images and captions into one space; raw features, normalised only by who compares them.

    A new model holds unset memory: load a backbone (`weights.load_backbone`) or call `initialise_backbone`, then
    `initialise_added`.

    Args:
        architecture: sizes of the towers.
        prompts: which prompts are learned.
        adapters: which adapters are learned.
        trainable: `added` (prompts, couplings, adapters), `projections` (these and the two output projections),
            `all` or `none`.
    """

    def __init__(
        self,
        architecture: ClipArchitecture,
        prompts: PromptConfig,
        adapters: AdapterConfig,
        trainable: str = "added",
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.adapter_config = adapters
        self.vision = VisionTower(architecture)
        self.text = TextTower(architecture)
        self.prompts = PromptLearner(prompts, architecture)
        self.adapters = build_adapters(adapters, architecture)
        prefixes = {"added": ADDED, "projections": ADDED + PROJECTIONS, "all": ("",), "none": ()}[trainable]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))

    def encode_image(self, images: Tensor) -> Tensor:
        """Raw image features.

        Args:
            images: [B, 3, H, W] float, normalised as CLIP does, of the architecture's height and width.

        Returns:
            [B, D], not normalised.
        """
        hidden = self.vision(images, prompts=self.prompts().vision, adapters=self._adapters("vision"))
        return self.vision.project(hidden[:, 0])

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """Raw text features.

        Args:
            caption_ids: [B, L] int64, start and end tokens included, no prompt slots; L up to the context length.
                Not changed.

        Returns:
            [B, D], not normalised.
        """
        placed = self.text.place(caption_ids, self.prompts.num_text_slots)
        hidden = self.text(placed, prompts=self.prompts().text, adapters=self._adapters("text"))
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.text.project(hidden[rows, placed.end_positions])

    def forward(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(image features [B, D], text features [B, D]) of a batch of pairs; see the two encoders."""
        return self.encode_image(images), self.encode_text(caption_ids)

    def bare(self) -> DualEncoder:
        """The same towers, shared and not copied, without prompts and adapters: zero-shot CLIP."""
        with torch.device("meta"):
            plain = DualEncoder(
                self.architecture, PromptConfig(directions="none"), AdapterConfig(sides="none"), trainable="none"
            )
        plain.vision, plain.text = self.vision, self.text
        return plain

    def _adapters(self, side: str) -> nn.ModuleList | None:
        if side not in self.adapters:
            return None
        modules = self.adapters[side]
        assert isinstance(modules, nn.ModuleList)
        return modules

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
        """Draw the starting values of prompts, couplings and adapters.

        Args:
            generator: CPU generator; the same state gives the same values on every device.
            word_ids: [n] int64 token ids whose embeddings start block 0's text prompts; none leaves those random.
        """
        words = None if word_ids is None else self.text.token_embedding.weight[word_ids]
        self.prompts.initialise(generator, words)
        for side in self.adapters.values():
            for adapter in side:  # type: ignore[attr-defined]
                adapter.initialise(self.adapter_config, generator)

    @torch.no_grad()
    def initialise_backbone(self, generator: torch.Generator) -> None:
        """Random towers as CLIP starts them (Radford et al. 2021, released `initialize_parameters`)."""
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
