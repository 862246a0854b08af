"""Metrics: golden values, a full sort in plain Python, ties, and the ways of holding less in memory."""

import doctest
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cskt import metrics
from cskt.types import RetrievalMetrics

PARITY = Path(__file__).parents[1] / "parity"
unhurried = settings(deadline=None, database=None)


def naive(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict[str, list[float]]:
    """By a full stable sort, per query: first right rank, average precision and inverse negative penalty, or zeros."""
    found: dict[str, list[float]] = {"first": [], "precision": [], "penalty": []}
    ids = gallery_ids.tolist()
    for scores, pid in zip(similarity.tolist(), query_ids.tolist(), strict=True):
        order = sorted(range(len(ids)), key=lambda column, scores=scores: (-scores[column], column))
        ranks = [rank for rank, column in enumerate(order, start=1) if ids[column] == pid]
        found["first"].append(ranks[0] if ranks else 0)
        found["precision"].append(sum(n / rank for n, rank in enumerate(ranks, start=1)) / max(len(ranks), 1))
        found["penalty"].append(len(ranks) / ranks[-1] if ranks else 0.0)
    return found


def assert_equals_naive(result: RetrievalMetrics, similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> None:
    expected = naive(similarity, query_ids, gallery_ids)
    assert torch.equal(result.per_query.query_ids, query_ids)
    assert result.per_query.first_right_rank.tolist() == expected["first"]
    assert result.per_query.average_precision.tolist() == pytest.approx(expected["precision"], abs=1e-12)
    assert result.per_query.inverse_negative_penalty.tolist() == pytest.approx(expected["penalty"], abs=1e-12)
    matched = [rank for rank in expected["first"] if rank]
    share = max(len(matched), 1)
    assert result.summary() == pytest.approx(
        {
            "r1": sum(rank <= 1 for rank in matched) / share,
            "r5": sum(rank <= 5 for rank in matched) / share,
            "r10": sum(rank <= 10 for rank in matched) / share,
            "mean_ap": sum(expected["precision"]) / share,
            "mean_inp": sum(expected["penalty"]) / share,
            "num_queries": len(query_ids),
            "num_gallery": len(gallery_ids),
            "num_unmatched_queries": len(query_ids) - len(matched),
        },
        abs=1e-12,
    )


def assert_same(left: RetrievalMetrics, right: RetrievalMetrics) -> None:
    assert torch.equal(left.per_query.first_right_rank, right.per_query.first_right_rank)
    assert torch.allclose(left.per_query.average_precision, right.per_query.average_precision, rtol=0, atol=1e-14)
    assert torch.equal(left.per_query.inverse_negative_penalty, right.per_query.inverse_negative_penalty)
    assert left.summary() == pytest.approx(right.summary(), abs=1e-14)


def unit_features(count: int, seed: int, width: int = 32) -> Tensor:
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, dim=1)


@st.composite
def retrievals(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features on a coarse grid (products exact in float32, many ties, many negative) and a few identities."""
    num_queries, num_gallery, width = (draw(st.integers(1, 12)) for _ in range(3))

    def features(count: int) -> Tensor:
        values = st.lists(st.integers(-2, 2), min_size=count * width, max_size=count * width)
        return torch.tensor(draw(values), dtype=torch.float32).view(count, width) / 2

    def ids(count: int) -> Tensor:
        return torch.tensor(draw(st.lists(st.sampled_from([-7, 0, 1, 2**40]), min_size=count, max_size=count)))

    return features(num_queries), features(num_gallery), ids(num_queries), ids(num_gallery)


# --- golden values and a naive sort ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_metrics_equal_the_released_code(direction: str) -> None:
    golden = json.loads((PARITY / "metrics_a.json").read_text())
    tensors = load_file(PARITY / "metrics_a.safetensors")
    similarity, queries, gallery = (tensors[name] for name in ("similarity", "query_pids", "gallery_pids"))
    if direction == "t2i":
        expected, result = golden, metrics.from_similarity(similarity, queries, gallery)
    else:
        expected, result = golden["i2t"], metrics.from_similarity(similarity.T, gallery, queries)
    names = {"R1": "r1", "R5": "r5", "R10": "r10", "mAP": "mean_ap", "mINP": "mean_inp"}
    assert {name: 100 * getattr(result, ours) for name, ours in names.items()} == pytest.approx(
        {name: expected[name] for name in names}, abs=1e-4
    )


@unhurried
@given(retrievals())
def test_metrics_equal_a_full_sort(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    queries, gallery, query_ids, gallery_ids = case
    similarity = queries @ gallery.T
    assert_equals_naive(metrics.from_similarity(similarity, query_ids, gallery_ids), similarity, query_ids, gallery_ids)


@unhurried
@given(retrievals(), st.integers(1, 13))
def test_chunks_equal_the_whole(case: tuple[Tensor, Tensor, Tensor, Tensor], chunk_size: int) -> None:
    queries, gallery, query_ids, gallery_ids = case
    whole = metrics.from_similarity(queries @ gallery.T, query_ids, gallery_ids)
    assert_same(metrics.from_features(queries, gallery, query_ids, gallery_ids, chunk_size=chunk_size), whole)
    assert_same(metrics.from_features(queries, gallery, query_ids, gallery_ids), whole)


@unhurried
@given(retrievals())
def test_order_of_the_queries_does_not_matter(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    queries, gallery, query_ids, gallery_ids = case
    forward = metrics.from_features(queries, gallery, query_ids, gallery_ids).per_query
    backward = metrics.from_features(queries.flip(0), gallery, query_ids.flip(0), gallery_ids).per_query
    assert torch.equal(forward.first_right_rank, backward.first_right_rank.flip(0))


@pytest.mark.parametrize("captions_per_image", [1, 10])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, None])
def test_cosines_of_a_whole_split(captions_per_image: int, chunk_size: int | None) -> None:
    gallery, gallery_ids = unit_features(60, seed=1), torch.arange(60) // 3 * 5
    queries, query_ids = unit_features(60 * captions_per_image, seed=2), gallery_ids.repeat(captions_per_image)
    query_ids[::9] = 1  # an identity that no image has
    result = metrics.from_features(queries, gallery, query_ids, gallery_ids, chunk_size=chunk_size)
    assert result.num_unmatched_queries == len(query_ids[::9])
    assert_equals_naive(result, queries @ gallery.T, query_ids, gallery_ids)


@pytest.mark.parametrize("comparisons", [1, 400, 1000])
def test_columns_compared_in_several_chunks(monkeypatch: pytest.MonkeyPatch, comparisons: int) -> None:
    monkeypatch.setattr(metrics, "COMPARISONS_AT_ONCE", comparisons)
    similarity = torch.randint(-3, 4, (12, 30), generator=torch.Generator().manual_seed(1)).float()
    query_ids, gallery_ids = torch.arange(12) % 3, torch.arange(30) % 4
    assert_equals_naive(metrics.from_similarity(similarity, query_ids, gallery_ids), similarity, query_ids, gallery_ids)


def test_a_permuted_gallery_without_ties_changes_nothing() -> None:
    queries, gallery = unit_features(40, seed=1), unit_features(80, seed=2)
    query_ids, gallery_ids = torch.arange(40) % 10, torch.arange(80) % 11
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    assert_same(
        metrics.from_features(queries, gallery[order], query_ids, gallery_ids[order]),
        metrics.from_features(queries, gallery, query_ids, gallery_ids),
    )


def test_chunks_are_asked_for_once_for_each_query_that_has_a_right_image() -> None:
    queries, gallery = unit_features(30, seed=1), unit_features(20, seed=2)
    query_ids, gallery_ids = torch.arange(30) % 12, torch.arange(20) % 10  # 10 and 11 are absent
    asked: list[int] = []

    def similarity_of(rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        assert len(rows) <= 7
        return queries[rows] @ gallery.T

    result = metrics.from_chunks(similarity_of, query_ids, gallery_ids, chunk_size=7)
    assert sorted(asked) == [row for row in range(30) if query_ids[row] < 10]
    assert_equals_naive(result, queries @ gallery.T, query_ids, gallery_ids)


# --- ties and closed forms ---------------------------------------------------------------------------------------


def test_equal_scores_rank_in_gallery_order() -> None:
    result = metrics.from_similarity(torch.zeros(1, 6), torch.tensor([1]), torch.tensor([0, 1, 0, 0, 1, 0]))
    assert result.per_query.first_right_rank.tolist() == [2]
    assert result.mean_ap == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert result.mean_inp == pytest.approx(2 / 5)


@pytest.mark.parametrize("position", range(12))
def test_recall_of_a_single_right_image_at_each_rank(position: int) -> None:
    gallery_ids = torch.zeros(12, dtype=torch.int64)
    gallery_ids[position] = 1
    result = metrics.from_similarity(-torch.arange(12.0)[None], torch.tensor([1]), gallery_ids)
    assert (result.r1, result.r5, result.r10) == (position < 1, position < 5, position < 10)
    assert result.mean_ap == result.mean_inp == 1 / (position + 1)


def test_right_images_first_is_perfect_and_last_is_worst() -> None:
    ids = torch.tensor([3, 3, 8, 8])
    similarity = torch.where(ids[:, None] == ids, 0.9, -0.9)
    best, worst = (metrics.from_similarity(sign * similarity, ids, ids) for sign in (1, -1))
    assert (best.r1, best.mean_ap, best.mean_inp) == (1.0, 1.0, 1.0)
    assert (worst.r1, worst.mean_ap, worst.mean_inp) == (0.0, pytest.approx((1 / 3 + 2 / 4) / 2), 0.5)


def test_infinite_similarities_rank_like_any_other() -> None:
    similarity = torch.tensor([[-torch.inf, torch.inf, -torch.inf]])
    result = metrics.from_similarity(similarity, torch.tensor([1]), torch.tensor([0, 0, 1]))
    assert result.per_query.first_right_rank.tolist() == [3]


def test_only_unmatched_queries_give_zeros_and_are_counted() -> None:
    result = metrics.from_similarity(torch.eye(3), torch.tensor([7, 8, 9]), torch.tensor([0, 1, 2]))
    assert (result.r1, result.r10, result.mean_ap, result.mean_inp) == (0.0, 0.0, 0.0, 0.0)
    assert (result.num_queries, result.num_unmatched_queries) == (3, 3)
    assert result.per_query.first_right_rank.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    """Products rounded to half precision would tie by the dozen."""
    queries, gallery = unit_features(50, seed=1).to(dtype), unit_features(400, seed=2).to(dtype)
    query_ids, gallery_ids = torch.arange(50) % 6, torch.arange(400) % 6
    similarity = queries.float() @ gallery.float().T
    result = metrics.from_features(queries, gallery, query_ids, gallery_ids)
    assert_equals_naive(result, similarity, query_ids, gallery_ids)
    assert torch.equal(metrics.top_k(queries, gallery, 9, chunk_size=50).scores, similarity.topk(9).values)


def test_features_that_carry_a_gradient_are_evaluated_without_one() -> None:
    queries = unit_features(4, seed=1).requires_grad_()
    ids = torch.arange(4)
    assert metrics.from_features(queries, queries, ids, ids).r1 == 1.0
    assert metrics.from_similarity(queries @ queries.T, ids, ids).r1 == 1.0
    assert not metrics.top_k(queries, queries, 2).scores.requires_grad


# --- memory ------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation has put out."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return output


@pytest.mark.parametrize("num_people", [100, 33, 1])
def test_the_whole_similarity_matrix_is_never_in_memory(monkeypatch: pytest.MonkeyPatch, num_people: int) -> None:
    monkeypatch.setattr(metrics, "SIMILARITIES_AT_ONCE", 1_000)
    monkeypatch.setattr(metrics, "COMPARISONS_AT_ONCE", 1_000)
    features, ids = unit_features(100, seed=1, width=8), torch.arange(100) % num_people
    with LargestTensor() as largest:
        metrics.from_features(features, features, ids, ids)
        metrics.top_k(features, features, 5)
    assert 900 < largest.num_elements <= 1_000  # the whole would be 10,000
    with LargestTensor() as largest:
        metrics.from_features(features, features, ids, ids, chunk_size=40)
    assert largest.num_elements == 40 * 100


# --- top_k -------------------------------------------------------------------------------------------------------


@unhurried
@given(retrievals(), st.integers(1, 12), st.integers(1, 13))
def test_top_k_is_the_head_of_a_stable_sort(
    case: tuple[Tensor, Tensor, Tensor, Tensor], k: int, chunk_size: int
) -> None:
    queries, gallery, _, _ = case
    k = min(k, len(gallery))
    ranking = metrics.top_k(queries, gallery, k, chunk_size=chunk_size)
    scores, indices = (queries @ gallery.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(ranking.indices, indices[:, :k])
    assert torch.equal(ranking.scores, scores[:, :k])


@unhurried
@given(retrievals())
def test_top_k_and_the_metrics_agree_on_ranks(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    queries, gallery, query_ids, gallery_ids = case
    right = gallery_ids[metrics.top_k(queries, gallery, len(gallery)).indices] == query_ids[:, None]
    first = torch.where(right.any(dim=1), right.int().argmax(dim=1) + 1, 0)
    result = metrics.from_features(queries, gallery, query_ids, gallery_ids)
    assert torch.equal(result.per_query.first_right_rank, first)


def test_top_k_of_cosines() -> None:
    queries, gallery = unit_features(30, seed=1), unit_features(500, seed=2)
    ranking = metrics.top_k(queries, gallery, 10, chunk_size=30)
    scores, indices = (queries @ gallery.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(ranking.indices, indices[:, :10])
    assert torch.equal(ranking.scores, scores[:, :10])


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_outside_the_gallery_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; the gallery has 5 images, so give 1 to 5"):
        metrics.top_k(unit_features(2, seed=1), unit_features(5, seed=2), k)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_features_that_are_not_finite_are_refused(side: str, bad: float) -> None:
    features = {"query": unit_features(3, seed=1), "gallery": unit_features(4, seed=2)}
    features[side][1, 2] = bad
    with pytest.raises(ValueError, match=f"{side} features hold NaN or infinity"):
        metrics.from_features(features["query"], features["gallery"], torch.arange(3), torch.arange(4))
    with pytest.raises(ValueError, match=f"{side} features hold NaN or infinity"):
        metrics.top_k(features["query"], features["gallery"], 2)


def test_a_nan_similarity_is_refused_even_in_an_unmatched_row() -> None:
    similarity = torch.zeros(2, 3)
    similarity[1, 0] = torch.nan
    with pytest.raises(ValueError, match="similarity holds NaN"):
        metrics.from_similarity(similarity, torch.tensor([0, 9]), torch.arange(3))


def test_a_nan_in_any_chunk_is_refused() -> None:
    similarity = torch.zeros(9, 3)
    similarity[7, 2] = torch.nan
    ids = torch.arange(9) % 3
    with pytest.raises(ValueError, match="similarity holds NaN"):
        metrics.from_chunks(lambda rows: similarity[rows], ids, torch.arange(3), chunk_size=2)


def test_a_chunk_of_another_shape_is_refused() -> None:
    ids = torch.arange(5)
    with pytest.raises(ValueError, match=r"similarity_of gave shape \[2, 4\]; expected \[2, 5\]"):
        metrics.from_chunks(lambda rows: torch.zeros(len(rows), 4), ids, ids, chunk_size=2)


@pytest.mark.parametrize(("num_queries", "num_gallery"), [(0, 3), (3, 0)])
def test_an_empty_side_is_refused(num_queries: int, num_gallery: int) -> None:
    queries, gallery = torch.ones(num_queries, 4), torch.ones(num_gallery, 4)
    query_ids, gallery_ids = torch.arange(num_queries), torch.arange(num_gallery)
    message = f"{num_queries} queries and {num_gallery} gallery images; give at least one"
    with pytest.raises(ValueError, match=message):
        metrics.from_similarity(queries @ gallery.T, query_ids, gallery_ids)
    with pytest.raises(ValueError, match=message):
        metrics.from_features(queries, gallery, query_ids, gallery_ids)
    with pytest.raises(ValueError, match=message):
        metrics.from_chunks(lambda rows: torch.zeros(len(rows), num_gallery), query_ids, gallery_ids)
    with pytest.raises(ValueError, match=message):
        metrics.top_k(queries, gallery, 1)


@pytest.mark.parametrize(
    ("query_ids", "gallery_ids", "message"),
    [
        (torch.arange(2), torch.arange(4), r"query_ids are torch.int64 \[2\]; expected 3 integers"),
        (torch.arange(3), torch.arange(4)[None], r"gallery_ids are torch.int64 \[1, 4\]; expected 4 integers"),
        (torch.arange(3.0), torch.arange(4), r"query_ids are torch.float32 \[3\]; expected 3 integers"),
    ],
)
def test_ids_that_do_not_fit_are_refused(query_ids: Tensor, gallery_ids: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.from_similarity(torch.zeros(3, 4), query_ids, gallery_ids)
    with pytest.raises(ValueError, match=message):
        metrics.from_features(torch.ones(3, 2), torch.ones(4, 2), query_ids, gallery_ids)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"similarity has shape \[3\]; expected"):
        metrics.from_similarity(torch.zeros(3), torch.arange(3), torch.arange(1))
    with pytest.raises(ValueError, match=r"features have shapes \[3, 2\] and \[4, 5\]; expected"):
        metrics.from_features(torch.ones(3, 2), torch.ones(4, 5), torch.arange(3), torch.arange(4))


def test_ids_in_a_table_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gallery_ids are torch.int64 \[2, 2\]; expected 4 integers"):
        metrics.from_chunks(lambda rows: torch.zeros(len(rows), 4), torch.arange(3), torch.arange(4).view(2, 2))


def test_a_chunk_of_nothing_is_refused() -> None:
    features, ids = torch.ones(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="chunk_size is 0; give at least 1"):
        metrics.from_features(features, features, ids, ids, chunk_size=0)
    with pytest.raises(ValueError, match="chunk_size is 0; give at least 1"):
        metrics.top_k(features, features, 1, chunk_size=0)
    with pytest.raises(ValueError, match="chunk_size is -1; give at least 1"):
        metrics.from_chunks(lambda rows: torch.ones(len(rows), 3), ids, ids, chunk_size=-1)


# --- what comes in: lists, arrays, any number type ---------------------------------------------------------------


def some_retrieval() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features on a coarse grid, so that products are exact in every arithmetic, with two identities and ties."""
    generator = torch.Generator().manual_seed(4)
    queries, gallery = (torch.randint(-2, 3, (count, 4), generator=generator) / 2 for count in (7, 11))
    query_ids, gallery_ids = (torch.randint(0, 2, (count,), generator=generator) for count in (7, 11))
    return queries, gallery, query_ids, gallery_ids


def read_only(values: Tensor) -> np.ndarray:
    array = values.numpy().copy()
    array.flags.writeable = False
    return array


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "lists": lambda values: values.tolist(),
    "tuples of lists": lambda values: tuple(values.tolist()),
    "list of tensors": list,
    "list of arrays": lambda values: list(values.numpy()),
    "list of bfloat16 tensors": lambda values: list(values.bfloat16()) if values.is_floating_point() else list(values),
    "list of half tensors": lambda values: list(values.half()) if values.is_floating_point() else list(values),
    "numpy": lambda values: values.numpy(),
    "numpy double": lambda values: values.numpy().astype(np.float64 if values.is_floating_point() else np.int64),
    "numpy half": lambda values: values.numpy().astype(np.float16 if values.is_floating_point() else np.int8),
    "numpy long double": lambda values: (
        values.numpy().astype(np.longdouble) if values.is_floating_point() else values.numpy().astype(np.uint64)
    ),
    "numpy of another byte order": lambda values: values.numpy().astype(values.numpy().dtype.newbyteorder()),
    "numpy reversed twice": lambda values: values.numpy()[::-1].copy()[::-1],
    "numpy in columns": lambda values: np.asfortranarray(values.numpy()),
    "numpy every second": lambda values: np.repeat(values.numpy(), 2, axis=0)[::2],
    "numpy read-only": read_only,
    "double": lambda values: values.double() if values.is_floating_point() else values.int(),
    "half": lambda values: values.half() if values.is_floating_point() else values.to(torch.uint8),
    "bfloat16": lambda values: values.bfloat16() if values.is_floating_point() else values.to(torch.uint32),
    "float8": lambda values: values.to(torch.float8_e5m2) if values.is_floating_point() else values.to(torch.int16),
    "requires grad": lambda values: values.clone().requires_grad_() if values.is_floating_point() else values,
    "sparse": lambda values: values.to_sparse() if values.is_floating_point() else values,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_every_form_of_the_same_numbers_gives_the_same(form: str) -> None:
    queries, gallery, query_ids, gallery_ids = some_retrieval()
    similarity = queries @ gallery.T
    expected = metrics.from_similarity(similarity, query_ids, gallery_ids)
    as_form = FORMS[form]
    for found in (
        metrics.from_similarity(as_form(similarity), as_form(query_ids), as_form(gallery_ids)),
        metrics.from_features(*(as_form(values) for values in some_retrieval())),
        metrics.from_chunks(lambda rows: as_form(similarity[rows]), as_form(query_ids), as_form(gallery_ids)),
    ):
        assert_same(found, expected)
        assert torch.equal(found.per_query.query_ids, query_ids)
    ranking, best = metrics.top_k(queries, gallery, 3), metrics.top_k(as_form(queries), as_form(gallery), np.int64(3))
    assert torch.equal(best.indices, ranking.indices) and torch.equal(best.scores.float(), ranking.scores)
    assert not best.scores.requires_grad


def test_sides_may_differ_in_form() -> None:
    queries, gallery, query_ids, gallery_ids = some_retrieval()
    expected = metrics.from_features(queries, gallery, query_ids, gallery_ids)
    assert_same(
        metrics.from_features(queries.double(), gallery.half(), query_ids.int(), gallery_ids.tolist()), expected
    )
    assert_same(metrics.from_features(queries.tolist(), gallery.numpy(), query_ids.bool(), gallery_ids), expected)


def test_identities_may_be_booleans() -> None:
    similarity = [[0.9, 0.1], [0.8, 0.2]]
    result = metrics.from_similarity(similarity, [True, False], [True, False])
    assert result.r1 == 0.5 and result.per_query.first_right_rank.tolist() == [1, 2]
    as_array = metrics.from_similarity(np.array(similarity), np.array([True, False]), torch.tensor([True, False]))
    assert as_array.summary() == result.summary()


def test_boolean_and_whole_similarities_rank_as_numbers() -> None:
    kinds: list[Any] = [[[False, True]], np.array([[0, 200]], dtype=np.uint8), np.array([[-3, 5]], dtype=np.int16)]
    for similarity in kinds:
        assert metrics.from_similarity(similarity, [7], [5, 7]).r1 == 1.0


def test_lists_of_similarities_keep_the_precision_of_python() -> None:
    similarity = [[1.0, 1.0 + 1e-12]]
    assert metrics.from_similarity(similarity, [7], [5, 7]).r1 == 1.0
    assert metrics.top_k([[0.1]], [[0.3]], 1).scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("similarity", "query_ids", "gallery_ids", "message"),
    [
        ([[1.0, 2.0], [3.0]], [1, 2], [1, 2], "similarity is no rectangular array of numbers"),
        ([1.0, 2.0], [1, 2], [1, 2], r"similarity has shape \[2\]; expected \[queries, gallery images\]"),
        (0.5, [1], [1], r"similarity has shape \[\]"),
        ([[[1.0]]], [1], [1], r"similarity has shape \[1, 1, 1\]"),
        ([], [], [], r"similarity has shape \[0\]"),
        (np.empty((0, 3)), [], [1, 2, 3], "0 queries and 3 gallery images; give at least one of each"),
        ([["a"]], [1], [1], "similarity holds str32 values; give numbers"),
        ([[1j]], [1], [1], "similarity holds complex numbers; give real ones"),
        (np.ma.masked_less([[1.0, -1.0]], 0), [1], [1, 2], "similarity is a masked array"),
        (torch.ones(1, 1, dtype=torch.complex64), [1], [1], "similarity holds complex numbers"),
        (None, [1], [1], "similarity holds object values; give numbers"),
        ([[1.0]], ["007"], ["007"], "query_ids holds str96 values; give numbers"),
        ([[1.0]], [[1]], [1], r"query_ids are torch.int64 \[1, 1\]; expected 1 integers"),
        ([[1.0]], 1, [1], r"query_ids are torch.int64 \[\]; expected 1 integers"),
        ([[1.0]], [1], [1, 2], r"gallery_ids are torch.int64 \[2\]; expected 1 integers"),
        ([[1.0]], [1.0], [1], r"query_ids are torch.float64 \[1\]; expected 1 integers"),
        ([[1.0]], [1], np.array([2**64 - 1], dtype=np.uint64), "gallery_ids holds 18446744073709551615; give at most"),
        ([[float("nan")]], [1], [1], "similarity holds NaN"),
    ],
)
def test_invalid_similarities_are_refused(similarity: Any, query_ids: Any, gallery_ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        metrics.from_similarity(similarity, query_ids, gallery_ids)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "chunk_size", "message"),
    [
        ([[1.0, 2.0], [3.0]], [[1.0]], 1, None, "query_features is no rectangular array of numbers"),
        ([[1.0]], [[1.0, 2.0]], 1, None, r"features have shapes \[1, 1\] and \[1, 2\]"),
        ([1.0], [[1.0]], 1, None, r"features have shapes \[1\] and \[1, 1\]"),
        ([[1.0]], [[float("inf")]], 1, None, "gallery features hold NaN or infinity"),
        ([[1e300]], [[1.0]], 1, None, "query features hold NaN or infinity"),
        ([torch.ones(2), torch.ones(3)], [[1.0]], 1, None, "query_features is no rectangular array of numbers"),
        ([["a"]], [[1.0]], 1, None, "query_features holds str32 values; give numbers"),
        ([[1.0]], [[1.0]], 2.5, None, "k is 2.5; give an integer"),
        ([[1.0]], [[1.0]], "1", None, "k is '1'; give an integer"),
        ([[1.0]], [[1.0]], 2, None, "k is 2; the gallery has 1 images"),
        ([[1.0]], [[1.0]], 1, 0.5, "chunk_size is 0.5; give an integer"),
        ([[1.0]], [[1.0]], 1, 0, "chunk_size is 0; give at least 1"),
    ],
)
def test_invalid_rankings_are_refused(queries: Any, gallery: Any, k: Any, chunk_size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        metrics.top_k(queries, gallery, k, chunk_size=chunk_size)
    assert "\n" not in str(caught.value)


def test_chunks_of_another_shape_or_kind_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"similarity_of gave shape \[2\]; expected \[1, 2\]"):
        metrics.from_chunks(lambda rows: [0.1, 0.2], [1], [1, 2])
    with pytest.raises(ValueError, match="similarity_of holds object values"):
        metrics.from_chunks(lambda rows: None, [1], [1, 2])  # type: ignore[arg-type, return-value]


def test_the_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(metrics, verbose=False)
    assert (outcome.failed, outcome.attempted > 5) == (0, True)
