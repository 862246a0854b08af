"""Noisy correspondences: which captions are replaced, from a file or drawn, and files that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cskt.config import DataConfig, MixedDataset
from cskt.data.datasets import read_dataset
from cskt.data.images import ImageReader
from cskt.data.loading import TrainingLoader
from cskt.data.mixing import read_training_data
from cskt.data.noise import noise_index, with_noise
from cskt.data.paperdoll import make_dataset
from cskt.data.records import Record, Split
from cskt.data.tokenizer import Tokenizer
from cskt.errors import CsktError


def split_of(num_images: int = 4) -> Split:
    """Images with one, two, three, one, ... captions."""
    numbers = [1 + image % 3 for image in range(num_images)]
    captions = iter(range(sum(numbers)))
    records = [
        Record(10 + image, Path(f"{image}.jpg"), tuple(str(next(captions)) for _ in range(number)), "train")
        for image, number in enumerate(numbers)
    ]
    return Split("dolls", "train", tuple(records))


def written(folder: Path, values: Any) -> DataConfig:
    path = folder / "noise.npy"
    np.save(path, values)
    return DataConfig(noise_file=str(path))


def test_a_file_says_which_caption_replaces_each(tmp_path: Path) -> None:
    split, index = split_of(), [0, 5, 2, 1, 4, 3, 6]
    noisy = with_noise(split, split, written(tmp_path, index), seed=1)
    assert noisy.captions == [str(other) for other in index]
    assert [record.captions for record in noisy.records] == [("0",), ("5", "2"), ("1", "4", "3"), ("6",)]
    assert (noisy.image_paths, noisy.caption_pids) == (split.image_paths, split.caption_pids)
    assert split.captions == [str(number) for number in range(7)], "the given split stays"
    assert noisy.is_replaced == [number != other for number, other in enumerate(index)] and sum(noisy.is_replaced) == 3
    assert with_noise(split, split, written(tmp_path, np.array(index, dtype=np.uint8)), seed=1) == noisy


def test_a_file_numbers_the_captions_of_people_that_are_not_trained_on_too(tmp_path: Path) -> None:
    split, index = split_of(), [0, 5, 2, 1, 4, 3, 6]
    noisy = with_noise(split.of_people({10, 11, 13}), split, written(tmp_path, index), seed=1)
    assert noisy.captions == ["0", "5", "2", "6"] and noisy.is_replaced == [False, True, False, False]


def test_back_translations_move_with_their_captions(tmp_path: Path) -> None:
    plain, index = split_of(), [0, 5, 2, 1, 4, 3, 6]
    records = [
        dataclasses.replace(record, back_translations=tuple(f"again {text}" for text in record.captions))
        for record in plain.records[:3]
    ]
    split = dataclasses.replace(plain, records=(*records, plain.records[3]))
    noisy = with_noise(split, split, written(tmp_path, index), seed=1)
    assert noisy.back_translations == [f"again {other}" if other < 6 else "" for other in index]
    assert all(
        record.back_translations is None for record in with_noise(plain, plain, written(tmp_path, index), 1).records
    )


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8, 1.0])
def test_a_rate_moves_that_share_and_follows_the_seed(rate: float) -> None:
    config = DataConfig(noise_rate=rate)
    index = noise_index(config, 205, seed=3)
    assert sorted(index) == list(range(205)), "captions change places"
    assert (index != np.arange(205)).sum() == int(rate * 205), "none of the chosen ones stays"
    assert (noise_index(config, 205, seed=3) == index).all() and (noise_index(config, 205, seed=4) != index).any()


def test_replaced_captions_are_spread_over_the_batches_of_every_epoch() -> None:
    """The draw of the noise and those of the batches start from the same seed."""
    split, data = split_of(400), DataConfig(noise_rate=0.5, batch_size=50)
    is_replaced = np.array(with_noise(split, split, data, seed=1).is_replaced)
    loader = TrainingLoader(split, Tokenizer(8), data, ImageReader(8, 4), seed=1)
    for epoch in range(8):
        shares = [is_replaced[pairs.flatten()].mean() for pairs in loader._batches(epoch)]
        assert len(shares) == 16 and min(shares) > 0.2 and max(shares) < 0.8, epoch


def test_without_noise_the_split_is_the_same_object() -> None:
    split = split_of()
    assert with_noise(split, split, DataConfig(), seed=1) is split and not any(split.is_replaced)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2], "3 numbers, but the annotation has 7 training captions; give the file of this data set"),
        ([0, 1, 2, 3, 4, 5, 7], "holds 0 to 7; captions are numbered 0 to 6"),
        ([-1, 1, 2, 3, 4, 5, 6], "holds -1 to 6"),
        ([0.0] * 7, r"expected an array of integers, one for each training caption; found float64 \[7\]"),
        ([[0] * 7], r"found int64 \[1, 7\]"),
        (np.array(7), r"found int64 \[\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(CsktError, match=f"noise.npy: .*{message}"):
        with_noise(split_of(), split_of(), written(tmp_path, values), seed=1)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.npy"
    config = DataConfig(noise_file=str(path))
    with pytest.raises(CsktError, match=r"noise.npy: .*no such file"):
        noise_index(config, 7, seed=1)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<i8'"
    huge = header + b", 'fortran_order': False, 'shape': (%d,), }" % 10**30
    huge += b" " * (127 - len(huge)) + b"\n"
    for content in (path.read_bytes(), b"", b"text", header, huge, b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        with pytest.raises(CsktError, match=r"noise.npy: no NumPy array.* that numpy.save has written") as caught:
            noise_index(config, 7, seed=1)
        assert "pickle" not in str(caught.value), "NumPy recommends to unpickle it"
    np.savez(path.with_suffix(".npz"), index=np.arange(7))
    with pytest.raises(CsktError, match="no NumPy array"):
        noise_index(DataConfig(noise_file=str(path.with_suffix(".npz"))), 7, seed=1)


def test_a_rate_that_moves_nothing_and_contradictions_are_refused() -> None:
    with pytest.raises(CsktError, match=r"data\.noise_rate 0\.2: of 7 training captions 1 would change places"):
        with_noise(split_of(), split_of(), DataConfig(noise_rate=0.2), seed=1)
    with pytest.raises(CsktError, match="give one of them"):
        DataConfig(noise_rate=0.2, noise_file="noise.npy")
    with pytest.raises(CsktError, match=r"only a training on one data set can have noise; leave out data\.mix"):
        DataConfig(noise_rate=0.2, mix=(MixedDataset("other"),))
    with pytest.raises(CsktError, match="less than or equal to 1"):
        DataConfig(noise_rate=1.5)


def test_people_who_are_held_out_keep_their_captions(tmp_path: Path) -> None:
    root = tmp_path / "dolls"
    make_dataset(root, ids={"train": 10, "test": 2}, images_per_id=1, captions_per_image=1)
    plain = read_training_data(DataConfig(root=str(root), holdout_fraction=0.3))
    assert (plain.train.num_ids, plain.selection[0].num_ids) == (7, 3)
    shifted = np.roll(np.arange(10), 1)
    noisy = read_training_data(dataclasses.replace(written(tmp_path, shifted), root=str(root), holdout_fraction=0.3))
    assert noisy.train.is_replaced == [True] * 7 and noisy.train.image_paths == plain.train.image_paths
    assert noisy.selection[0].captions == plain.selection[0].captions
    whole = read_dataset("cuhk-pedes", root)["train"]
    wrong = {path: whole.captions[place - 1] for place, path in enumerate(whole.image_paths)}
    assert noisy.train.captions == [wrong[path] for path in noisy.train.image_paths]
