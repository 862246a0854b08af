"""Interface of the losses, and the terms that several of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.errors import CsktError
from cskt.plugins import Registry
from cskt.utils.modules import reset_parameters

Negatives = Literal["identities", "images", "pairs", "classes"]
"""Wrong answers that a loss compares with: the pairs of other identities or of other images in the batch, all other
pairs of the batch, or the other identities of the training split."""
Reduction = Literal["mean", "sum", "none"]


class Embeddings(NamedTuple):
    """Embeddings that a method part makes of the pairs of a batch."""

    image: Tensor
    text: Tensor
    """[B, E] not normalised."""


@dataclass(frozen=True)
class LossInputs:
    """Tensors of a batch of B pairs, image i with caption i.

    Features, identities, images and what method parts add are those of the whole batch. Logits, which need no other
    row, are those of the b rows that this process computes.
    """

    image_features: Tensor
    text_features: Tensor
    """[B, D] raw, not normalised."""
    pids: Tensor
    """[B] int64 identities."""
    image_ids: Tensor | None = None
    """[B] int64 images."""
    image_logits: Tensor | None = None
    text_logits: Tensor | None = None
    id_labels: Tensor | None = None
    """[b, C] identity logits of one classifier, and [b] int64 identities in [0, C)."""
    mlm_logits: Tensor | None = None
    mlm_labels: Tensor | None = None
    """[M, V] logits of masked words, and their [M] int64 ids."""
    embeddings: Mapping[str, Embeddings] = field(default_factory=dict)
    """Embeddings by method part, of the parts with an embedding head."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, ...] tensors that method parts hand over, by `<part>.<side>.<name>`, side vision or text."""
    pair_weights: Tensor | None = None
    """[B] float, at least 0: the factor of each pair's loss, see `reduced`; None if all are 1."""
    row_weights: Tensor | None = None
    mlm_weights: Tensor | None = None
    """[b] and [M] weights of the pairs to which the rows of `id_labels` and of `mlm_labels` belong."""
    views: Mapping[str, Tensor] = field(default_factory=dict)
    """Raw features of further augmented views of the images, [B, D] by name (`augment.views`)."""
    target_text_features: Tensor | None = None
    """[B, D] raw features of the captions from a further pass without gradient, of which a loss can make soft targets;
    None if nothing in the text tower is random, so that they equal `text_features`."""
    logit_scale: Tensor | None = None
    """Scalar, the learned factor of cosines, for a loss with `head = "logit_scale"`."""
    step: int = 0
    """Number of batches before this one since the training began."""
    steps_per_epoch: int = 1
    """Batches of the first epoch."""

    def __post_init__(self) -> None:
        check_pairs(self.image_features, self.text_features, self.pids)
        check_weights(self.pair_weights, len(self.pids))

    @property
    def scale(self) -> Tensor:
        """The learned factor of cosines; raises CsktError if there is none."""
        if self.logit_scale is None:
            raise CsktError('the loss needs a learned logit_scale; set `head = "logit_scale"` in its class')
        return self.logit_scale

    def view(self, name: str) -> Tensor:
        """Return the features of a further view of the images, [B, D]; raise CsktError if there is no such view."""
        if name not in self.views:
            known = ", ".join(self.views) or "none"
            raise CsktError(f"the loss needs a view '{name}' of the images (augment.views); views of this run: {known}")
        return self.views[name]

    def of_head(self, part: str) -> LossInputs:
        """Return these inputs with the embeddings of a method part in place of the features.

        Raises:
            CsktError: the model has no such part, or it has no embedding head.

        Example:
            >>> pairs = Embeddings(torch.eye(2), torch.eye(2))
            >>> inputs = LossInputs(torch.ones(2, 3), torch.ones(2, 3), torch.arange(2), embeddings={"tokens": pairs})
            >>> inputs.of_head("tokens").image_features.shape
            torch.Size([2, 2])
        """
        if part not in self.embeddings:
            known = ", ".join(self.embeddings) or "none"
            raise CsktError(f"the loss needs an embedding head of the method part '{part}'; heads of this run: {known}")
        image, text = self.embeddings[part]
        return dataclasses.replace(self, image_features=image, text_features=text)


class Sizes(NamedTuple):
    """Sizes that a loss with parameters of its own needs."""

    embed_dim: int
    """Width D of the features."""
    num_identities: int
    """Number of people in the training split."""
    vocab_size: int
    """Number of tokens."""


class Loss(nn.Module):
    """A loss: its constants are its fields, its value is the result of calling it.

    A subclass is a dataclass (`@dataclass(eq=False)`) in a file of its own, with a pure function that computes the
    value. `register` makes it known to configurations: `loss.weights` names it, `loss.<name>.<field>` sets a constant.

    Example:
        >>> from dataclasses import dataclass
        >>> from cskt.losses import Loss, LossInputs
        >>> @dataclass(eq=False)
        ... class PairDistance(Loss):
        ...     power: float = 2.0
        ...     def forward(self, inputs: LossInputs) -> torch.Tensor:
        ...         return (inputs.image_features - inputs.text_features).norm(dim=1).pow(self.power).mean()
        >>> PairDistance(power=1.0)(LossInputs(torch.eye(4), torch.zeros(4, 4), torch.arange(4))).item()
        1.0
    """

    head: ClassVar[Literal["classifier", "interaction", "logit_scale"] | None] = None
    """Training head whose output the loss needs."""
    needs_targets: ClassVar[bool] = False
    """True if the loss uses `LossInputs.target_text_features`, for which captions may be encoded a second time."""
    by_row: ClassVar[bool] = False
    """True for a mean over rows that look at no other row: the loss of a batch in parts is then the mean of the losses
    of its parts, weighted by their sizes."""
    takes_pair_weights: ClassVar[bool] = False
    """True if `forward` multiplies the loss of each pair by `LossInputs.pair_weights`, or is no loss of pairs, such as
    the balance of experts; a hook that sets weights is refused otherwise."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make a module whose fields the dataclass sets afterwards."""
        loss = super().__new__(cls)
        nn.Module.__init__(loss)
        return loss

    @property
    def negatives(self) -> Negatives | None:
        """Wrong answers that the loss compares with; None if it needs none."""
        return None

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the further views of the images that the loss needs, keys of `augment.views`."""
        return ()

    def setup(self, sizes: Sizes) -> None:
        """Make the modules and parameters of the loss, if it has any of its own.

        They train, and are saved with the training heads. Training calls this once, before `initialise`.
        """

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial values, by default with `reset_parameters` of each module.

        Args:
            generator: CPU generator; the same state gives the same values on every device.
        """
        reset_parameters(self, generator)

    def num_terms(self, inputs: LossInputs) -> int | Tensor | None:
        """Return the number of terms in the mean of a by-row loss, or the sum of their weights if pairs have weights.

        By default there is one term per row, and None stands for their number.
        """
        return None if inputs.row_weights is None else inputs.row_weights.sum()

    def forward(self, inputs: LossInputs) -> Tensor:
        """Return the loss of a batch, a scalar in float32."""
        raise NotImplementedError

    def per_pair(self, inputs: LossInputs) -> Tensor:
        """Return the loss of each pair of a batch without weights, [B] float32, for hooks (`run.pair_losses`).

        Raises:
            CsktError: the loss is no sum over pairs.
        """
        raise CsktError(f"{type(self).__name__} has no value for each pair; choose another loss, or define per_pair")


class PairLoss(Loss):
    """A loss of single pairs, which is reduced to a weighted mean or sum; a subclass defines `value`."""

    takes_pair_weights: ClassVar = True
    reduction: ClassVar[Reduction] = "mean"
    """Reduction of the losses of a batch in training."""

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        """Return the loss, as `reduced` describes it."""
        raise NotImplementedError

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.value(inputs, inputs.pair_weights, self.reduction)

    def per_pair(self, inputs: LossInputs) -> Tensor:
        return self.value(inputs, None, "none")


LOSSES: Registry[type[Loss]] = Registry("loss", "cskt.losses")
"""Loss by its name in a config."""
Kind = TypeVar("Kind", bound=type[Loss])


def register(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a loss known to configurations.

    Args:
        name: letters, digits and `_`; the key of the loss in `loss.weights`.

    Raises:
        CsktError: the name is taken or malformed, or what is decorated is no `Loss` with the fields of a dataclass.

    Example:
        >>> from dataclasses import dataclass
        >>> from cskt.losses import ITCLoss, register
        >>> @register("sharp_itc")
        ... @dataclass(eq=False)
        ... class SharpITC(ITCLoss):
        ...     temperature: float = 0.01
    """

    def add(kind: Kind) -> Kind:
        if not (name.isidentifier() and isinstance(kind, type) and issubclass(kind, Loss) and is_dataclass(kind)):
            raise CsktError(f"loss '{name}': give a name of letters, digits and _, and a dataclass that extends Loss")
        return LOSSES.register(name, kind)

    return add


def check_pairs(images: Tensor, texts: Tensor, pids: Tensor | None = None) -> None:
    """Check features, or logits, of B images and their captions, [B, D], and their identities [B]."""
    if images.ndim != 2 or images.shape != texts.shape or not images.numel():
        raise CsktError(f"images have shape {list(images.shape)}, captions {list(texts.shape)}; give [B, D] of both")
    if pids is not None and pids.shape != images.shape[:1]:
        raise CsktError(f"{len(images)} pairs with identities {list(pids.shape)}; give one identity for each, [B]")


def check_weights(weights: Tensor | None, num_rows: int) -> None:
    """Check that there is a weight for each row, [num_rows], or none at all; values are not read on a GPU."""
    if weights is None:
        return
    if weights.shape != (num_rows,):
        raise CsktError(f"weights have shape {list(weights.shape)}; give [{num_rows}], one for each row")
    if weights.device.type == "cpu" and not ((weights >= 0) & weights.isfinite()).all():
        raise CsktError("a weight is negative or not finite; give numbers of at least 0")


def check_classes(logits: Tensor, labels: Tensor, name: str) -> None:
    """Check logits [n, C] with labels [n] int64 in [0, C); their range is not read on a GPU, which would wait."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        shapes = f"{list(logits.shape)} with {name} {list(labels.shape)} {labels.dtype}"
        raise CsktError(f"logits {shapes}; give [n, C] with [n] int64")
    if labels.device.type == "cpu" and ((labels < 0) | (labels >= logits.shape[1])).any():
        raise CsktError(f"{name} must be from 0 to {logits.shape[1] - 1}, as the logits have {logits.shape[1]} classes")


def check_positive(value: float, name: str) -> None:
    """Check a constant that divides, or is in a logarithm."""
    if not value > 0:
        raise CsktError(f"{name} is {value}; give a number above 0")


def full_precision(features: Tensor) -> torch.autocast:
    """Return a context that turns autocast off: at a temperature of 0.02 a rounded cosine gives another loss."""
    return torch.autocast(features.device.type, enabled=False)


def cosines(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return the cosine of every image and caption, [B, B], from raw features [B, D]."""
    return F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T


def same(ids: Tensor) -> Tensor:
    """Return [B, B] float 1 where row and column share an id, else 0."""
    return (ids[:, None] == ids[None, :]).float()


def divergence(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return KL(softmax(logits) || labels + epsilon) of each row."""
    log_predicted = F.log_softmax(logits, dim=1)
    return (log_predicted.exp() * (log_predicted - torch.log(labels + epsilon))).sum(dim=1)


def reduced(values: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Return the losses of single pairs, [B], times the weights, as their mean or sum or one by one.

    The mean is sum(weights * values) / sum(weights), and 0 if all weights are 0. A pair of weight 0 adds nothing of its
    own, but remains a negative to the others: weights multiply the loss of a pair, as in the released code of RDE
    (Qin et al., CVPR 2024).

    Args:
        values: [B].
        weights: [B], finite and at least 0; None: all are 1.
        reduction: `mean`, `sum` or `none`.

    Example:
        >>> from cskt.losses import reduced
        >>> reduced(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 0.0]), "mean").item()
        1.5
    """
    if reduction not in get_args(Reduction):
        raise CsktError(f"reduction is '{reduction}'; give mean, sum or none")
    check_weights(weights, len(values))
    if weights is not None:
        values = weights * values
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if weights is None:
        return values.mean()
    total = weights.sum()
    return values.sum() / total.where(total > 0, 1.0)


def both_directions(
    of_rows: Callable[[Tensor], Tensor], matrix_BB: Tensor, pair_weights: Tensor | None, reduction: Reduction
) -> Tensor:
    """Return the sum of the `reduced` losses of the rows and of the columns: image to text, and text to image.

    Args:
        of_rows: computes the losses [B] of the rows of a matrix [B, B].
        matrix_BB: [B, B] of similarities or logits, one row per image.
        pair_weights, reduction: as for `reduced`.
    """
    image_to_text, text_to_image = (
        reduced(of_rows(rows_BB), pair_weights, reduction) for rows_BB in (matrix_BB, matrix_BB.T)
    )
    return image_to_text + text_to_image


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Return the `reduced` cross-entropy of rows, [n, C] with labels [n] int64 or probabilities [n, C]."""
    if weights is None and reduction in get_args(Reduction):
        return F.cross_entropy(logits, labels, reduction=reduction)
    return reduced(F.cross_entropy(logits, labels, reduction="none"), weights, reduction)
