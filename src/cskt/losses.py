"""The losses of text-to-image retrieval, as pure functions of raw features.

Image i and caption i of a batch belong together; captions and images of the same identity do too, except where a
loss says otherwise. Features come in before any normalisation: SDM and ITC normalise inside, CMPM, the identity
loss and the triplet loss need the lengths. Everything is computed in float32, under autocast as well, because a
temperature of 0.02 turns the rounding of a half-precision cosine into a different loss.

Adding a loss: write the function, give it an entry in `LOSSES`, and test it against a naive loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
    temperature: float = 0.02
    """Temperature of sdm and itc."""
    margin: float = 1.0
    """Margin of triplet."""

    def __post_init__(self) -> None:
        assert self.image_features.shape == self.text_features.shape, "image i belongs to caption i"
        assert self.pids.shape == self.image_features.shape[:1], "one identity per pair"


def sdm(
    image_features: Tensor, text_features: Tensor, pids: Tensor, *, temperature: float = 0.02, epsilon: float = 1e-8
) -> Tensor:
    """Similarity distribution matching: KL(softmax(cosine / temperature) || identity labels), both directions summed.

    Source: IRRA (Jiang and Ye, CVPR 2023), equations 5 to 8.

    Args:
        image_features: [B, D], raw.
        text_features: [B, D], raw.
        pids: [B] identities; a row's label is spread evenly over the pairs of its identity.
        temperature: above 0.
        epsilon: added to the labels inside the logarithm; it sets the price of a wrong match, -log(epsilon).

    Returns:
        Scalar. It is about 0 at the best (epsilon lets it fall a hair below); see `sdm_at_collapse` for its trap.
    """
    with _full_precision(image_features):
        cosine_BB = F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T
        labels_BB = _identity_labels(pids, order=1)
        logits_BB = cosine_BB / temperature
        return _divergence(logits_BB, labels_BB, epsilon) + _divergence(logits_BB.T, labels_BB, epsilon)


def sdm_at_collapse(pids: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """The value of `sdm` when every image is equally similar to every caption of the batch.

    From weak features and at a high rate SDM is trapped there: 27.95 at 64 pairs of as many people and the default
    epsilon. A loss that stays at this value while identities differ says that training has collapsed. It is 0, and
    says nothing, for a batch of one identity.

    Args:
        pids: [B] identities of the batch.
        epsilon: as given to `sdm`.

    Returns:
        Scalar, independent of the temperature.
    """
    labels_BB = _identity_labels(pids, order=1)
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
        labels_BB = _identity_labels(pids, order=2)
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


def _identity(inputs: LossInputs) -> Tensor:
    if inputs.image_logits is None or inputs.text_logits is None:
        raise ValueError("loss 'id' needs the logits of an identity classifier; give the model one or drop the loss")
    return identity(inputs.image_logits, inputs.text_logits, inputs.pids)


LOSSES: dict[str, Callable[[LossInputs], Tensor]] = {
    "sdm": lambda x: sdm(x.image_features, x.text_features, x.pids, temperature=x.temperature),
    "itc": lambda x: itc(x.image_features, x.text_features, temperature=x.temperature),
    "cmpm": lambda x: cmpm(x.image_features, x.text_features, x.pids),
    "id": _identity,
    "triplet": lambda x: triplet(x.image_features, x.text_features, margin=x.margin),
}
"""Loss by the name that a recipe gives it."""


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a name that is not in `LOSSES`, naming the nearest."""
    for name in names:
        if name not in LOSSES:
            close = difflib.get_close_matches(name, LOSSES, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(LOSSES))}"
            raise ValueError(f"unknown loss '{name}': {hint}")


def compute(inputs: LossInputs, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Every loss named in `weights`, unweighted; a weight of 0 means watched but not trained on.

    Raises:
        ValueError: a name is not in `LOSSES`, or `id` has no logits.
    """
    check_names(weights)
    return {name: LOSSES[name](inputs) for name in weights}


def total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum that is back-propagated; losses of weight 0 stay out of the graph.

    Raises:
        ValueError: no loss has a weight above 0.
    """
    terms = [weights[name] * loss for name, loss in losses.items() if weights[name]]
    if not terms:
        raise ValueError("no loss has a weight above 0; set one in loss.weights")
    return torch.stack(terms).sum()


def _full_precision(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)


def _identity_labels(pids: Tensor, *, order: int) -> Tensor:
    """[B, B] 1 where row and column share an identity, each row divided by its L1 or L2 norm."""
    return F.normalize((pids[:, None] == pids[None, :]).float(), p=order, dim=1)


def _divergence(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Mean over rows of KL(softmax(logits) || labels + epsilon)."""
    log_predicted = F.log_softmax(logits, dim=1)
    return (log_predicted.exp() * (log_predicted - torch.log(labels + epsilon))).sum(dim=1).mean()
