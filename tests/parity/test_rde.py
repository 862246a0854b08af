"""Losses of single pairs and their weights against golden values of the released code of RDE (label_hat)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import Golden
from torch import Tensor

from cskt import losses

FEATURES = {
    "bge": ("bge_image_features", "bge_text_features"),
    "tse": ("tse_image_embeddings_train", "tse_text_embeddings_train"),
}
"""Branch -> its images and captions, in training mode."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read("rde_a")


def of_branch(golden: Golden, branch: str) -> tuple[Tensor, Tensor]:
    image_key, text_key = FEATURES[branch]
    return golden.tensors[image_key], golden.tensors[text_key]


@pytest.mark.parametrize("branch", FEATURES)
@pytest.mark.parametrize(("name", "function"), [("TAL", losses.tal), ("InfoNCE", losses.itc), ("SDM", losses.sdm)])
def test_losses_of_pairs(golden: Golden, branch: str, name: str, function: Callable[..., Tensor]) -> None:
    identities = () if function is losses.itc else (torch.tensor(golden.figures["pids"]),)
    found = function(*of_branch(golden, branch), *identities, reduction="none")
    expected = golden.figures["per_pair_losses_train"][f"{name}_{branch}"]
    assert found.tolist() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("branch", FEATURES)
@pytest.mark.parametrize(
    ("key", "weights"), [("losses", [1.0, 1.0, 1.0, 1.0]), ("losses_without_pair_1", [1.0, 0.0, 1.0, 1.0])]
)
def test_weighted_loss_of_a_batch(golden: Golden, branch: str, key: str, weights: list[float]) -> None:
    pids = torch.tensor(golden.figures["pids"])
    found = losses.tal(*of_branch(golden, branch), pids, pair_weights=torch.tensor(weights))
    assert found.item() == pytest.approx(golden.figures[key][f"{branch}_loss"], rel=2e-6)
