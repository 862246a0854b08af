"""Evaluation of a split against a naive loop, zero-shot beside step 0, and the answers to sentences."""

from __future__ import annotations

import doctest
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cskt
from cskt.data.datasets import read_dataset
from cskt.data.records import Record, Split
from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder, build, load
from cskt.errors import CsktError
from cskt.evaluation.evaluate import ModelDescription, SplitFeatures, encode_split, evaluate, result_of, search_split
from cskt.types import RetrievalMetrics
from tiny_run import plain_clip, quick_config

CPU = torch.device("cpu")
NO_ENCODER = cast(Encoder, None)
"""Placeholder: with given features no model may be used."""


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order, for comparisons bit by bit."""


@pytest.fixture
def val(dolls: Path) -> Split:
    return read_dataset("cuhk-pedes", dolls)["val"]


@pytest.fixture
def encoder(tiny_backbone: Path) -> Encoder:
    return load(tiny_backbone, device="cpu", batch_size=4, num_workers=0)


def made_up_split(num_captions: list[int], pids: list[int]) -> Split:
    """Images that do not exist."""
    records = [
        Record(pid, Path(f"{index}.jpg"), tuple(f"caption {index} {n}" for n in range(count)), "test", {"n": index})
        for index, (pid, count) in enumerate(zip(pids, num_captions, strict=True))
    ]
    return Split("jsonl", "test", tuple(records))


def made_up_features(split: Split, seed: int = 0) -> SplitFeatures:
    generator = torch.Generator().manual_seed(seed)
    return SplitFeatures(
        F.normalize(torch.randn(len(split.records), 6, generator=generator), dim=1),
        F.normalize(torch.randn(len(split.captions), 6, generator=generator), dim=1),
        torch.tensor(split.image_pids),
        torch.tensor(split.caption_pids),
    )


def naive(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict[str, float]:
    """Rank, look, count: one query after the other."""
    hits: dict[str, list[float]] = {"r1": [], "r5": [], "r10": [], "mean_ap": [], "mean_inp": []}
    for query, pid in zip(queries, query_ids.tolist(), strict=True):
        scores = [float(query @ item) for item in gallery]
        order = sorted(range(len(gallery)), key=lambda index: (-scores[index], index))
        right = [rank for rank, index in enumerate(order, start=1) if gallery_ids[index] == pid]
        for k in (1, 5, 10):
            hits[f"r{k}"].append(float(right[0] <= k))
        hits["mean_ap"].append(sum(nth / rank for nth, rank in enumerate(right, start=1)) / len(right))
        hits["mean_inp"].append(len(right) / right[-1])
    return {name: sum(values) / len(values) for name, values in hits.items()}


@pytest.mark.parametrize("seed", range(3))
def test_both_directions_equal_a_naive_loop(seed: int) -> None:
    # one caption and ten, a person with one image, gaps in the numbers
    split = made_up_split([1, 2, 10, 1, 3, 2, 1, 2, 4, 1, 1, 2], [5, 900, 5, 7, 7, 31, 5, 900, 31, 31, 8, 5])
    known = made_up_features(split, seed)
    result = evaluate(NO_ENCODER, split, known)
    sides = (known.text_features, known.caption_pids), (known.image_features, known.image_pids)
    for found, (queries, query_ids), (gallery, gallery_ids) in (
        (result.t2i, sides[0], sides[1]),
        (result.i2t, sides[1], sides[0]),
    ):
        expected = naive(queries, gallery, query_ids, gallery_ids)
        assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)
        assert (found.num_queries, found.num_gallery) == (len(queries), len(gallery))
        assert found.num_unmatched_queries == 0
    assert result.t2i.mean_ap != pytest.approx(result.i2t.mean_ap), "two directions, two figures"


def test_a_split_is_encoded_once_in_its_own_order(encoder: Encoder, val: Split) -> None:
    known = encode_split(encoder, val)
    assert torch.equal(known.image_features, encoder.encode_image(val.image_paths))
    assert torch.equal(known.text_features, encoder.encode_text(val.captions))
    assert known.image_pids.tolist() == [record.pid for record in val.records]
    assert known.caption_pids.tolist() == [record.pid for record in val.records for _ in record.captions]


def test_the_result_names_split_and_sizes_and_is_plain_json(encoder: Encoder, val: Split) -> None:
    result = evaluate(encoder, val)
    assert result == evaluate(NO_ENCODER, val, encode_split(encoder, val))
    summary = json.loads(json.dumps(result.summary()))
    assert (summary["dataset"], summary["split"]) == ("cuhk-pedes", "val")
    assert (summary["t2i"]["num_queries"], summary["t2i"]["num_gallery"]) == (12, 6)
    assert (summary["i2t"]["num_queries"], summary["i2t"]["num_gallery"]) == (6, 12)
    for direction in ("t2i", "i2t"):
        for name in ("r1", "r5", "r10", "mean_ap", "mean_inp"):
            assert 0 <= summary[direction][name] <= 1


def per_query(metrics: RetrievalMetrics) -> list[int]:
    return metrics.per_query.first_right_rank.tolist()


def test_zero_shot_is_plain_clip_and_step_0_is_not(dolls: Path, tiny_backbone: Path, val: Split) -> None:
    """With random prompts and adapters, as the released code starts, the two are far apart."""
    model = build(quick_config(dolls, tiny_backbone, "cskt-reference")).model
    settings = {"device": CPU, "batch_size": 4, "num_workers": 0}
    plain = Encoder(plain_clip(), Tokenizer(), **settings)
    bare, step_0 = Encoder(model.bare(), Tokenizer(), **settings), Encoder(model, Tokenizer(), **settings)
    known, other = encode_split(bare, val), encode_split(step_0, val)
    for name in ("image_features", "text_features"):
        expected = getattr(encode_split(plain, val), name)
        assert torch.equal(getattr(known, name), expected)
        assert (getattr(other, name) * expected).sum(dim=1).mean() < 0.99, name
    zero_shot = evaluate(plain, val)
    assert evaluate(bare, val) == zero_shot and per_query(evaluate(bare, val).t2i) == per_query(zero_shot.t2i)
    assert per_query(evaluate(step_0, val).t2i) != per_query(zero_shot.t2i)
    assert encode_split(step_0, val).image_features.equal(other.image_features), "bare() left the model as it was"


def test_an_image_that_cannot_be_read_is_named(encoder: Encoder, val: Split, tmp_path: Path) -> None:
    broken = replace(val.records[0], image_path=tmp_path / "absent.jpg")
    with pytest.raises(ValueError, match=r"absent\.jpg: no such image"):
        evaluate(encoder, replace(val, records=(*val.records[1:], broken)))


def test_a_result_is_the_evaluation_query_by_query(encoder: Encoder, val: Split) -> None:
    expected, result = evaluate(encoder, val), result_of(encoder, val, ModelDescription("clip"))
    assert result.metrics == {"t2i": expected.t2i.summary(), "i2t": expected.i2t.summary()}
    assert result.first_right_rank.tolist() == per_query(expected.t2i)
    assert (result.query_pids.tolist(), result.split_sha256) == (val.caption_pids, val.sha256)


@pytest.mark.parametrize("kind", ["pixel_features", "encode_ids"])
def test_rates_leave_out_the_first_batch(
    kind: str, encoder: Encoder, val: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the first batch is 1,000 seconds late."""
    encode, clock, batches = getattr(encoder, f"_{kind}"), time.perf_counter, 0

    def counted(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        return encode(*arguments)

    monkeypatch.setattr(encoder, f"_{kind}", counted)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + (1000 if batches else 0))
    facts = result_of(encoder, val, ModelDescription("clip")).facts
    rate = facts.images_per_second if kind == "pixel_features" else facts.captions_per_second
    assert rate is not None and rate > 1 and batches > 1


# --- answers


def test_answers_are_the_best_images_in_order_with_their_metadata(encoder: Encoder, val: Split) -> None:
    records = tuple(replace(record, attributes={"nth": index}) for index, record in enumerate(val.records))
    described = replace(val, records=records)
    queries = ["a man in a red coat", "a woman with a bag"]
    answers = search_split(encoder, described, queries, k=4)
    gallery, sentences = encoder.encode_image(val.image_paths), encoder.encode_text(queries)
    assert len(answers) == 2
    for hits, sentence in zip(answers, sentences, strict=True):
        scores = (gallery @ sentence).tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:4]
        assert [hit.image_id for hit in hits] == [str(val.records[index].image_path) for index in order]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4]
        assert [hit.score for hit in hits] == pytest.approx([scores[index] for index in order], abs=1e-6)
        assert [hit.metadata for hit in hits] == [
            {"pid": val.records[index].pid, "attributes": {"nth": index}} for index in order
        ]


def test_equal_scores_are_answered_in_the_splits_order(encoder: Encoder, val: Split) -> None:
    twice = replace(val, records=val.records + val.records)
    hits = search_split(encoder, twice, ["a person"], k=12)[0]
    names = [hit.image_id for hit in hits]
    assert names[0::2] == names[1::2], "each image beside its double"
    known = encode_split(encoder, twice)
    alike = replace(known, image_features=known.image_features[:1].expand(12, -1))
    marked = replace(twice, records=tuple(replace(record, pid=n) for n, record in enumerate(twice.records)))
    assert [hit.metadata["pid"] for hit in search_split(encoder, marked, ["a person"], 5, alike)[0]] == [0, 1, 2, 3, 4]


def test_features_at_hand_spare_the_images(encoder: Encoder) -> None:
    split = made_up_split([1, 1, 1], [4, 5, 4])
    known = SplitFeatures(
        F.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=1),
        torch.zeros(3, 16), torch.tensor([4, 5, 4]), torch.tensor([4, 5, 4]),
    )  # fmt: skip
    hits = search_split(encoder, split, ["a woman"], 3, known)[0]
    assert sorted(hit.image_id for hit in hits) == ["0.jpg", "1.jpg", "2.jpg"]
    assert {hit.image_id: hit.metadata["attributes"] for hit in hits}["1.jpg"] == {"n": 1}


@pytest.mark.parametrize("k", [0, 7])
def test_more_hits_than_images_are_refused(encoder: Encoder, val: Split, k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; the gallery has 6 images, so give 1 to 6"):
        search_split(encoder, val, ["a person"], k)


def test_a_model_and_a_split_are_named_by_path_and_name(dolls: Path, tiny_backbone: Path) -> None:
    named = evaluate(tiny_backbone, "val", dataset="cuhk-pedes", root=str(dolls))
    assert named == evaluate(load(tiny_backbone), read_dataset("cuhk-pedes", dolls)["val"])
    with pytest.raises(CsktError, match="say which to use"):
        evaluate(tiny_backbone, "val")
    encoder = load(tiny_backbone)
    assert named == evaluate(encoder, "val", dataset="cuhk-pedes", root=str(dolls))
    encoder.source = None
    with pytest.raises(CsktError, match="split 'val': the encoder has no source"):
        evaluate(encoder, "val")


def test_the_example_of_evaluate(dolls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(dolls)
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder().find(evaluate, globs={"cskt": cskt})
    assert [doctest.DocTestRunner().run(example).failed for example in examples if example.examples] == [0]
