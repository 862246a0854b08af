"""Noise division of RDE against golden values of the released code, and against a naive mixture."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from golden import Golden

from cskt.training.hooks.noise_division import (
    SETTINGS,
    MixtureSettings,
    clean_pairs,
    consensus,
    divide,
    fit_mixture,
    normalise,
    posteriors,
)

GOLDEN_SETTINGS = {"low": "le_0.4", "high": "gt_0.4"}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read("rde_a")


@pytest.mark.parametrize("setting", GOLDEN_SETTINGS)
def test_released_mixtures_posteriors_and_labels(golden: Golden, setting: str) -> None:
    key, random, votes = GOLDEN_SETTINGS[setting], np.random.RandomState(0), []
    for branch in "AB":
        values = normalise(golden.tensors[f"noise.loss_{branch}"])
        torch.testing.assert_close(torch.from_numpy(values[:, 0]), golden.tensors[f"noise.normalised_{branch}"])
        mixture, expected = fit_mixture(values, SETTINGS[setting], random), golden.figures["noise"][key][branch]
        order = mixture.means_[:, 0].argsort()
        assert mixture.means_[order, 0].tolist() == pytest.approx(sorted(expected["means"]), rel=1e-4)
        assert mixture.n_iter_ == expected["iterations"] and mixture.converged_ == expected["converged"]
        places = np.argsort(expected["means"])
        for found, name in ((mixture.covariances_[:, 0, 0], "variances"), (mixture.weights_, "weights")):
            assert found[order].tolist() == pytest.approx(np.array(expected[name])[places].tolist(), rel=1e-4)
        probabilities = posteriors(mixture, values)
        torch.testing.assert_close(
            probabilities.float(), golden.tensors[f"noise.{key}.posterior_{branch}"], rtol=1e-3, atol=1e-4
        )
        votes.append(clean_pairs(probabilities))
        assert torch.equal(votes[-1], golden.tensors[f"noise.{key}.clean_{branch}"].bool())
    labels, expected = consensus(votes, random), golden.tensors[f"noise.{key}.consensus"]
    assert torch.equal(labels[expected >= 0], expected[expected >= 0].float())
    disputed = labels[expected < 0]
    assert 0.3 < disputed.mean() < 0.7 and len(disputed) > 100, "a fair coin (0.05)"
    whole = divide({branch: golden.tensors[f"noise.loss_{branch}"] for branch in "AB"}, SETTINGS[setting],
                   np.random.RandomState(0))  # fmt: skip
    assert torch.equal(whole, labels)


def test_if_all_are_clean_the_least_probable_are_noisy(golden: Golden) -> None:
    probabilities, expected = golden.tensors["noise.forced.posterior"], golden.figures["noise"]["forced"]
    clean = clean_pairs(probabilities)
    assert torch.equal(clean, golden.tensors["noise.forced.clean"].bool())
    assert int((~clean).sum()) == expected["not_clean"]
    one_at_half = probabilities.clone()
    one_at_half[7] = 0.5
    assert int((~clean_pairs(one_at_half)).sum()) == expected["with_one_at_exactly_0.5_not_clean"]
    assert int((~clean_pairs(torch.full((50,), 0.9).scatter(0, torch.tensor([3]), 0.6))).sum()) == 1, "50 // 100 is 0"


def naive_mixture(values: list[float], upper: list[bool], settings: MixtureSettings) -> tuple[list[float], int]:
    """Posterior of the lower component by loops, from hard responsibilities; and the number of iterations."""
    shares = [[0.0 if up else 1.0, 1.0 if up else 0.0] for up in upper]
    before, iterations = -math.inf, 0

    def m_step() -> list[tuple[float, float, float]]:
        components = []
        for k in (0, 1):
            count = sum(share[k] for share in shares) + 10 * sys.float_info.epsilon
            mean = sum(share[k] * x for share, x in zip(shares, values, strict=True)) / count
            spread = sum(share[k] * (x - mean) ** 2 for share, x in zip(shares, values, strict=True)) / count
            components.append((count / len(values), mean, spread + settings.variance_floor))
        return components

    def e_step(components: list[tuple[float, float, float]]) -> float:
        total = 0.0
        for place, x in enumerate(values):
            densities = [
                weight * math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
                for weight, mean, variance in components
            ]
            shares[place] = [density / sum(densities) for density in densities]
            total += math.log(sum(densities))
        return total / len(values)

    components = m_step()
    while iterations < settings.max_iterations:
        likelihood = e_step(components)
        components, iterations = m_step(), iterations + 1
        if abs(likelihood - before) < settings.tolerance:
            break
        before = likelihood
    e_step(components)
    lower = 0 if components[0][1] < components[1][1] else 1
    return [share[lower] for share in shares], iterations


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_naive_mixture_agrees(golden: Golden, setting: str) -> None:
    for branch in "AB":
        values = normalise(golden.tensors[f"noise.loss_{branch}"])
        start = golden.tensors[f"noise.start_{branch}"].bool().tolist()
        expected, iterations = naive_mixture(values[:, 0].tolist(), start, SETTINGS[setting])
        key = GOLDEN_SETTINGS[setting]
        assert expected == pytest.approx(golden.tensors[f"noise.{key}.posterior_{branch}"].tolist(), abs=1e-4)
        assert iterations == golden.figures["noise"][key][branch]["iterations"]
