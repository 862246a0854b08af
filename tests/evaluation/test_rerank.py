"""Query expansion and re-ranking: naive loops, what must change nothing, memory, and a case where each helps."""

import math
import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cskt import metrics
from cskt.errors import CsktError
from cskt.evaluation import rerank


def people(
    num_people: int = 40,
    *,
    images: int = 4,
    captions: int = 2,
    image_noise: float = 0.7,
    caption_noise: float = 1.2,
    gap: float = 3.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Captions [Q, D], images [G, D] and their identities; each side is around a far centre of its own (the gap)."""
    generator = torch.Generator().manual_seed(seed)

    def noise(count: int) -> Tensor:
        return torch.randn(count, 32, generator=generator, dtype=torch.float64) / 32**0.5

    person, image_centre, caption_centre = noise(num_people), gap * noise(1), gap * noise(1)
    image_ids = torch.arange(num_people).repeat_interleave(images)
    caption_ids = torch.arange(num_people).repeat_interleave(captions)
    gallery = person[image_ids] + image_noise * noise(len(image_ids)) + image_centre
    queries = person[caption_ids] + caption_noise * noise(len(caption_ids)) + caption_centre
    return normalize(queries, dim=1), normalize(gallery, dim=1), caption_ids, image_ids


def whole(similarity_of: Callable[[Tensor], Tensor], num_queries: int) -> Tensor:
    return similarity_of(torch.arange(num_queries))


# --- re-ranking: oracle ------------------------------------------------------------------------------------------


def naive_rerank(queries: Tensor, gallery: Tensor, k1: int, k2: int, weight: float) -> Tensor:
    """Sets, dictionaries and loops over single pairs."""
    num_gallery = len(gallery)

    def distances(feature: Tensor) -> list[float]:
        similarity = [float(feature @ image) for image in gallery]
        return [(max(similarity) - one) / (max(similarity) - min(similarity)) for one in similarity]

    def nearest(distance: list[float], k: int) -> list[int]:
        return sorted(range(num_gallery), key=distance.__getitem__)[:k]

    image_distances = [distances(image) for image in gallery]

    def reciprocal(image: int, k: int) -> set[int]:
        return {other for other in nearest(image_distances[image], k) if image in nearest(image_distances[other], k)}

    half = math.ceil(k1 / 2)
    halves = [reciprocal(image, half) for image in range(num_gallery)]

    def encode(distance: list[float], members: set[int]) -> dict[int, float]:
        expanded = set(members)
        for member in members:
            if len(members & halves[member]) >= 2 / 3 * len(halves[member]):
                expanded |= halves[member]
        kernel = {image: math.exp(-distance[image]) for image in expanded}
        return {image: value / sum(kernel.values()) for image, value in kernel.items()}

    def mean(vectors: list[dict[int, float]]) -> list[float]:
        return [sum(vector.get(image, 0.0) for vector in vectors) / len(vectors) for image in range(num_gallery)]

    encoded = [encode(image_distances[image], reciprocal(image, k1)) for image in range(num_gallery)]
    smoothed = [mean([encoded[other] for other in nearest(image_distances[image], k2)]) for image in range(num_gallery)]
    rows = []
    for query in queries:
        distance = distances(query)
        own = encode(distance, set(nearest(distance, k1)))
        vector = mean([own] + [encoded[image] for image in nearest(distance, k2 - 1)])
        row = []
        for image in range(num_gallery):
            smallest = sum(min(pair) for pair in zip(vector, smoothed[image], strict=True))
            largest = sum(max(pair) for pair in zip(vector, smoothed[image], strict=True))
            row.append(1 - (1 - weight) * (1 - smallest / largest) - weight * distance[image])
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def rerank_similarity(
    queries: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, weight: float = 0.3, chunk_size: int | None = None
) -> Callable[[Tensor], Tensor]:
    options = rerank.RankingOptions(rerank=True, rerank_k1=k1, rerank_k2=k2, rerank_weight=weight)
    return rerank.rerank_similarity(queries, gallery, options, chunk_size=chunk_size)


@pytest.mark.parametrize(
    ("k1", "k2", "weight", "chunk_size"),
    [(20, 6, 0.3, None), (7, 3, 0.3, 5), (6, 6, 0.0, 1), (5, 1, 0.8, 48), (1, 1, 0.5, 7), (48, 4, 0.3, 100)],
)
def test_sparse_chunks_equal_naive_loops(k1: int, k2: int, weight: float, chunk_size: int | None) -> None:
    queries, gallery, _, _ = people(12, captions=1, seed=k1)
    similarity_of = rerank_similarity(queries, gallery, k1=k1, k2=k2, weight=weight, chunk_size=chunk_size)
    expected = naive_rerank(queries, gallery, k1, k2, weight)
    torch.testing.assert_close(whole(similarity_of, 12), expected, rtol=0, atol=2e-6)
    rows = torch.tensor([7, 0, 3])
    torch.testing.assert_close(similarity_of(rows), expected[rows], rtol=0, atol=2e-6)


def test_float32_features_give_float32() -> None:
    queries, gallery, _, _ = people(12)
    exact = whole(rerank_similarity(queries, gallery), len(queries))
    result = whole(rerank_similarity(queries.float(), gallery.float()), len(queries))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)


# --- re-ranking: what must change nothing ------------------------------------------------------------------------


def test_a_caption_is_answered_alike_whoever_else_asks() -> None:
    queries, gallery, _, _ = people()
    together = whole(rerank_similarity(queries, gallery), len(queries))
    alone = whole(rerank_similarity(queries[5:7], gallery), 2)
    torch.testing.assert_close(alone, together[5:7], rtol=0, atol=1e-6)


def test_a_permuted_gallery_permutes_the_columns() -> None:
    queries, gallery, _, _ = people()
    order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(1))
    straight = whole(rerank_similarity(queries, gallery), len(queries))
    permuted = whole(rerank_similarity(queries, gallery[order]), len(queries))
    torch.testing.assert_close(permuted, straight[:, order], rtol=0, atol=1e-6)


def test_the_width_of_the_modality_gap_changes_nothing() -> None:
    """A coordinate that all captions share, and another that all images share, shift and scale all similarities."""
    queries, gallery, _, _ = people(gap=0)
    apart = torch.tensor([0.6, 0.0]).expand(len(queries), 2), torch.tensor([-0.3, 0.8]).expand(len(gallery), 2)
    gapped = [torch.cat([side * (1 - gap[0].norm() ** 2).sqrt(), gap], dim=1) for side, gap in
              zip((queries, gallery), apart, strict=True)]  # fmt: skip
    assert (gapped[0] @ gapped[1].T).mean() < (queries @ gallery.T).mean() - 0.15
    torch.testing.assert_close(
        whole(rerank_similarity(*gapped), len(queries)),
        whole(rerank_similarity(queries, gallery), len(queries)),
        rtol=0,
        atol=1e-5,
    )


def test_the_original_distance_alone_keeps_the_order() -> None:
    queries, gallery, query_ids, gallery_ids = people()
    similarity_of = rerank_similarity(queries, gallery, weight=1.0)
    before = metrics.from_features(queries, gallery, query_ids, gallery_ids)
    after = metrics.from_chunks(similarity_of, query_ids, gallery_ids)
    assert torch.equal(after.per_query.first_right_rank, before.per_query.first_right_rank)


def test_more_duplicates_than_neighbours_tie() -> None:
    """Every copy is the first of its own neighbours, though others fill the places after it."""
    queries, gallery, _, _ = people(6)
    copies = torch.cat([gallery, gallery[:1].expand(30, -1)])
    result = whole(rerank_similarity(queries, copies, k1=5, k2=2, weight=1.0), len(queries))
    torch.testing.assert_close(result[:, 24:], result[:, :1].expand(-1, 30))
    result = whole(rerank_similarity(queries, copies, k1=5, k2=2), len(queries))
    assert result.isfinite().all()
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6


@pytest.mark.parametrize("num_gallery", [1, 5])
def test_a_gallery_of_one_image_over_and_over_is_all_alike(num_gallery: int) -> None:
    queries, gallery = torch.eye(3), torch.eye(3)[:1].expand(num_gallery, -1)
    result = whole(rerank_similarity(queries, gallery, k1=num_gallery, k2=1), 3)
    torch.testing.assert_close(result, torch.ones(3, num_gallery))


# --- re-ranking: use, memory, refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_neighbours_help_where_images_of_a_person_are_alike(seed: int, gap: float) -> None:
    queries, gallery, query_ids, gallery_ids = people(100, gap=gap, captions=4, caption_noise=1.5, seed=seed)
    before = metrics.from_features(queries, gallery, query_ids, gallery_ids)
    after = metrics.from_chunks(rerank_similarity(queries, gallery), query_ids, gallery_ids)
    assert after.mean_ap > before.mean_ap + 0.05
    assert after.r1 >= before.r1


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation has put out."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return output


def test_the_whole_similarity_matrix_is_never_in_memory() -> None:
    queries, gallery, _, _ = people(60)
    with LargestTensor() as largest:
        similarity_of = rerank_similarity(queries, gallery, chunk_size=50)
        similarity_of(torch.arange(50))
        rerank.expand_queries(queries, 3, chunk_size=50)
    assert largest.num_elements <= 50 * 240


def test_intermediate_matrices_are_sparse() -> None:
    queries, gallery, _, _ = people(400)
    similarity_of = rerank_similarity(queries[:50], gallery[:50])  # first calls load modules
    similarity_of(torch.arange(50))
    tracemalloc.start()
    similarity_of = rerank_similarity(queries, gallery, chunk_size=50)
    similarity_of(torch.arange(50))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1600 * 1600 * 4 / 2  # of scipy and numpy; one dense matrix would be twice that


def test_numbers_of_neighbours_out_of_range_are_refused() -> None:
    for k1, k2 in ((0, 6), (17, 6), (8, 0), (8, 9)):
        with pytest.raises(CsktError, match=f"^re-ranking with k1 {k1}, k2 {k2} of 16 images; give a k1 of 1 to 16 "):
            rerank.RankingOptions(rerank=True, rerank_k1=k1, rerank_k2=k2).check(8, 16)
    for weight in (-0.1, 30, math.nan):
        with pytest.raises(CsktError, match=f"^re-ranking with weight {weight}; give a fraction from 0 to 1$"):
            rerank.RankingOptions(rerank=True, rerank_k1=8, rerank_weight=weight).check(8, 16)
    for k in (-1, 8):
        with pytest.raises(CsktError, match=f"^query expansion by {k} of 8 captions; give 1 to 7$"):
            rerank.RankingOptions(query_expansion=k).check(8, 16)
    with pytest.raises(CsktError, match="query expansion by 1 of 1 captions"):
        rerank.RankingOptions(query_expansion=1).check(1, 16)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    good, broken = torch.eye(4), torch.eye(4)
    broken[2, 1] = bad
    with pytest.raises(ValueError, match="query features hold NaN or infinity"):
        rerank_similarity(broken, good, k1=2, k2=1)
    with pytest.raises(ValueError, match="gallery features hold NaN or infinity"):
        rerank_similarity(good, broken, k1=2, k2=1)
    with pytest.raises(ValueError, match="query features hold NaN or infinity"):
        rerank.expand_queries(broken, 1)


def test_features_of_other_lengths_and_shapes_are_refused() -> None:
    good = torch.eye(4)
    with pytest.raises(ValueError, match="gallery features have lengths from 2 to 2; divide each by its length"):
        rerank_similarity(good, 2 * good, k1=2, k2=1)
    with pytest.raises(ValueError, match="query features have lengths from 0 to 1; divide each by its length"):
        rerank.expand_queries(torch.eye(5)[:, :4], 1)
    with pytest.raises(ValueError, match="query features are 4 wide and gallery features 3"):
        rerank_similarity(good, torch.eye(3), k1=2, k2=1)
    for features in (torch.ones(0, 4), torch.ones(4)):
        with pytest.raises(ValueError, match="query features have shape"):
            rerank_similarity(features, good, k1=2, k2=1)


# --- query expansion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "chunk_size"), [(1, None), (3, 7), (5, 1), (39, 64)])
def test_expansion_equals_a_naive_loop(k: int, chunk_size: int | None) -> None:
    queries, _, _, _ = people(20, gap=1.0)
    expanded = rerank.expand_queries(queries, k, chunk_size=chunk_size)
    for row, query in enumerate(queries):
        others = sorted(
            (other for other in range(40) if other != row), key=lambda other: -float(query @ queries[other])
        )
        total = query + sum(queries[other] for other in others[:k])
        torch.testing.assert_close(expanded[row], total / total.norm())


def test_expansion_helps_where_captions_of_a_person_are_alike() -> None:
    queries, gallery, query_ids, gallery_ids = people(100, captions=4, gap=0.0, caption_noise=0.8, image_noise=1.2)
    before = metrics.from_features(queries, gallery, query_ids, gallery_ids)
    after = metrics.from_features(rerank.expand_queries(queries, 2), gallery, query_ids, gallery_ids)
    assert after.mean_ap > before.mean_ap + 0.05


def test_a_copy_is_an_other_query_and_leaves_a_query_as_it_was() -> None:
    queries = torch.eye(4).repeat(2, 1)
    torch.testing.assert_close(rerank.expand_queries(queries, 1), queries)


def test_opposite_queries_stay_as_they_were() -> None:
    queries = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert torch.equal(rerank.expand_queries(queries, 1), queries)
