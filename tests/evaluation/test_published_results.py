"""Published figures, and what is said of ours beside them."""

from __future__ import annotations

import numpy as np
import pytest

from cskt.config import load_config
from cskt.data.datasets import folders
from cskt.evaluation.published_results import PROTOCOLS, PUBLISHED, RECIPES, next_seed, verdict

# Percent, as the papers print them: R1, and mAP where the paper reports it.
PRINTED = {
    ("cskt", "cuhk-pedes"): (69.70, None),
    ("cskt", "icfg-pedes"): (58.90, None),
    ("cskt", "rstpreid"): (57.75, None),
    ("irra", "cuhk-pedes"): (73.38, 66.13),
    ("irra", "icfg-pedes"): (63.46, 38.05),
    ("irra", "rstpreid"): (60.20, 47.17),
    ("rde", "cuhk-pedes"): (75.94, 67.56),
    ("rde", "icfg-pedes"): (67.68, 40.06),
    ("rde", "rstpreid"): (65.35, 50.88),
    ("tbps-clip", "cuhk-pedes"): (73.54, 65.38),
    ("tbps-clip", "icfg-pedes"): (65.05, 39.83),
    ("tbps-clip", "rstpreid"): (61.95, 48.26),
}


def test_the_figures_are_those_of_the_papers() -> None:
    assert {(method, dataset) for method, of in PUBLISHED.items() for dataset in of} == PRINTED.keys()
    for (method, dataset), (r1, mean_ap) in PRINTED.items():
        expected = {"r1": r1} | ({} if mean_ap is None else {"mean_ap": mean_ap})
        found = {metric: round(100 * value, 6) for metric, value in PUBLISHED[method][dataset].items()}
        assert found == expected


def test_every_method_has_its_recipe_and_every_data_set_its_counts() -> None:
    assert RECIPES.keys() == PUBLISHED.keys()
    for method, recipe in RECIPES.items():
        config = load_config(recipe)
        height, width, eps, num_epochs = (224, 224, 1e-8, 5) if method == "tbps-clip" else (384, 128, 1e-3, 60)
        backbone = config.backbone
        assert (backbone.name, backbone.image_height, backbone.image_width) == ("ViT-B/16", height, width)
        assert (config.optim.eps, config.loop.num_epochs) == (eps, num_epochs), "as released"
        assert PUBLISHED[method].keys() == folders().keys()


def test_only_the_papers_own_protocol_selects_on_test() -> None:
    assert {key for key, words in PROTOCOLS.items() if "selected on test" in words} == {"published"}
    assert PROTOCOLS["val"] == "epoch selected on val"


# Mean 0.70, deviation 0.01; Student's t with 2 degrees of freedom has 4.302653 at 97.5 %.
SEEDS = [0.69, 0.70, 0.71]
HALF = 4.302653 * 0.01 * (4 / 3) ** 0.5


def test_the_next_seed_is_predicted_by_students_t() -> None:
    assert next_seed(SEEDS) == pytest.approx((0.70 - HALF, 0.70 + HALF), abs=1e-7)


def test_the_next_seed_falls_inside_as_often_as_promised() -> None:
    draws = np.random.default_rng(0).normal(0.6, 0.02, (4000, 4))
    inside = [low <= nth <= high for *seeds, nth in draws for low, high in [next_seed(seeds)]]
    assert 0.94 < np.mean(inside) < 0.96


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (0.6900, "agrees: the published figure could be one more seed of ours (+1.00 points from it; another seed"),
        (0.70 + HALF - 1e-4, "agrees: "),
        (0.70 + HALF + 1e-4, "below the published figure (-4.98 points from it; another seed would be in 65.03 to"),
        (0.70 - HALF + 1e-4, "agrees: "),
        (0.5890, "above the published figure (+11.10 points from it;"),
    ],
)  # fmt: skip
def test_verdict(published: float, expected: str) -> None:
    assert verdict(published, SEEDS).startswith(expected)


@pytest.mark.parametrize("seeds", [[0.70], [0.69, 0.71]])
def test_one_seed_or_two_are_no_verdict(seeds: list[float]) -> None:
    said = "no verdict below 3 seeds, too few for the variation between seeds; -1.00 points from it"
    assert verdict(0.71, seeds) == said
