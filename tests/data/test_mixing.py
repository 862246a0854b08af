"""Several data sets in one training: what is read, how batches are drawn, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_datasets import write_image
from test_records import write_lines

from cskt.config import DataConfig, load_config
from cskt.config.training_sections import MixedDataset
from cskt.data.images import ImageReader
from cskt.data.loading import TrainingLoader
from cskt.data.mixing import read_training_data
from cskt.data.samplers import _repeated, draw_mixed_batches
from cskt.data.tokenizer import Tokenizer
from cskt.errors import CsktError


def two_data_sets(folder: Path, **changes: object) -> DataConfig:
    """A mix of 6 images of 3 people and 4 images of 2 people, two captions each, with a val split each."""
    for name, number in (("a", 3), ("b", 2)):
        (folder / name).mkdir()
        pids = [pid for pid in range(number) for _ in range(2)]
        write_lines(folder / name, train=pids, val=[90, 91], test=[80])
        for image in [*[f"train/{n}.jpg" for n in range(len(pids))], "val/0.jpg", "val/1.jpg", "test/0.jpg"]:
            write_image(folder / name / image, 1)
    mix = (MixedDataset(str(folder / "b"), weight=changes.pop("weight", 1.0)),)
    return DataConfig(dataset="jsonl", root=str(folder / "a"), mix=mix, batch_size=4, **changes)


def test_identities_are_kept_apart(tmp_path: Path) -> None:
    data = read_training_data(two_data_sets(tmp_path))
    assert [record.pid for record in data.train.records] == [
        "1/0",
        "1/0",
        "1/1",
        "1/1",
        "1/2",
        "1/2",
        *["2/0"] * 2,
        *["2/1"] * 2,
    ]
    assert (data.train.dataset, data.train.num_ids, data.train.counts.num_captions) == ("jsonl + jsonl", 5, 20)
    assert [part.num_images for part in data.mix_parts] == [6, 4]
    assert [[record.pid for record in split.records] for split in data.selection] == [[90, 91], [90, 91]]
    alone = read_training_data(DataConfig(dataset="jsonl", root=str(tmp_path / "a")))
    assert alone.mix_parts == () and [record.pid for record in alone.train.records] == [0, 0, 1, 1, 2, 2]


def test_images_without_identity_are_people_of_their_own_in_a_mix(tmp_path: Path) -> None:
    config = two_data_sets(tmp_path)
    lines = (tmp_path / "b" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    without = [{key: value for key, value in json.loads(line).items() if key != "pid"} for line in lines]
    (tmp_path / "b" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in without))
    data = read_training_data(config)
    assert [record.pid for record in data.train.records[6:]] == [f"2/train/{number}.jpg" for number in range(4)]
    assert data.train.num_ids == 3 + 4


def epoch_of(config: DataConfig, epoch: int = 0) -> list[list[int]]:
    """Return the image of each pair, batch by batch."""
    train, parts, _ = read_training_data(config)
    loader = TrainingLoader(train, Tokenizer(), config, ImageReader(8, 8), seed=3, mix_parts=parts)
    batches = [batch.image_ids.tolist() for batch in loader.epoch(epoch)]
    assert len(batches) == loader.num_steps(epoch)
    return batches


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 8), (0.5, 4), (2.25, 18), (0.001, 1)])
def test_weights_say_how_often_a_pair_is_in_an_epoch(tmp_path: Path, weight: float, expected: int) -> None:
    config = two_data_sets(tmp_path, weight=weight, num_workers=0)
    first, second = epoch_of(config, 0), epoch_of(config, 1)
    for batches in (first, second):
        images = [image for batch in batches for image in batch]
        assert Counter(image for image in images if image < 6) == dict.fromkeys(range(6), 2)
        assert sum(image >= 6 for image in images) == expected
    assert first != second and first == epoch_of(config, 0)


def test_a_batch_of_all_or_of_one_data_set(tmp_path: Path) -> None:
    config = two_data_sets(tmp_path, num_workers=0, mix_batches="one")
    batches = epoch_of(config)
    assert sorted({image >= 6 for image in batch} == {True} for batch in batches) == [False] * 3 + [True] * 2
    assert all(len({image >= 6 for image in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("sampler", ["identity", "identity-released"])
@pytest.mark.parametrize("mix_batches", ["all", "one"])
def test_identity_samplers_keep_their_promise(sampler: str, mix_batches: str) -> None:
    pids, parts = np.repeat(np.arange(10), 4), np.repeat([0, 1], 20)
    data = DataConfig(batch_size=4, instances=2, sampler=sampler, mix_batches=mix_batches)  # type: ignore[arg-type]
    batches = draw_mixed_batches(pids, parts, [1.0, 2.0], data, np.random.default_rng(0))
    for batch in batches:
        assert Counter(Counter(pids[batch].tolist()).values()) in ({2: 2}, {4: 1})
        assert mix_batches == "all" or len(set(parts[batch])) == 1
    assert {*parts[np.concatenate(batches)]} == {0, 1}


@pytest.mark.parametrize("sampler", ["identity", "identity-released"])
@pytest.mark.parametrize("instances", [1, 2, 4])
def test_a_fraction_consists_of_whole_groups_of_equally_many_people(sampler: Any, instances: int) -> None:
    """With a few people missing, batches that the first epoch can fill could not be filled later."""
    pids, parts = np.repeat(np.arange(200), 4), np.repeat([0, 1], 400)
    data = DataConfig(batch_size=32 * instances, instances=instances, sampler=sampler, mix_batches="one")
    found = set()
    for epoch in range(20):
        batches = draw_mixed_batches(pids, parts, [1.0, 0.5], data, np.random.default_rng(epoch))
        of_second = [batch for batch in batches if parts[batch[0]] == 1]
        groups = np.concatenate(of_second).reshape(-1, instances)
        assert all(len({*group}) == instances and len({*pids[group]}) == 1 for group in groups.tolist())
        found.add(len(of_second))
    assert len(found) == 1 or sampler == "identity-released", "whose number of batches differs by itself"


def test_people_with_few_units_are_as_many_in_every_epoch() -> None:
    counts = np.random.default_rng(0).integers(1, 9, 300)
    pids, units = np.repeat(np.arange(300), counts), np.arange(counts.sum())
    num_groups = int((-(-counts // 4)).sum())
    people = {len({*pids[_repeated(units, pids, 0.3, 4, np.random.default_rng(seed))]}) for seed in range(20)}
    assert people == {round(0.3 * num_groups)}


def test_data_sets_that_share_an_image_or_do_not_fill_a_batch_are_refused(tmp_path: Path) -> None:
    config = two_data_sets(tmp_path, mix_batches="one")
    train, parts, _ = read_training_data(config)
    with pytest.raises(CsktError, match="data.batch_size 12 is more than the 8 training pairs"):
        large = load_config({"data": {"batch_size": 12, "mix_batches": "one"}}).data
        TrainingLoader(train, Tokenizer(), large, ImageReader(8, 8), seed=3, mix_parts=parts)
    (tmp_path / "b" / "val" / "0.jpg").unlink()
    (tmp_path / "b" / "val" / "0.jpg").symlink_to(tmp_path / "a" / "train" / "0.jpg")
    with pytest.raises(CsktError, match="data.mix: images in both train and val: 1 .*must not share images"):
        read_training_data(config)
    assert len(read_training_data(config, refuse_overlaps=False).train.records) == 10


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ([{"root": "b", "weight": 0}], "data.mix.0.weight: .*greater than 0, got 0"),
        ([{"root": "b", "wieght": 1}], "unknown key 'data.mix.0.wieght'"),
        ([3], "data.mix.0"),
        ("b", "data.mix: "),
    ],
)
def test_bad_mixes_are_refused(mix: object, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        load_config("cskt", {"data.mix": mix})
