"""The losses of text-to-image retrieval, as pure functions of raw features.

Image i and caption i of a batch belong together; captions and images of the same identity do too, except where a
loss says otherwise. Features come in before any normalisation: SDM and ITC normalise inside, CMPM, the identity
loss and the triplet loss need the lengths. Everything is computed in float32, under autocast as well, because a
temperature of 0.02 turns the rounding of a half-precision cosine into a different loss. MLM is the exception in what
it looks at: the logits of masked words instead of features.

Adding a loss: write the function, give it an entry in `LOSSES`, and test it against a naive loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.errors import CsktError


@dataclass(frozen=True)
class LossInputs:
    """All that a loss may look at; `B` pairs, image i with caption i."""

    image_features: Tensor
    """[B, D] raw, not normalised."""
    text_features: Tensor
    """[B, D] raw, not normalised."""
    pids: Tensor
    """[B] int64 identities; below C where there are logits."""
    image_logits: Tensor | None = None
    """[B, C] identity logits of the images, when a classifier trains along."""
    text_logits: Tensor | None = None
    """[B, C] identity logits of the captions, from the same classifier."""
    image_ids: Tensor | None = None
    """[B] int64 images; only SDM's `other_image` asks for them."""
    mlm_logits: Tensor | None = None
    """[M, V] logits of the words that were masked, when an interaction encoder trains along."""
    mlm_labels: Tensor | None = None
    """[M] int64 ids of those words."""
    temperature: float = 0.02
    """Temperature of sdm and itc."""
    margin: float = 1.0
    """Margin of triplet."""
    tal_temperature: float = 0.015
    """Temperature of tal."""
    tal_margin: float = 0.1
    """Margin of tal."""
    sdm_other_image: float = 1.0
    """Weight of another image of the same person in the targets of sdm."""

    def __post_init__(self) -> None:
        assert self.image_features.shape == self.text_features.shape, "image i belongs to caption i"
        assert self.pids.shape == self.image_features.shape[:1], "one identity per pair"


def sdm(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    temperature: float = 0.02,
    epsilon: float = 1e-8,
    image_ids: Tensor | None = None,
    other_image: float = 1.0,
) -> Tensor:
    """Similarity distribution matching: KL(softmax(cosine / temperature) || identity labels), both directions summed.

    Source: IRRA (Jiang and Ye, CVPR 2023), equations 5 to 8.

    Args:
        image_features: [B, D], raw.
        text_features: [B, D], raw.
        pids: [B] identities; a row's label is spread evenly over the pairs of its identity.
        temperature: above 0.
        epsilon: added to the labels inside the logarithm; it sets the price of a wrong match, -log(epsilon).
        image_ids: [B], needed where `other_image` is not 1.
        other_image: label of another image of the same person before rows are divided by their sums, where the image
            itself has 1: an option of IRRA's released code, which offers 0.3. Rows are divided by their own sums here;
            there by those of the columns, a slip that shows where a person's images occur unequally often.

    Returns:
        Scalar. It is about 0 at the best (epsilon lets it fall a hair below); see `sdm_at_collapse` for its trap.
    """
    with _full_precision(image_features):
        cosine_BB = F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T
        labels_BB = _sdm_labels(pids, image_ids, other_image)
        logits_BB = cosine_BB / temperature
        return _divergence(logits_BB, labels_BB, epsilon) + _divergence(logits_BB.T, labels_BB, epsilon)


def _sdm_labels(pids: Tensor, image_ids: Tensor | None, other_image: float) -> Tensor:
    """[B, B] the targets of SDM, rows summing to 1."""
    same_BB = _same(pids)
    if other_image != 1:
        assert image_ids is not None, "which pairs show the same image?"
        same_BB = torch.where(_same(image_ids) > 0, 1.0, other_image * same_BB)
    return F.normalize(same_BB, p=1, dim=1)


def sdm_at_collapse(
    pids: Tensor, *, epsilon: float = 1e-8, image_ids: Tensor | None = None, other_image: float = 1.0
) -> Tensor:
    """The value of `sdm` when every image is equally similar to every caption of the batch.

    From weak features and at a high rate SDM is trapped there: 27.95 at 64 pairs of as many people and the default
    epsilon. A loss that stays at this value while identities differ says that training has collapsed. It is 0, and
    says nothing, for a batch of one identity.

    Args:
        pids: [B] identities of the batch.
        epsilon, image_ids, other_image: as given to `sdm`.

    Returns:
        Scalar, independent of the temperature.
    """
    labels_BB = _sdm_labels(pids, image_ids, other_image)
    return 2 * _divergence(torch.zeros_like(labels_BB), labels_BB, epsilon)


def itc(image_features: Tensor, text_features: Tensor, *, temperature: float = 0.02) -> Tensor:
    """Image-text contrast (InfoNCE): mean of the two cross-entropies of cosine / temperature against the diagonal.

    Source: CLIP (Radford et al., ICML 2021), figure 3. Only the own caption is right, whatever the identities.

    Args:
        image_features: [B, D], raw.
        text_features: [B, D], raw.
        temperature: above 0.

    Returns:
        Scalar, at least 0; log(B) when all similarities are equal.
    """
    with _full_precision(image_features):
        cosine_BB = F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T
        logits_BB = cosine_BB / temperature
        diagonal = torch.arange(len(logits_BB), device=logits_BB.device)
        return (F.cross_entropy(logits_BB, diagonal) + F.cross_entropy(logits_BB.T, diagonal)) / 2


def cmpm(image_features: Tensor, text_features: Tensor, pids: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Cross-modal projection matching: like `sdm`, on the length of one feature's projection onto the other.

    Source: Zhang and Lu, ECCV 2018, equations 1 to 5. As in the released code the labels of a row are divided by
    their L2 norm, where the paper makes them a distribution; the value of a perfect match is thus not 0.

    Args:
        image_features: [B, D], raw: their lengths act as the inverse temperature.
        text_features: [B, D], raw.
        pids: [B] identities.
        epsilon: added to the labels inside the logarithm.

    Returns:
        Scalar, both directions summed.
    """
    with _full_precision(image_features):
        images, texts = image_features.float(), text_features.float()
        labels_BB = F.normalize(_same(pids), p=2, dim=1)
        image_to_text = _divergence(images @ F.normalize(texts, dim=1).T, labels_BB, epsilon)
        text_to_image = _divergence(texts @ F.normalize(images, dim=1).T, labels_BB, epsilon)
        return image_to_text + text_to_image


def identity(image_logits: Tensor, text_logits: Tensor, pids: Tensor) -> Tensor:
    """Identity classification: mean of the cross-entropies of both sides under one shared classifier.

    Source: Dual-Path (Zheng et al., TOMM 2020), the instance loss; IRRA's ID loss.

    Args:
        image_logits: [B, C].
        text_logits: [B, C].
        pids: [B] int64 in [0, C).

    Returns:
        Scalar, at least 0; log(C) for uniform logits.
    """
    with _full_precision(image_logits):
        return (F.cross_entropy(image_logits.float(), pids) + F.cross_entropy(text_logits.float(), pids)) / 2


def triplet(image_features: Tensor, text_features: Tensor, *, margin: float = 1.0) -> Tensor:
    """Triplet loss with the hardest negative of each image and of each caption, on Euclidean distances.

    Source: VSE++ (Faghri et al., BMVC 2018), equation 6, as the released code has it: only the pair itself is right,
    so that another picture of the same person counts as a negative.

    Args:
        image_features: [B, D], raw.
        text_features: [B, D], raw.
        margin: by which a negative must be farther away than the positive.

    Returns:
        Scalar, at least 0: mean over images plus mean over captions. It is 0 for a batch of one, which has no negative.
    """
    with _full_precision(image_features):
        # Differences rather than the expanded square: the latter loses the small distances that hard negatives have.
        distance_BB = torch.cdist(
            image_features.float(), text_features.float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        positive_B = distance_BB.diagonal()
        own = torch.eye(len(distance_BB), dtype=torch.bool, device=distance_BB.device)
        negative_BB = distance_BB.masked_fill(own, torch.inf)
        from_images = F.relu(margin + positive_B - negative_BB.amin(dim=1)).mean()
        from_texts = F.relu(margin + positive_B - negative_BB.amin(dim=0)).mean()
        return from_images + from_texts


def tal(
    image_features: Tensor, text_features: Tensor, pids: Tensor, *, temperature: float = 0.015, margin: float = 0.1
) -> Tensor:
    """Triplet alignment loss: a triplet loss whose hardest negative is a log-sum-exp over all negatives.

    Source: RDE (Qin et al., CVPR 2024), section 3.3, as its released code has it: pairs of the same identity are
    positives, weighted by softmax(cosine / temperature) without gradient, and the batch is summed, not averaged.

    Args:
        image_features: [B, D], raw.
        text_features: [B, D], raw.
        pids: [B] identities.
        temperature: above 0; towards 0 the log-sum-exp becomes the hardest negative.
        margin: by which the positives' cosine must be above the negatives'.

    Returns:
        Scalar, at least 0, both directions summed; 0 for a batch of one identity.
    """
    with _full_precision(image_features):
        cosine_BB = F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T
        same_BB = _same(pids).bool()
        return _tal(cosine_BB, same_BB, temperature, margin) + _tal(cosine_BB.T, same_BB, temperature, margin)


def _tal(cosine_BB: Tensor, same_BB: Tensor, temperature: float, margin: float) -> Tensor:
    logits_BB = cosine_BB / temperature
    positive_weights_BB = logits_BB.detach().masked_fill(~same_BB, -torch.inf).softmax(dim=1)
    positive_B = (positive_weights_BB * cosine_BB).sum(dim=1)
    # The smallest number instead of minus infinity: a row without a negative then gives 0, and 0 as its gradient.
    negative_B = temperature * logits_BB.masked_fill(same_BB, torch.finfo(logits_BB.dtype).min).logsumexp(dim=1)
    return F.relu(margin - positive_B + negative_B).sum()


def mlm(logits: Tensor, labels: Tensor) -> Tensor:
    """Masked language modelling: cross-entropy of the masked words.

    Source: IRRA (Jiang and Ye, CVPR 2023), section 3.2, implicit relation reasoning.

    Args:
        logits: [M, V], one row per masked word of the batch.
        labels: [M] int64, its id.

    Returns:
        Scalar, at least 0, log(V) for uniform logits; 0 where no word was masked.
    """
    with _full_precision(logits):
        if not len(labels):
            return logits.float().sum()
        return F.cross_entropy(logits.float(), labels)


def _identity(inputs: LossInputs) -> Tensor:
    if inputs.image_logits is None or inputs.text_logits is None:
        raise CsktError("loss 'id' needs the logits of an identity classifier; give the model one or drop the loss")
    return identity(inputs.image_logits, inputs.text_logits, inputs.pids)


def _mlm(inputs: LossInputs) -> Tensor:
    if inputs.mlm_logits is None or inputs.mlm_labels is None:
        raise CsktError("loss 'mlm' needs the logits of masked words; train with an interaction encoder or drop it")
    return mlm(inputs.mlm_logits, inputs.mlm_labels)


LOSSES: dict[str, Callable[[LossInputs], Tensor]] = {
    "sdm": lambda x: sdm(
        x.image_features, x.text_features, x.pids,
        temperature=x.temperature, image_ids=x.image_ids, other_image=x.sdm_other_image,
    ),
    "itc": lambda x: itc(x.image_features, x.text_features, temperature=x.temperature),
    "cmpm": lambda x: cmpm(x.image_features, x.text_features, x.pids),
    "id": _identity,
    "mlm": _mlm,
    "triplet": lambda x: triplet(x.image_features, x.text_features, margin=x.margin),
    "tal": lambda x: tal(
        x.image_features, x.text_features, x.pids, temperature=x.tal_temperature, margin=x.tal_margin
    ),
}  # fmt: skip
"""Loss by the name that a recipe gives it."""


BY_ROW = ("id", "mlm")
"""Losses that are means over rows which look at no other row: of a batch in parts they are the mean of its parts,
weighted by their sizes."""


def check_names(names: Iterable[str]) -> None:
    """Raise CsktError for a name that is not in `LOSSES`, naming the nearest."""
    for name in names:
        if name not in LOSSES:
            close = difflib.get_close_matches(name, LOSSES, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(LOSSES))}"
            raise CsktError(f"unknown loss '{name}': {hint}")


def compute(inputs: LossInputs, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Every loss named in `weights`, unweighted; a weight of 0 means watched but not trained on.

    Raises:
        CsktError: a name is not in `LOSSES`, or `id` or `mlm` has no logits.
    """
    check_names(weights)
    return {name: LOSSES[name](inputs) for name in weights}


def total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum that is back-propagated; losses of weight 0 stay out of the graph.

    Raises:
        CsktError: no loss has a weight above 0.
    """
    terms = [weights[name] * loss for name, loss in losses.items() if weights[name]]
    if not terms:
        raise CsktError("no loss has a weight above 0; set one in loss.weights")
    return torch.stack(terms).sum()


def _full_precision(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)


def _same(ids: Tensor) -> Tensor:
    """[B, B] float 1 where row and column share an id."""
    return (ids[:, None] == ids[None, :]).float()


def _divergence(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Mean over rows of KL(softmax(logits) || labels + epsilon)."""
    log_predicted = F.log_softmax(logits, dim=1)
    return (log_predicted.exp() * (log_predicted - torch.log(labels + epsilon))).sum(dim=1).mean()
