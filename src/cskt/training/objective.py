"""A batch through the model, and its losses with the heads that some of them need. Training only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture, LossConfig, MlmConfig
from cskt.data.images import to_device
from cskt.data.masking import MaskedCaptions
from cskt.losses import Loss, LossInputs, Sizes, build_losses
from cskt.model.dual_encoder import DualEncoder
from cskt.model.parts.interaction import InteractionEncoder
from cskt.training.distributed import SINGLE_PROCESS_ROWS, Rows


@dataclass(frozen=True)
class ModelInputs:
    """A batch as the model receives it."""

    images: Tensor
    """[B / k, 3, H, W] augmented and normalised, on the training device."""
    caption_ids: Tensor
    """[B, L] int64 on the host; those of image i are rows k * i to k * i + k - 1."""
    masked: MaskedCaptions | None = None
    """The same captions with masked words, padded to the whole context, on the host; None if no loss needs tokens."""

    def split(self, num_pairs: int) -> list[ModelInputs]:
        """Return pieces of at most `num_pairs` pairs and whole images, with captions cut to the longest of a piece."""
        captions_per_image = len(self.caption_ids) // len(self.images)
        num_images = max(1, num_pairs // captions_per_image)
        pieces = []
        for first in range(0, len(self.images), num_images):
            rows = slice(captions_per_image * first, captions_per_image * (first + num_images))
            caption_ids, masked = self.caption_ids[rows], self.masked
            longest = int(caption_ids.argmax(dim=1).max()) + 1  # the end token has the highest id
            masked = None if masked is None else MaskedCaptions(masked.ids[rows], masked.labels[rows])
            pieces.append(ModelInputs(self.images[first : first + num_images], caption_ids[:, :longest], masked))
        return pieces


@dataclass(frozen=True)
class ModelOutputs:
    """ModelOutputs of the model for a batch of B pairs; an image with k captions has its row k times."""

    image_features: Tensor
    """[B, D] raw."""
    text_features: Tensor
    """[B, D] raw."""
    image_tokens: Tensor | None = None
    """[B, N, D] every token of the images, if words are masked."""
    text_tokens: Tensor | None = None
    """[B, L, D] every token of the masked captions."""
    mlm_positions: Tensor | None = None
    """[M] int64, positions of the masked words in the B * L text tokens."""
    mlm_labels: Tensor | None = None
    """[M] int64, ids of the masked words."""


def encode(model: DualEncoder, views: ModelInputs, *, masked_for_all: bool) -> ModelOutputs:
    """Compute the features of a batch, and tokens if words are masked; every image is encoded once.

    With `masked_for_all` the masked captions give the text features too, which saves a pass through the text tower.
    """
    images, caption_ids, masked = views.images, views.caption_ids, views.masked
    captions_per_image = len(caption_ids) // len(images)

    def to_pairs(per_image: Tensor) -> Tensor:
        return per_image.repeat_interleave(captions_per_image, dim=0) if captions_per_image > 1 else per_image

    device = images.device
    if masked is None:
        image_features, text_features = model(images, to_device(caption_ids, device))
        return ModelOutputs(to_pairs(image_features), text_features)
    image_tokens = to_pairs(model.image_tokens(images))
    text = model.text_tokens(to_device(masked.ids, device))
    labels = masked.labels[:, : text.tokens.shape[1]].flatten()
    positions = labels.nonzero().squeeze(1)
    return ModelOutputs(
        image_features=image_tokens[:, 0],
        text_features=text.features if masked_for_all else model.encode_text(to_device(caption_ids, device)),
        image_tokens=image_tokens,
        text_tokens=text.tokens,
        mlm_positions=to_device(positions, device),
        mlm_labels=to_device(labels[positions], device),
    )


class Objective(nn.Module):
    """Losses by name, with the heads that they need: an identity classifier, an interaction encoder. Training only."""

    def __init__(self, config: LossConfig, mlm: MlmConfig, architecture: ClipArchitecture, num_identities: int) -> None:
        super().__init__()
        losses = build_losses(config.weights, config)
        heads, width = {loss.head for loss in losses.values()}, architecture.embed_dim
        self.classifier = nn.Linear(width, num_identities) if "classifier" in heads else None
        self.interaction = None
        if "interaction" in heads:
            self.interaction = InteractionEncoder(width, mlm.cmt_depth, architecture.vocab_size)
        self.losses = nn.ModuleDict(losses)
        for loss in losses.values():
            loss.setup(Sizes(width, num_identities, architecture.vocab_size))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the heads; the classifier starts near zero, N(0, 0.001), as in the released code of IRRA."""
        if self.classifier is not None:
            self.classifier.weight.normal_(std=0.001, generator=generator)
            self.classifier.bias.zero_()
        if self.interaction is not None:
            self.interaction.initialise(generator)
        for loss in self.losses.values():
            if any(True for _ in loss.parameters()):
                cast(Loss, loss).initialise(generator)

    def share_gradients(self, num_processes: int) -> None:
        """Divide the gradients of parameters that every process computes from the whole batch, and that are summed."""
        for loss in self.losses.values():
            if num_processes > 1 and not cast(Loss, loss).by_row:
                for parameter in loss.parameters():
                    parameter.register_hook(partial(torch.mul, 1 / num_processes))  # type: ignore[no-untyped-call]

    def forward(
        self, outputs: ModelOutputs, pids: Tensor, image_ids: Tensor, rows: Rows = SINGLE_PROCESS_ROWS
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of a batch by name; a by-row loss is the share of the own rows in the whole.

        `outputs` are those of the own rows; `pids` and `image_ids` [B] those of the whole batch.
        """
        mlm_logits = None
        if self.interaction is not None and outputs.mlm_positions is not None:
            mlm_logits = self.interaction(outputs.text_tokens, outputs.image_tokens, outputs.mlm_positions)
        inputs = LossInputs(
            image_features=rows.gather(outputs.image_features.float()),
            text_features=rows.gather(outputs.text_features.float()),
            pids=pids,
            image_ids=image_ids,
            image_logits=None if self.classifier is None else self.classifier(outputs.image_features),
            text_logits=None if self.classifier is None else self.classifier(outputs.text_features),
            id_labels=pids[rows.own],
            mlm_logits=mlm_logits,
            mlm_labels=outputs.mlm_labels,
        )
        losses = cast(dict[str, Loss], self.losses)
        return {
            name: rows.all_reduced_fraction(loss.num_terms(inputs)) * loss(inputs) if loss.by_row else loss(inputs)
            for name, loss in losses.items()
        }
