"""Evidence behind the means, against naive loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cskt.evaluation.analysis import (
    NUM_BINS,
    Similarities,
    attribute_errors,
    clearest_queries,
    compare_pairs,
    confusion,
    hardest_queries,
    rank_hits,
    ranked_positions,
    separation,
)
from cskt.types import PerQuery

QUERY_IDS = [5, 5, 900, 7, 7, 31, 8, 31, 4]
"""Nobody of the gallery is 4."""
GALLERY_IDS = [7, 5, 900, 31, 8, 5, 31, 7, 7, 12]


def unit(count: int, seed: int = 0) -> Tensor:
    """[count, 16] of unit norm, whose cosines are multiples of 1/8 without rounding, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, 16), generator=generator) / 2 - 0.25


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries, gallery = unit(len(QUERY_IDS)), unit(len(GALLERY_IDS), seed=1)
    gallery[5] = gallery[2]  # ties of a right image with a wrong one, and of two wrong ones
    queries[3] = gallery[2]  # cosines of 1 and of -1
    queries[5] = -gallery[0]
    return queries, gallery, torch.tensor(QUERY_IDS), torch.tensor(GALLERY_IDS)


def of_margin(*margin: float) -> np.ndarray:
    return np.array(margin)


# --- ranks


def test_hits_by_rank_average_to_the_cmc_curve_of_the_matched_queries() -> None:
    ranks = torch.tensor([3, 1, 0, 7, 2])
    hits = rank_hits(ranks, 4)
    assert hits.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert hits.dtype == np.float64


def test_hardest_queries_are_the_last_ranks_one_for_each_person_and_matched_ones_only() -> None:
    ranks = torch.tensor([3, 9, 0, 9, 9, 1])
    precision = torch.tensor([0.4, 0.2, 0.0, 0.2, 0.1, 1.0], dtype=torch.float64)
    per_query = PerQuery(ranks, precision, precision, torch.arange(6))
    assert hardest_queries(per_query, [1, 2, 3, 4, 5, 6], 10) == [4, 1, 3, 0, 5]
    assert hardest_queries(per_query, [1, 2, 3, 2, 5, 5], 10) == [4, 1, 0], "the worst caption of each person"
    assert hardest_queries(per_query, [1, 2, 3, 4, 5, 6], 2) == [4, 1]


def test_clearest_queries_lead_by_most_and_are_right() -> None:
    margin = of_margin(0.1, np.nan, 0.3, -0.2, 0.0, 0.3)
    assert clearest_queries(margin, [1, 2, 3, 4, 5, 6], 10) == [2, 5, 0]
    assert clearest_queries(margin, [1, 2, 3, 4, 5, 3], 10) == [2, 0]
    assert clearest_queries(margin, [1, 2, 3, 4, 5, 6], 0) == []


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_a_ranked_list_is_the_sorted_gallery_and_ends_in_a_right_image(k: int) -> None:
    similarity = torch.tensor([0.1, 0.9, -0.5, 0.9, 0.3, 0.2])
    order = [1, 3, 4, 5, 0, 2]
    for right_images in ([0], [2], [3, 5], [1], []):
        right = torch.zeros(6, dtype=torch.bool)
        right[right_images] = True
        places = list(range(k))
        ranks_of_right = [place for place, image in enumerate(order) if image in right_images]
        if ranks_of_right and min(ranks_of_right) >= k:
            places[-1] = min(ranks_of_right)
        assert ranked_positions(similarity, right, k) == [(place + 1, order[place]) for place in places]


# --- pairs


@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_pairs_are_counted_as_by_a_naive_loop_in_any_chunks(chunk_size: int | None) -> None:
    queries, gallery, query_ids, gallery_ids = pairs()
    steps: list[tuple[int, int]] = []
    found = compare_pairs(
        queries, gallery, query_ids, gallery_ids, chunk_size=chunk_size, on_progress=lambda *step: steps.append(step)
    )
    counts = np.zeros((3, NUM_BINS), dtype=int)
    for row, pid in enumerate(QUERY_IDS):
        cosines = [float(queries[row] @ image) for image in gallery]
        bins = [min(int((cosine + 1) * NUM_BINS / 2), NUM_BINS - 1) for cosine in cosines]
        right = [other == pid for other in GALLERY_IDS]
        for place, is_right in zip(bins, right, strict=True):
            counts[0 if is_right else 1, place] += 1
        best = [
            max((c for c, r in zip(cosines, right, strict=True) if r == side), default=None) for side in (True, False)
        ]
        counts[2, min(int((best[1] + 1) * NUM_BINS / 2), NUM_BINS - 1)] += 1
        expected = np.nan if best[0] is None else best[0] - best[1]
        assert found.margin[row] == pytest.approx(expected, nan_ok=True)
        assert found.first_answer[row] == max(range(len(cosines)), key=lambda image: (cosines[image], -image))
    for name, expected_counts in zip(("right", "wrong", "best_wrong"), counts, strict=True):
        assert getattr(found, name).tolist() == expected_counts.tolist(), name
    assert found.right[-1] + found.wrong[-1] >= 1, "a cosine of 1 is in the last bin"
    assert steps[-1] == (len(QUERY_IDS), len(QUERY_IDS))
    assert len(steps) == -(-len(QUERY_IDS) // (chunk_size or len(QUERY_IDS)))


def test_a_gallery_of_one_person_has_no_wrong_pairs() -> None:
    found = compare_pairs(unit(2), unit(3, seed=1), torch.tensor([1, 1]), torch.tensor([1, 1, 1]))
    assert found.right.sum() == 6 and found.wrong.sum() == found.best_wrong.sum() == 0
    assert np.isnan(found.margin).all()
    assert np.isnan(separation(found))


def test_separation_is_the_share_of_right_pairs_above_wrong_ones() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.integers(900, 1300, 60), rng.integers(700, 1100, 80)
    counts = [np.bincount(places, minlength=NUM_BINS) for places in (right, wrong)]
    found = separation(Similarities(counts[0], counts[1], counts[1], of_margin(), np.array([], dtype=np.int64)))
    naive = np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(right, wrong)])
    assert found == pytest.approx(naive)
    assert 0.5 < found < 1


# --- attributes


def test_attribute_errors_equal_a_naive_loop() -> None:
    rng = np.random.default_rng(1)
    pids = [3, 3, 8, 8, 8, 1, 5, 5]
    values = {
        "upper": [str(rng.integers(3)) for _ in pids],  # not even the same for all images of a person
        "bag": ["none", "none", "red", "red", "red", "none", "red", "red"],
    }
    sought, found = [0, 1, 2, 3, 5, 6, 7, 4], [1, 4, 2, 5, 7, 0, 3, 6]
    errors = attribute_errors(values, pids, sought, found)
    wrong = [query for query in range(len(sought)) if pids[sought[query]] != pids[found[query]]]
    assert errors.queries.tolist() == wrong and 0 < len(wrong) < len(sought)
    assert errors.names == ("upper", "bag")
    for column, name in enumerate(errors.names):
        value = values[name]
        assert errors.differs[:, column].tolist() == [value[sought[q]] != value[found[q]] for q in wrong]
        chances = []
        for query in wrong:
            others = [image for image in range(len(pids)) if pids[image] != pids[sought[query]]]
            chances.append(np.mean([value[image] != value[sought[query]] for image in others]))
        assert errors.chance[column] == pytest.approx(np.mean(chances))


def test_without_wrong_answers_there_is_nothing_to_compare_with_chance() -> None:
    errors = attribute_errors({"bag": ["red", "red", "none"]}, [1, 1, 2], [0, 2], [1, 2])
    assert errors.differs.shape == (0, 1) and len(errors.queries) == 0
    assert np.isnan(errors.chance).all()


def test_a_confusion_matrix_counts_pairs_with_the_most_sought_value_first() -> None:
    labels, counts = confusion(["red", "blue", "blue", "red", "blue"], ["red", "red", "blue", "green", "blue"])
    assert labels == ["blue", "red", "green"]
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert confusion([], [])[1].shape == (0, 0)
