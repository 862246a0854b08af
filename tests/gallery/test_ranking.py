"""Groups of hits and histograms of scores."""

from __future__ import annotations

import pytest

from cskt.cli import search
from cskt.gallery import ranking
from cskt.gallery.options import MAX_RESULTS, SearchOptions
from cskt.gallery.query import Query
from cskt.gallery.ranking import HISTOGRAM_EDGES, grouped, merged
from cskt.types import Hit


def found(name: str, score: float, **metadata: str) -> Hit:
    return Hit(name, score, rank=1, metadata=dict(metadata))


CROPS = [
    found("a", 0.9, track="1"),
    found("b", 0.8, track="1"),
    found("c", 0.7),
    found("d", 0.6, track="2"),
    found("e", 0.5),
    found("f", 0.4, track="1"),
]


def test_defaults_in_the_help_are_those_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search.main(["--help"])
    text = capsys.readouterr().out
    weights = [Query.text_weight, Query.image_weight, Query.exclude_weight]
    assert [line.split("default: ")[1] for line in text.splitlines() if "-weight W" in line] == [
        f"{weight:g})" for weight in weights
    ]
    assert SearchOptions.k == search.DEFAULT_K and f"to {MAX_RESULTS:,}" in text


def test_a_group_is_represented_by_its_best_crop() -> None:
    groups = grouped(lambda depth: CROPS[:depth], 10, "track")
    assert [(hit.image_id, hit.group_size) for hit in groups] == [("a", 3), ("c", 1), ("d", 1), ("e", 1)]
    assert [hit.rank for hit in groups] == [1, 2, 3, 4]


def test_the_search_goes_deeper_until_there_are_enough_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []
    crops = [found(f"{index:03}", 1 - index / 1000, track=str(index // 50)) for index in range(400)]

    def search(depth: int) -> list[Hit]:
        depths.append(depth)
        return crops[:depth]

    groups = grouped(search, 3, "track")
    assert [hit.image_id for hit in groups] == ["000", "050", "100"]
    assert depths == [12, 48, 192]
    monkeypatch.setattr(ranking, "MAX_RESULTS", 60)
    assert len(grouped(search, 8, "track")) == 2


def counts_of(scores: list[float]) -> list[int]:
    counts = [0] * (len(HISTOGRAM_EDGES) - 1)
    for score in scores:
        counts[min(int((score + 1) / 0.005 + 1e-9), len(counts) - 1)] += 1
    return counts


@pytest.mark.parametrize("num_bins", [1, 7, 40])
def test_a_histogram_covers_every_score(num_bins: int) -> None:
    scores = [-0.12, 0.0, 0.101, 0.102, 0.33, 0.35]
    edges, counts = merged(counts_of(scores), num_bins)
    assert len(edges) == len(counts) + 1 <= num_bins + 1
    assert edges == sorted(set(edges))
    assert edges[0] <= min(scores) and edges[-1] >= max(scores)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert count == sum(low <= score < high for score in scores)


def test_histograms_at_the_ends() -> None:
    assert merged(counts_of([]), 40).counts == [0]
    assert sum(merged(counts_of([-1.0, 1.0]), 40).counts) == 2
    assert merged(counts_of([1.0]), 40).edges[-1] == 1.0
