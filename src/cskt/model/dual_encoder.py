"""`DualEncoder`: CLIP's two towers with the parts of a method, and which of their parameters train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cskt.config import METHOD_SECTIONS, ClipArchitecture
from cskt.errors import CsktError
from cskt.model.blocks import Block, Observed, TowerExtras, block_deviations
from cskt.model.clip import PlacedCaptions, TextTower, VisionTower
from cskt.model.dropout import AttentionDropout
from cskt.model.heads import TowerOutputs, image_outputs, needed, ranking_vector, text_outputs
from cskt.model.parts import PARTS, EmbedWords, Part
from cskt.model.parts.base import SIDES, PartExtras, Side, check_extras, check_part, joined, part_configs
from cskt.utils.messages import described

TOWERS = ("vision.", "text.")
"""Prefixes of the names of CLIP's own parameters; all other parameters belong to method parts."""
PROJECTIONS = ("vision.proj", "text.proj")


class DualEncoder(nn.Module):
    """Images and captions to features of one space, not normalised.

    With embedding heads (`Part.embed`), `encode_image` and `encode_text` return vectors made of the features and of the
    embeddings of all heads (`heads.ranking_vector`); `image_outputs` and `text_outputs` return what these are made of.

    The parameters of a new model are uninitialised: fill the towers with `cskt.model.io.weights.load_state` or
    `initialise_backbone`, then call `initialise_method`.

    Args:
        architecture: sizes of the towers.
        method: name of a method part -> its config, as `RunConfig.method`; without parts it is plain CLIP.
        trainable: `added` (the parameters of all parts), `projections` (these and the two output projections), `all`
            or `none`.
        frozen: prefixes of the names of parameters that do not train although `trainable` names them.

    Raises:
        CsktError: an unknown part, or a part that does not fit the towers or another part; or `frozen` has a prefix
            that matches no parameter.

    Example:
        >>> from cskt.config import ClipArchitecture, LoraConfig
        >>> model = DualEncoder(ClipArchitecture(), {"lora": LoraConfig(sides="text", targets=["query"])})
        >>> model.trainable_names()[0]
        'lora.text.0.query.down'
    """

    def __init__(
        self,
        architecture: ClipArchitecture,
        method: Mapping[str, Any] | None = None,
        trainable: str = "added",
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.vision = VisionTower(architecture)
        self.text = TextTower(architecture)
        self.parts = nn.ModuleDict()
        """Parts of the config section `parts`, by name; prompts, adapters and LoRA are attributes of their own."""
        for name, config in part_configs(method or {}).items():
            if PARTS[name].is_active(config):
                home = self if name in METHOD_SECTIONS else self.parts
                home.add_module(name, PARTS[name](config, architecture))
        self.num_text_slots = self._check_parts()
        """Number of prompt tokens in every caption."""
        self.needs_tokens = bool(self.heads) or any(_records(self._part_extras(side)) for side in SIDES)
        """True if losses need more than the two features: embeddings of heads, or records of branches."""
        trained = {"added": (), "projections": PROJECTIONS, "all": TOWERS, "none": ()}[trainable]
        for name, parameter in self.named_parameters():
            is_added = not name.startswith(TOWERS) and trainable != "none"
            is_named = is_added or name.startswith(trained)
            parameter.requires_grad_(is_named and not name.startswith(tuple(frozen)))
        names = [name for name, _ in self.named_parameters()]
        if wrong := next((start for start in frozen if not any(name.startswith(start) for name in names)), None):
            raise CsktError(f"frozen: no parameter name starts with '{wrong}'; give a prefix such as vision.conv1")

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] float, normalised with the architecture's mean and std -> [B, embed_dim], the vectors
        whose cosines rank, not normalised."""
        if heads := self.heads:
            return ranking_vector(heads, "vision", self.image_outputs(images))
        return self.image_features(images)

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """Caption ids [B, L] int64, start and end tokens included, no prompt slots -> [B, embed_dim] likewise."""
        if heads := self.heads:
            return ranking_vector(heads, "text", self.text_outputs(caption_ids))
        return self.text_features(caption_ids)

    @property
    def embed_dim(self) -> int:
        """Length of the vectors of `encode_image` and `encode_text`: D, and the widths of all embedding heads."""
        return self.architecture.embed_dim + sum(head.embedding_width or 0 for head in self.heads.values())

    @property
    def heads(self) -> dict[str, Part]:
        """Parts with an embedding head by name."""
        return {name: part for name, part in self.method_parts().items() if part.embedding_width is not None}

    def image_features(self, images: Tensor) -> Tensor:
        """Images as for `encode_image` -> [B, D], the features of the class tokens, not normalised."""
        return self.vision.project(self.vision.class_token(images, self.extras("vision")))

    def text_features(self, caption_ids: Tensor, dropout: AttentionDropout | None = None) -> Tensor:
        """Caption ids as for `encode_text` -> [B, D], the features of the end tokens, not normalised.

        `dropout` acts on the attention of the text tower, which then has no prompts.
        """
        extras = self.extras("text")
        return self.text.project(self.text.end_token(self.place(caption_ids), extras, dropout=dropout))

    def forward(
        self, images: Tensor, caption_ids: Tensor, dropout: AttentionDropout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return image and text features [B, D] of a batch of pairs."""
        return self.image_features(images), self.text_features(caption_ids, dropout)

    def image_outputs(self, images: Tensor, *, records: bool = False) -> TowerOutputs:
        """Encode every token of the images; `records` adds `Part.outputs`, which losses may need."""
        observed, added = needed(self.heads, records=records), self._part_extras("vision")
        found = image_outputs(self.vision, images, observed, joined(added))
        return found._replace(extra=self._outputs("vision", added, observed, found.mask))

    def text_outputs(
        self, caption_ids: Tensor, *, records: bool = False, dropout: AttentionDropout | None = None
    ) -> TowerOutputs:
        """Encode every token of the captions, likewise; for `dropout` see `text_features`."""
        observed, added = needed(self.heads, records=records), self._part_extras("text")
        found = text_outputs(self.text, self.place(caption_ids), observed, joined(added), dropout=dropout)
        return found._replace(extra=self._outputs("text", added, observed, found.mask))

    def _outputs(
        self, side: Side, added: Mapping[str, PartExtras], observed: Observed, mask: Tensor
    ) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for name, branches in _records(added).items() if observed.needs_records else ():
            records = [observed.records_by_block[index][branch] for index, branch in branches]
            given = self.method_parts()[name].outputs(side, records, mask)
            for key, value in given.items() if isinstance(given, Mapping) else [("", given)]:
                if not key or not isinstance(value, Tensor) or value.shape[:1] != mask.shape[:1]:
                    where = f"method part '{name}': outputs returned {described(value)}" + (
                        f" as '{key}'" if key else ""
                    )
                    raise CsktError(f"{where}; expected tensors [B, ...] by name")
            outputs |= {f"{name}.{side}.{key}": value for key, value in given.items()}
        return outputs

    def place(self, caption_ids: Tensor) -> PlacedCaptions:
        """Insert the slots of this model's prompts into captions."""
        return self.text.place(caption_ids, self.num_text_slots)

    @property
    def method(self) -> dict[str, Any]:
        """Name of every part -> its config."""
        return {name: part.config for name, part in self.method_parts().items()}

    def method_parts(self) -> dict[str, Part]:
        """Return the parts by name, those of the package first."""
        parts = dict([*self.named_children(), *self.parts.items()])
        return {name: part for name, part in parts.items() if isinstance(part, Part)}

    def extras(self, side: Side) -> TowerExtras:
        """Return what the method adds to one tower, with the parameters as they are now."""
        return joined(self._part_extras(side))

    def _part_extras(self, side: Side) -> dict[str, PartExtras]:
        added = {name: part.extras(side) for name, part in self.method_parts().items()}
        if wrong := next((name for name, extras in added.items() if not isinstance(extras, PartExtras)), None):
            raise CsktError(f"method part '{wrong}': extras returned {described(added[wrong])}; expected PartExtras")
        return added

    @torch.no_grad()
    def _check_parts(self) -> int:
        """Check the parts, and return the number of prompts of the text tower."""
        added = {side: self._part_extras(side) for side in SIDES}
        for side, extras in added.items():
            check_extras(extras, side, self.architecture)
        for name, part in self.method_parts().items():
            check_part(name, part)
        slots = sum(len(text.prompts[0]) for text in added["text"].values() if text.prompts)
        if slots > self.architecture.context_length - 3:
            raise CsktError(f"{slots} prompts leave no word in {self.architecture.context_length} positions")
        return slots

    def bare(self) -> DualEncoder:
        """Return zero-shot CLIP: the same towers, shared and not copied, without the parts of the method."""
        with torch.device("meta"):
            plain = DualEncoder(self.architecture, trainable="none")
        plain.vision, plain.text = self.vision, self.text
        return plain

    def fold_low_rank(self) -> None:
        """Remove the parts that are low-rank updates alone, and add these to the weights: the same function, faster."""
        for name, part in self.method_parts().items():
            by_side = {side: part.extras(side) for side in SIDES}
            is_alone = all(added.kinds <= {"low_rank"} for added in by_side.values())
            if is_alone and part.embedding_width is None:
                fold_low_rank(self.vision, joined({name: by_side["vision"]}))
                fold_low_rank(self.text, joined({name: by_side["text"]}))
                delattr(self if name in METHOD_SECTIONS else self.parts, name)

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
    def initialise_method(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw the initial values of all parts, in order; see `Part.initialise`."""
        for part in self.method_parts().values():
            part.initialise(generator, embed_words)

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


def fold_low_rank(tower: VisionTower | TextTower, extras: TowerExtras) -> None:
    """Add low-rank updates to the weights of a tower."""
    for index, block in enumerate(tower.blocks):
        assert isinstance(block, Block)
        block.fold(extras.of_block(index).low_rank)


def _records(added: Mapping[str, PartExtras]) -> dict[str, list[tuple[int, nn.Module]]]:
    """Return the branches that make records by their part, each with the index of its block."""
    found: dict[str, list[tuple[int, nn.Module]]] = {}
    for name, extras in added.items():
        for index, branch in enumerate(extras.beside_mlp or ()):
            if branch is not None and hasattr(branch, "record"):
                found.setdefault(name, []).append((index, branch))
    return found
