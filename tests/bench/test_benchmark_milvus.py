"""Projection for Milvus: its arithmetic on known inputs, its measurements, and the tables in the documentation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("pymilvus")

from benchmarks import milvus_plan, milvus_sizes
from benchmarks.milvus_projection import GB, Assumptions, Row, diskann_plan, grown, plan
from benchmarks.milvus_sizes import DIM, IndexSize

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "benchmarks" / "milvus_measured.json"
ROW = Row(vector=2000, scalars=500, thumbnail=2500, written_per_second=10_000)
GIVEN = Assumptions(segment_bytes=1e9, disk_segment_bytes=2e9, node_bytes=64e9, node_share=0.75, growing_share=0.1)


def sizes_of(index: str, index_bytes: int = 2200, read_bytes: float = 1e6) -> list[IndexSize]:
    """Measurements in which four times as many vectors take twice as long; the larger size is a full segment."""
    small = IndexSize(index, 50_000, 50.0, 50_000 * index_bytes, 1e-3, 2e-3, read_bytes / 4, 1.0)
    return [small, IndexSize(index, 200_000, 200.0, 200_000 * index_bytes, 2e-3, 4e-3, read_bytes, 1.0)]


def test_ten_million_crops_by_hand() -> None:
    found = plan(sizes_of("hnsw"), 10_000_000, ROW, GIVEN)
    assert (found.segments, found.shards, found.nodes) == (50, 1, 1)  # of 5 kB a crop, 200,000 a segment
    assert found.memory_bytes == pytest.approx(10e6 * (2200 + 3 * 500) + 0.1e9)
    assert found.disk_bytes == pytest.approx(10e6 * (5000 + 2200))
    assert found.write_hours == pytest.approx(1000 / 3600)
    assert found.build_hours == pytest.approx(2 * 10e6 * 1e-3 / 32 / 3600)
    # 50 segments on 16 cores: 4 rounds of 2 ms, twice as long as all cores search.
    assert found.p50_seconds == pytest.approx(4 * 2e-3 * 2 + 5e-3)


def test_a_hundred_million_crops_by_hand() -> None:
    found = plan(sizes_of("hnsw"), 100_000_000, ROW, GIVEN)
    assert (found.shards, found.segments) == (5, 500 + 4)  # each shard may end in a segment that is not full
    assert found.memory_bytes == pytest.approx(100e6 * 3700 + 5 * 0.1e9)
    assert found.nodes == 8  # 370.5 GB by 48 GB
    assert found.p50_seconds == pytest.approx(4 * 4e-3 + 5e-3)  # 63 segments a node
    more = plan(sizes_of("hnsw"), 100_000_000, ROW, replace(GIVEN, partitions=16))
    assert (more.segments, more.memory_bytes - found.memory_bytes) == (500 + 79, pytest.approx(75 * 0.1e9))
    assert plan(sizes_of("hnsw"), 10**9, ROW, GIVEN).shards == 16  # Milvus has no more


def test_memory_bandwidth_limits_a_node() -> None:
    found = plan(sizes_of("flat", read_bytes=400e6), 10_000_000, ROW, GIVEN)
    assert found.disk_bytes == 10e6 * 5000  # the index is the vectors
    assert found.p50_seconds == pytest.approx(50 * 400e6 / 100e9 + 5e-3)


def test_vectors_outside_the_index_are_read_from_disk() -> None:
    held, dropped = (plan(sizes_of("ivf_sq8", index_bytes=size), 10_000_000, ROW, GIVEN) for size in (2000, 1999))
    assert held.p50_seconds is not None and dropped.p50_seconds is not None
    assert dropped.p50_seconds - held.p50_seconds == pytest.approx(26 * 1e-4)


def test_diskann_by_hand() -> None:
    found = diskann_plan(100_000_000, ROW, GIVEN)
    assert (found.segments, found.shards) == (250 + 4, 5)
    assert found.memory_bytes == pytest.approx(100e6 * (2000 * 0.225 + 1500) + 5 * 0.2e9)
    assert found.disk_bytes == pytest.approx(100e6 * (5000 + 2000 * 1.125 + 224))
    assert (found.build_hours, found.p50_seconds) == (None, None)


@pytest.mark.parametrize(("power", "kept"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.5, 1.0), (-1.0, 0.0)])
def test_growth_is_the_power_law_of_the_two_largest_sizes(power: float, kept: float) -> None:
    sizes = [replace(sizes_of("hnsw")[0], crops=crops, search_seconds=crops**power) for crops in (1000, 100, 10)]
    sizes[2] = replace(sizes[2], search_seconds=77)  # the smallest says nothing
    assert grown(sizes, lambda size: size.search_seconds, 4000) == pytest.approx(1000**power * 4**kept)


def test_more_memory_in_a_node_is_fewer_nodes_and_slower_searches() -> None:
    few, many = (plan(sizes_of("hnsw"), 100_000_000, ROW, replace(GIVEN, node_bytes=size * GB)) for size in (256, 32))
    assert few.nodes < many.nodes and few.memory_bytes == many.memory_bytes
    assert (few.p50_seconds or 0) > (many.p50_seconds or 0)


@pytest.mark.parametrize(("name", "least", "most"), [("flat", 2048, 2049), ("ivf_sq8", 520, 660), ("hnsw", 2180, 2200)])
def test_measured_indexes_have_the_expected_sizes(name: str, least: float, most: float) -> None:
    """Bytes per crop: 4 D; D, a row number and 128 centres; 4 D, 2 M links of 4 bytes, and upper layers."""
    found = milvus_sizes.measure_index(name, 2000, 10, 1)
    assert least <= found.index_bytes / 2000 <= most
    assert found.recall > 0.9 and (name != "flat" or found.recall == 1)
    assert 0 < found.read_bytes <= 4 * DIM * 2000
    assert found.build_core_seconds >= 0 and found.search_seconds > 0 and found.crowded_seconds > 0


def test_a_measured_row_equals_that_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_plan, "WRITTEN", 100)
    row = milvus_plan.measured_row()
    assert (row.vector, row.thumbnail) == (4 * DIM, 4 * milvus_sizes.THUMBNAIL_BYTES // 3)  # base64
    assert 200 < row.scalars < 400 and row.written_per_second > 100


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["milvus_plan", *words])
    milvus_plan.main()
    return capsys.readouterr().out


def test_measuring_and_projecting_again_give_one_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(milvus_plan, "QUICK", (1000, 2000))
    monkeypatch.setattr(milvus_plan, "WRITTEN", 100)
    file = str(tmp_path / "measured.json")
    measured = printed(monkeypatch, capsys, "--quick", "--queries", "5", "--threads", "1", "--json", file)
    assert printed(monkeypatch, capsys, "--measured", file) == measured
    assert measured.count("PROJECTION, not measured") == 1
    assert [line.split(" | ")[:2] for line in measured.splitlines() if " M | " in line] == [
        [f"| {crops} M", index] for crops in (10, 100) for index in ("flat", "ivf_sq8", "hnsw", "diskann")
    ]
    assert printed(monkeypatch, capsys, "--measured", file, "--node-bytes", "256e9") != measured


def tables_in(text: str) -> list[Sequence[str]]:
    """Return the Markdown tables of a text, each as a list of lines."""
    blocks = "\n".join(line if line.startswith("|") else "" for line in text.splitlines()).split("\n\n")
    return [block.strip().splitlines() for block in blocks if block.strip()]


def test_the_documentation_has_the_tables_of_the_stored_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tables_in((ROOT / "docs" / "large-galleries.md").read_text(encoding="utf-8"))
    made = tables_in(printed(monkeypatch, capsys, "--measured", str(MEASURED)))
    assert len(made) == 2
    for table in made:
        assert table in written


def test_synthetic_vectors_are_unit_and_deterministic() -> None:
    crops, sentences = milvus_sizes.crops_of(200), milvus_sizes.sentences_of(50, 200)
    np.testing.assert_allclose(np.linalg.norm(crops, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(crops, milvus_sizes.crops_of(200))
    assert not np.allclose(crops[:50], sentences)
