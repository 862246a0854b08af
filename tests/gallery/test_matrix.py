"""`Matrix` compared with a full float32 sort: every row among the k best must be a candidate."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cskt.gallery.stores import exact_search
from cskt.gallery.stores.exact_search import Candidates, Matrix, streamed_candidates

DIM = 24


@pytest.fixture(params=["bfloat16", "float32"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both arithmetic_names of the product, on every CPU."""
    monkeypatch.setattr(exact_search, "native_bf16", lambda: request.param == "bfloat16")
    return str(request.param)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_vectors(count: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def filled(vectors: NDArray[np.float32], block_rows: int = 64, step: int = 50) -> Matrix:
    """Return a matrix of several blocks, filled in steps that cross their borders, under keys with gaps."""
    matrix = Matrix(vectors.shape[1], block_rows)
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        matrix = matrix.extended(3 * np.arange(start, start + len(part)), part)
    return matrix


def streamed(
    vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, keys: NDArray[np.int64], step: int = 7
) -> Candidates:
    """Return the candidates of vectors that are read once, in batches."""
    starts = range(0, len(keys), step)
    batches = ((keys[start : start + step], vectors[start : start + step]) for start in starts)
    return streamed_candidates(batches, torch.from_numpy(query), k)


def best_keys(vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]) -> set[int]:
    """Return the keys of the rows that reach the k-th best float32 score, ties included."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    best = np.sort(scores[allowed])[::-1]
    if not len(best):
        return set()
    return set((3 * np.flatnonzero(allowed & (scores >= best[min(k, len(best)) - 1]))).tolist())


def assert_complete(
    found: Candidates,
    vectors: NDArray[np.float32],
    query: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> None:
    allowed = np.ones(len(vectors), bool) if allowed is None else allowed
    assert best_keys(vectors, query, k, allowed) <= set(found.keys.tolist())
    assert len(set(found.keys.tolist())) == len(found.keys)
    assert allowed[found.keys // 3].all()
    exact = vectors[found.keys // 3].astype(np.float64) @ query.astype(np.float64)
    assert (exact <= found.upper).all(), "an upper bound is exceeded"
    assert (np.diff(found.upper) <= 0).all(), "not sorted"


@pytest.mark.parametrize("panel_scores", [1, 100, 10**6])
@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("k", [1, 10, 199, 200, 1000])
def test_every_row_among_the_k_best_is_a_candidate(
    product: str, num_queries: int, k: int, panel_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result does not depend on the number of blocks that are filtered at once."""
    monkeypatch.setattr(exact_search, "PANEL_SCORES", panel_scores)
    vectors, queries = random_vectors(200), random_vectors(num_queries, seed=1)
    for found, query in zip(filled(vectors).candidates(torch.from_numpy(queries), k), queries, strict=True):
        assert_complete(found, vectors, query, k)


def test_few_other_rows_are_candidates(product: str) -> None:
    """A bound that excludes no row would be correct, and useless."""
    vectors, query = random_vectors(20_000, 128), random_vectors(1, 128, seed=1)
    [found] = filled(vectors, 4096, 3000).candidates(torch.from_numpy(query), 10)
    assert_complete(found, vectors, query[0], 10)
    assert len(found.keys) < 60


def test_hardly_any_other_row_is_a_candidate_where_nothing_is_rounded() -> None:
    vectors, query = random_vectors(20_000, 128), random_vectors(1, 128, seed=1)[0]
    found = streamed(vectors, query, 10, 3 * np.arange(20_000), step=3000)
    assert_complete(found, vectors, query, 10)
    assert len(found.keys) <= 12


def test_rows_whose_order_bfloat16_changes(product: str) -> None:
    """Thousands of almost equal vectors: their order after rounding is noise."""
    rng = np.random.default_rng(5)
    query = random_vectors(1, seed=6)
    vectors = unit(query + 1e-3 * rng.standard_normal((3000, DIM)))
    matrix = filled(vectors, 512, 500)
    rounded = np.concatenate(list(matrix.scores(torch.from_numpy(query[0]))))
    assert set(np.argsort(-rounded)[:10]) != set(np.argsort(-(vectors @ query[0]))[:10]), (
        "bfloat16 changes no order here"
    )
    [found] = matrix.candidates(torch.from_numpy(query), 10)
    assert_complete(found, vectors, query[0], 10)


def test_the_bound_covers_the_rounding_of_the_result(product: str) -> None:
    """Whole numbers up to 127 are bfloat16, so that nothing but the products themselves is rounded."""
    rng = np.random.default_rng(3)
    vectors, queries = (rng.integers(-127, 128, (count, DIM)).astype(np.float32) for count in (500, 20))
    matrix = filled(vectors)
    assert {block.rounding for block in matrix.blocks} == {0.0}
    for found, query in zip(matrix.candidates(torch.from_numpy(queries), 20), queries, strict=True):
        assert_complete(found, vectors, query, 20)


def test_exact_duplicates_all_tie(product: str) -> None:
    vectors = np.concatenate([random_vectors(100), np.repeat(random_vectors(1, seed=7), 1000, axis=0)])
    [found] = filled(vectors).candidates(torch.from_numpy(vectors[-1:]), 3)
    assert set(range(300, 3300, 3)) <= set(found.keys.tolist())


def test_negative_cosines(product: str) -> None:
    query = random_vectors(1)
    vectors = unit(-query + 0.7 * random_vectors(300, seed=8))
    assert (vectors @ query[0] < 0).all()
    [found] = filled(vectors).candidates(torch.from_numpy(query), 5)
    assert_complete(found, vectors, query[0], 5)
    assert len(found.keys) < 300


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_vectors(data: st.DataObject) -> None:
    """Coarse values make ties and zero rows, large and small ones stretch the bound."""
    numbers = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1 + 2**-8, 1 + 2**-9, 1e-20, -1e-3, 1e-40, 3.14159, 100.0])
    rows = st.lists(numbers, min_size=4, max_size=4)
    vectors = np.array(data.draw(st.lists(rows, min_size=1, max_size=40)), np.float32)
    query = np.array(data.draw(rows), np.float32)
    k = data.draw(st.integers(1, 45))
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(vectors), max_size=len(vectors))))
    matrix = filled(vectors, block_rows=data.draw(st.integers(1, 50)), step=data.draw(st.integers(1, 50)))
    [found] = matrix.candidates(torch.from_numpy(query[None]), k, matrix.select(3 * np.flatnonzero(allowed)))
    assert_complete(found, vectors, query, k, allowed)
    assert_complete(streamed(vectors[allowed], query, k, 3 * np.flatnonzero(allowed)), vectors, query, k, allowed)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_only_selected_rows_are_found(product: str, share: float) -> None:
    """A few rows are copied before the product, many are masked after it."""
    vectors, query = random_vectors(500), random_vectors(1, seed=1)
    allowed = np.random.default_rng(2).random(500) < share
    matrix = filled(vectors)
    # Keys that the matrix does not hold, between, before and after its own, select nothing.
    selection = matrix.select(np.sort(np.concatenate([3 * np.flatnonzero(allowed), [-5, 1, 4, 3001]])))
    [found] = matrix.candidates(torch.from_numpy(query), 7, selection)
    assert_complete(found, vectors, query[0], 7, allowed)
    scores = np.concatenate([np.empty(0), *matrix.scores(torch.from_numpy(query[0]), selection)])
    np.testing.assert_allclose(np.sort(scores), np.sort(vectors[allowed] @ query[0]), atol=0.02)


def test_removed_rows_are_not_found_and_the_others_are(product: str) -> None:
    vectors, query = random_vectors(300), random_vectors(1, seed=1)
    matrix = filled(vectors)
    allowed = np.ones(300, bool)
    for seed in range(5):
        removed = np.random.default_rng(seed).choice(300, 60, replace=False)
        allowed[removed] = False
        matrix = matrix.without(np.sort(np.append(3 * removed, 10_000)))
        assert matrix.keys().tolist() == (3 * np.flatnonzero(allowed)).tolist()
        assert len(matrix) == allowed.sum()
        [found] = matrix.candidates(torch.from_numpy(query), 10)
        assert_complete(found, vectors, query[0], 10, allowed)
    assert sum(len(block.alive) for block in matrix.blocks) <= 2 * allowed.sum(), "dead rows are still multiplied"


def test_a_matrix_can_be_emptied_and_filled_again() -> None:
    vectors = random_vectors(100)
    empty = filled(vectors).without(3 * np.arange(100))
    assert (len(empty), empty.last_key, empty.blocks) == (0, -1, ())
    assert empty.candidates(torch.from_numpy(vectors[:2]), 3)[1].keys.tolist() == []
    again = empty.extended(np.array([7]), vectors[:1])
    assert again.candidates(torch.from_numpy(vectors[:1]), 3)[0].keys.tolist() == [7]


def test_an_extension_changes_no_search_of_the_older_matrix() -> None:
    """Both share the memory of the last block; the older is searched while the newer is made."""
    vectors, query = random_vectors(400), torch.from_numpy(random_vectors(1, seed=1))
    old = filled(vectors[:110])
    expected = old.candidates(query, 5)[0]
    differing: list[Candidates] = []

    def search() -> None:
        for _ in range(100):
            found = old.candidates(query, 5)[0]
            if found.keys.tolist() != expected.keys.tolist():
                differing.append(found)

    thread = threading.Thread(target=search)
    thread.start()
    new = old.without(np.array([0, 3, 6]))
    for row in range(110, 400):
        new = new.extended(np.array([3 * row]), vectors[row : row + 1])
    thread.join()
    assert not differing
    assert old.keys().tolist() == list(range(0, 330, 3))
    assert new.keys().tolist() == list(range(9, 1200, 3))


def test_keys_must_rise() -> None:
    matrix = filled(random_vectors(5))
    with pytest.raises(AssertionError, match="rise"):
        matrix.extended(np.array([12]), random_vectors(1))


def test_many_queries_are_searched_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "MAX_COLLECTED", 500)
    vectors, queries = random_vectors(200), random_vectors(9, seed=1)
    for found, query in zip(filled(vectors).candidates(torch.from_numpy(queries), 150), queries, strict=True):
        assert_complete(found, vectors, query, 150)


def test_memory_is_half_of_float32() -> None:
    matrix = filled(random_vectors(1000), block_rows=1000)
    [block] = matrix.blocks
    assert block.row_buffer.nbytes == random_vectors(1000).nbytes / 2
    assert block.key_buffer.nbytes + block.alive.nbytes == 9 * 1000
