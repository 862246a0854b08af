"""A batch through the model, and its losses with the heads that some of them need. Training only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture, LossConfig, MlmConfig
from cskt.data.masking import MaskedCaptions
from cskt.device import to_device
from cskt.errors import CsktError
from cskt.losses import Embeddings, Loss, LossInputs, Sizes, build_losses
from cskt.model.dropout import AttentionDropout
from cskt.model.dual_encoder import DualEncoder
from cskt.model.heads import TowerOutputs, embed
from cskt.model.parts import Part
from cskt.model.parts.base import Side
from cskt.model.parts.interaction import InteractionEncoder
from cskt.training.distributed import SINGLE_PROCESS_ROWS, Rows
from cskt.utils.messages import described

NO_HEADS: Mapping[str, Part] = MappingProxyType({})


@dataclass(frozen=True)
class ModelInputs:
    """A batch as the model receives it."""

    images: Tensor
    """[B / k, 3, H, W] augmented and normalised, on the training device."""
    caption_ids: Tensor
    """[B, L] int64 on the host; those of image i are rows k * i to k * i + k - 1."""
    masked: MaskedCaptions | None = None
    """The same captions with masked words, padded to the whole context, on the host; None if no loss needs tokens."""
    views: Mapping[str, Tensor] = field(default_factory=dict)
    """Further views of the images by name, as `images`."""
    dropout: AttentionDropout | None = None
    """Dropout of the text tower, with seeds of the captions on the host."""
    targets_dropout: AttentionDropout | None = None
    """That of a second pass of the captions without gradient; None for no such pass."""

    def split(self, num_pairs: int, *, cut: bool = True) -> list[ModelInputs]:
        """Return pieces of at most `num_pairs` pairs and whole images, with captions cut to the longest of a piece."""
        captions_per_image = len(self.caption_ids) // len(self.images)
        num_images = max(1, num_pairs // captions_per_image)
        pieces = []
        for first in range(0, len(self.images), num_images):
            rows = slice(captions_per_image * first, captions_per_image * (first + num_images))
            caption_ids, masked = self.caption_ids[rows], self.masked
            # The end token has the highest id.
            longest = int(caption_ids.argmax(dim=1).max()) + 1 if cut else caption_ids.shape[1]
            masked = None if masked is None else MaskedCaptions(masked.ids[rows], masked.labels[rows])
            images = slice(first, first + num_images)
            pieces.append(
                ModelInputs(
                    self.images[images],
                    caption_ids[:, :longest],
                    masked,
                    views={name: view[images] for name, view in self.views.items()},
                    dropout=None if self.dropout is None else self.dropout.of_rows(rows),
                    targets_dropout=None if self.targets_dropout is None else self.targets_dropout.of_rows(rows),
                )
            )
        return pieces


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of the model for a batch of B pairs; an image with k captions has its row k times."""

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
    of_towers: Mapping[str, Tensor] = field(default_factory=dict)
    """Fields of `TowerOutputs` that embedding heads need, [B, ...] by `<side>.<field>`."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Results of `Part.outputs`, [B, ...] by `<part>.<side>.<name>`."""
    views: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, D] raw features of further views of the images by name."""
    target_text_features: Tensor | None = None
    """[B, D] raw features of a second pass of the captions, without gradient."""


def encode(model: DualEncoder, inputs: ModelInputs, *, masked_for_all: bool) -> ModelOutputs:
    """Compute the features of a batch, and the tokens if words are masked or method parts need them; every image is
    encoded once.

    With `masked_for_all` the masked captions give the text features too, which saves a pass through the text tower.
    """
    outputs = _with_gradient(model, inputs, masked_for_all=masked_for_all)
    if inputs.targets_dropout is None:
        return outputs
    device, masked = inputs.images.device, inputs.masked
    caption_ids = masked.ids if masked is not None and masked_for_all else inputs.caption_ids
    with torch.no_grad():  # last: autocast of torch 2.10 would use weights cast here, without gradient, everywhere
        features = model.text_features(to_device(caption_ids, device), inputs.targets_dropout.to(device))
    return replace(outputs, target_text_features=features)


def _with_gradient(model: DualEncoder, inputs: ModelInputs, *, masked_for_all: bool) -> ModelOutputs:
    device, masked = inputs.images.device, inputs.masked
    caption_ids, per_image = to_device(inputs.caption_ids, device), len(inputs.caption_ids) // len(inputs.images)
    dropout = None if inputs.dropout is None else inputs.dropout.to(device)
    further: dict[str, Any] = {
        "views": {name: _to_pairs(model.image_features(view), per_image) for name, view in inputs.views.items()}
    }
    if masked is None and not model.needs_tokens:
        image_features, text_features = model(inputs.images, caption_ids, dropout)
        return ModelOutputs(_to_pairs(image_features, per_image), text_features, **further)
    image = _for_pairs(model.image_outputs(inputs.images, records=model.needs_tokens), per_image)
    of_words: dict[str, Any] = {}
    text = None
    if masked is not None:
        of_masked = model.text_outputs(
            to_device(masked.ids, device), records=model.needs_tokens and masked_for_all, dropout=dropout
        )
        text = of_masked if masked_for_all else None
        labels = masked.labels[:, : of_masked.tokens.shape[1]].flatten()
        positions = labels.nonzero().squeeze(1)
        of_words = {
            "image_tokens": image.tokens,
            "text_tokens": of_masked.tokens,
            "mlm_positions": to_device(positions, device),
            "mlm_labels": to_device(labels[positions], device),
        }
    if not model.needs_tokens:
        text_features = model.text_features(caption_ids, dropout) if text is None else text.features
        return ModelOutputs(image.tokens[:, 0], text_features, **of_words, **further)
    text = model.text_outputs(caption_ids, records=True, dropout=dropout) if text is None else text
    of_towers = _for_heads("vision", image) | _for_heads("text", text) if model.heads else {}
    return ModelOutputs(
        image.tokens[:, 0],
        text.features,
        **of_words,
        of_towers=of_towers,
        extra={**image.extra, **text.extra},
        **further,
    )


def _to_pairs(per_image: Tensor, captions_per_image: int) -> Tensor:
    return per_image.repeat_interleave(captions_per_image, dim=0) if captions_per_image > 1 else per_image


def _for_pairs(image: TowerOutputs, captions_per_image: int) -> TowerOutputs:
    """Return the outputs of images once for each of their captions."""
    if captions_per_image == 1:
        return image
    features, tokens, mask = (_to_pairs(value, captions_per_image) for value in image[:3])
    attention = None if image.attention is None else _to_pairs(image.attention, captions_per_image)
    extra = {name: _to_pairs(value, captions_per_image) for name, value in image.extra.items()}
    return TowerOutputs(features, tokens, mask, attention, extra)


def _for_heads(side: Side, found: TowerOutputs) -> dict[str, Tensor]:
    """Return what embedding heads need of the outputs of a tower, by `<side>.<field>`."""
    needed = {"tokens": found.tokens, "mask": found.mask, "attention": found.attention}
    return {f"{side}.{name}": value for name, value in needed.items() if value is not None}


def _embeddings(name: str, head: Part, of_towers: Mapping[str, Tensor], rows: Rows) -> Embeddings:
    """Return the embeddings of the whole batch that a head makes."""

    def of_side(side: Side) -> Tensor:
        own = {key.partition(".")[2]: value for key, value in of_towers.items() if key.startswith(f"{side}.")}
        if head.by_row:
            return rows.gather(embed(name, head, side, **own))
        return embed(name, head, side, **{key: rows.gather(value) for key, value in own.items()})

    return Embeddings(of_side("vision"), of_side("text"))


class Objective(nn.Module):
    """Losses by name, with the heads that they need: an identity classifier, an interaction encoder, a logit scale.
    Training only."""

    def __init__(self, config: LossConfig, mlm: MlmConfig, architecture: ClipArchitecture, num_identities: int) -> None:
        super().__init__()
        losses = build_losses(config.weights, config)
        heads, width = {loss.head for loss in losses.values()}, architecture.embed_dim
        self.classifier = nn.Linear(width, num_identities) if "classifier" in heads else None
        self.interaction = None
        if "interaction" in heads:
            self.interaction = InteractionEncoder(width, mlm.cmt_depth, architecture.vocab_size)
        self.logit_scale = nn.Parameter(torch.empty(())) if "logit_scale" in heads else None
        """Logarithm of the factor of the cosines."""
        self._initial_logit_scale, self._max_scale = config.logit_scale, config.max_logit_scale
        self.losses = nn.ModuleDict(losses)
        self._pair_weights: Tensor | None = None
        for loss in losses.values():
            loss.setup(Sizes(width, num_identities, architecture.vocab_size))

    @property
    def _typed_losses(self) -> Mapping[str, Loss]:
        """The losses with their type, which `nn.ModuleDict` does not know."""
        return cast(Mapping[str, Loss], self.losses)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the heads; the classifier starts near zero, N(0, 0.001), as in the released code of IRRA."""
        if self.classifier is not None:
            self.classifier.weight.normal_(std=0.001, generator=generator)
            self.classifier.bias.zero_()
        if self.interaction is not None:
            self.interaction.initialise(generator)
        if self.logit_scale is not None:
            self.logit_scale.fill_(math.log(self._initial_logit_scale))
        for loss in self._typed_losses.values():
            if any(True for _ in loss.parameters()):
                loss.initialise(generator)

    def share_gradients(self, world_size: int, parts: Iterable[Part] = ()) -> None:
        """Divide the gradients that every process computes in full by the number of processes, over which they are
        summed: those of losses and embedding heads with `by_row = False`, and of the logit scale."""
        modules = [module for module in (*self._typed_losses.values(), *parts) if not module.by_row]
        shared = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
        for parameter in shared if self.logit_scale is None else [*shared, self.logit_scale]:
            if world_size > 1:
                parameter.register_hook(partial(torch.mul, 1 / world_size))  # type: ignore[no-untyped-call]

    @property
    def views(self) -> list[str]:
        """Names of the further views of the images that the losses need."""
        return sorted({name for loss in self._typed_losses.values() for name in loss.views})

    @property
    def needs_targets(self) -> bool:
        """True if a loss computes soft targets of a further pass of the captions."""
        return any(loss.needs_targets for loss in self._typed_losses.values())

    def scale(self) -> Tensor | None:
        """Return the factor of the cosines, at most `loss.max_logit_scale`; None if no loss needs it.

        As in the released code of TBPS-CLIP, the gradient is that of the factor without the limit.
        """
        if self.logit_scale is None:
            return None
        scale = self.logit_scale.exp()
        return scale - (scale - scale.clamp(max=self._max_scale)).detach()

    @property
    def pair_weights(self) -> Tensor | None:
        """[num_pairs] float32 on the host, the weight of each pair of the training split; None if all count alike.

        Setting it raises CsktError if a loss does not take weights.
        """
        return self._pair_weights

    @pair_weights.setter
    def pair_weights(self, weights: Tensor | None) -> None:
        if weights is not None:
            self.check_takes_pair_weights()
        self._pair_weights = weights

    def check_takes_pair_weights(self) -> None:
        """Raise CsktError if a loss takes no weights of pairs."""
        wrong = [name for name, loss in self._typed_losses.items() if not loss.takes_pair_weights]
        if wrong:
            raise CsktError(
                f"loss '{wrong[0]}' takes no weights of pairs; take it out of loss.weights, or, if it multiplies"
                " each pair's loss by LossInputs.pair_weights, set takes_pair_weights in its class"
            )

    def weights_of(self, pair_ids: Tensor | None) -> Tensor | None:
        """Return the weights of pairs of the training split, [B]; None if all are 1, whose losses need no weights."""
        if self._pair_weights is None:
            return None
        assert pair_ids is not None, "weights are set for batches of the loader"
        weights = self._pair_weights[pair_ids]
        return None if bool((weights == 1).all()) else weights

    def forward(
        self,
        outputs: ModelOutputs,
        pids: Tensor,
        image_ids: Tensor,
        rows: Rows = SINGLE_PROCESS_ROWS,
        heads: Mapping[str, Part] = NO_HEADS,
        *,
        pair_ids: Tensor | None = None,
        step: int = 0,
        steps_per_epoch: int = 1,
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of a batch by name; a by-row loss is the share of the own rows in the whole.

        `outputs` are those of the own rows; `pids`, `image_ids` and, on the host, `pair_ids` [B] those of the whole
        batch; `heads` are the embedding heads of the model by method part, which are computed here: once, from all
        tokens of the own rows. For `step` and `steps_per_epoch` see `LossInputs`.
        """
        inputs = self.inputs(
            outputs, pids, image_ids, rows, heads,
            weights=self.weights_of(pair_ids), step=step, steps_per_epoch=steps_per_epoch,
        )  # fmt: skip
        losses = self._typed_losses
        values = {name: _scalar(name, loss(inputs)) for name, loss in losses.items()}
        return {
            name: rows.share_of_mean(values[name], loss.num_terms(inputs)) if loss.by_row else values[name]
            for name, loss in losses.items()
        }

    def inputs(
        self,
        outputs: ModelOutputs,
        pids: Tensor,
        image_ids: Tensor,
        rows: Rows,
        heads: Mapping[str, Part],
        *,
        weights: Tensor | None = None,
        step: int = 0,
        steps_per_epoch: int = 1,
    ) -> LossInputs:
        """Return the inputs of the losses for a batch; `weights` [B] are on the host, see `forward` for the others."""
        mlm_logits = mlm_weights = None
        if self.interaction is not None and outputs.mlm_positions is not None:
            mlm_logits = self.interaction(outputs.text_tokens, outputs.image_tokens, outputs.mlm_positions)
        if weights is not None:
            weights = to_device(weights, pids.device)
            if outputs.mlm_positions is not None and outputs.text_tokens is not None:
                mlm_weights = weights[rows.own][outputs.mlm_positions // outputs.text_tokens.shape[1]]
        return LossInputs(
            image_features=rows.gather(outputs.image_features.float()),
            text_features=rows.gather(outputs.text_features.float()),
            pids=pids,
            image_ids=image_ids,
            image_logits=None if self.classifier is None else self.classifier(outputs.image_features),
            text_logits=None if self.classifier is None else self.classifier(outputs.text_features),
            id_labels=pids[rows.own],
            mlm_logits=mlm_logits,
            mlm_labels=outputs.mlm_labels,
            embeddings={name: _embeddings(name, head, outputs.of_towers, rows) for name, head in heads.items()},
            extra={name: rows.gather(value) for name, value in outputs.extra.items()},
            pair_weights=weights,
            row_weights=None if weights is None else weights[rows.own],
            mlm_weights=mlm_weights,
            views={name: rows.gather(value.float()) for name, value in outputs.views.items()},
            target_text_features=(
                None if outputs.target_text_features is None else rows.gather(outputs.target_text_features.float())
            ),
            logit_scale=self.scale(),
            step=step,
            steps_per_epoch=steps_per_epoch,
        )


def _scalar(name: str, value: object) -> Tensor:
    """Check that a loss, which may be a plug-in's, returned a scalar."""
    if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
        return value
    raise CsktError(f"loss '{name}' returned {described(value)}; expected a scalar tensor of floats, such as a mean")
