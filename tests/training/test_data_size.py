"""Values of a recipe that training fits to the amount of data, and those that it leaves alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cskt.config import RunConfig, load_config
from cskt.errors import CsktError
from cskt.evaluation.results import EPOCH
from cskt.training.data_size import read_fitted_data
from cskt.training.events import read_events
from cskt.training.loop import train
from tiny_run import HEIGHT, WIDTH


def written(folder: Path, people: int, pairs_of_each: int, split: str = "train") -> Path:
    """Write people with one image of noise per pair."""
    folder.mkdir(exist_ok=True)
    random, lines = np.random.default_rng(0), []
    for number in range(people * pairs_of_each):
        name = f"{split}_{number}.png"
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(folder / name)
        pid = f"{split} {number // pairs_of_each}"
        lines.append(json.dumps({"image": name, "pid": pid, "captions": [f"person {number}"]}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def config_for(folder: Path, **changes: Any) -> RunConfig:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return load_config("cskt", {"data.dataset": "jsonl", "data.root": str(folder)} | named)


def test_twelve_pairs_are_one_batch_and_get_as_many_epochs_as_they_need(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path / "own", people=6, pairs_of_each=2)
    caplog.set_level(logging.INFO)
    config, data = read_fitted_data(config_for(folder))
    assert config.data.select_on == "train" and data.selection[0] == data.train and data.train.num_ids == 6
    assert (config.data.batch_size, config.loop.num_epochs, config.optim.warmup_epochs) == (12, 60, 5)
    assert config.loop.eval_period_epochs == 60, "the last epoch is kept: on train the first perfect one would be"
    assert not config.adaptable
    (line,) = [record.message for record in caplog.records if record.message.startswith("fitted to")]
    assert "12 training pairs of 6 people" in line
    assert "data.select_on val -> train" in line and "data.batch_size 128 -> 12" in line and "flag" in line
    assert "held out" not in caplog.text


def test_thirty_people_hold_five_out_and_make_four_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = written(tmp_path / "own", people=30, pairs_of_each=8)
    caplog.set_level(logging.INFO)
    config, data = read_fitted_data(config_for(folder, loop__num_epochs=6))
    assert (data.train.num_ids, data.selection[0].num_ids) == (25, 5)
    (line,) = [record.message for record in caplog.records if "held out" in record.message]
    assert line.startswith("jsonl has no val split: 5 training identities held out")
    assert config.data.batch_size == 200 // 4
    assert (config.loop.num_epochs, config.optim.warmup_epochs) == (6, 1), "six epochs were given, their warm-up not"


def test_three_people_train_together(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", people=3, pairs_of_each=2)
    config, data = read_fitted_data(config_for(folder))
    assert (config.data.select_on, config.data.batch_size, data.train.num_ids) == ("train", 6, 3)


def test_a_val_split_of_its_own_selects_however_small_it_is(tmp_path: Path) -> None:
    folder = written(written(tmp_path / "own", 3, 2), people=2, pairs_of_each=1, split="val")
    config, data = read_fitted_data(config_for(folder))
    assert config.data.select_on == "val" and data.selection[0].num_ids == 2


def test_a_value_that_is_given_stays_or_is_refused_with_its_name(
    tmp_path: Path, tiny_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path / "own", people=6, pairs_of_each=2)
    caplog.set_level(logging.INFO)
    given = {"data__batch_size": 8, "loop__num_epochs": 1, "optim__warmup_epochs": 5, "data__holdout_fraction": 0.2}
    before = config_for(folder, **given)
    config, data = read_fitted_data(before)
    assert config == before and data.train.num_ids == 5
    assert not [record for record in caplog.records if record.message.startswith("fitted to")]
    tiny = {"backbone__name": str(tiny_backbone), "prompts__depth": 2, "device": "cpu"}
    with pytest.raises(CsktError, match=r"data.batch_size 64 is more than the 12 training pairs; lower data.batch"):
        train(config_for(folder, data__batch_size=64, **tiny), tmp_path / "run")


def test_a_run_that_continues_another_stays_short(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", people=6, pairs_of_each=2)
    load_demo = load_config("demo", {"data.dataset": "jsonl", "data.root": str(folder)})
    assert read_fitted_data(load_demo)[0].loop.num_epochs == 60
    continued = load_config(load_demo, {"init_from": "somewhere"})
    assert read_fitted_data(continued)[0].loop.num_epochs == continued.loop.num_epochs == 6


def test_a_config_that_was_built_in_python_is_not_touched(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", people=6, pairs_of_each=2)
    config = load_config(config_for(folder), {"loop.num_epochs": 2}, fit=False)
    assert read_fitted_data(config)[0] == config and config.data.batch_size == 128


@pytest.mark.parametrize("sampler", ["identity", "identity-released"])
def test_an_identity_sampler_gets_whole_groups_of_the_people_there_are(tmp_path: Path, sampler: str) -> None:
    folder = written(tmp_path / "own", people=6, pairs_of_each=8)
    config, _ = read_fitted_data(config_for(folder, data__sampler=sampler, data__instances=3))
    assert config.data.batch_size == 15, "48 pairs: batches of at least 16, in groups of 3 ..."
    config, _ = read_fitted_data(config_for(folder, data__sampler=sampler, data__instances=2))
    assert config.data.batch_size == 12, "... and of no more groups than there are people"


def test_a_mix_counts_the_pairs_of_an_epoch(tmp_path: Path) -> None:
    first, second = written(tmp_path / "first", 20, 4), written(tmp_path / "second", 20, 2)
    mix = [{"root": str(second), "weight": 0.5}]
    values = {"data__mix": mix, "data__select_on": "train"}
    assert read_fitted_data(config_for(first, **values))[0].data.batch_size == (80 + 20) // 4
    assert read_fitted_data(config_for(first, **values, data__mix_batches="one"))[0].data.batch_size == 16


def test_a_training_on_twelve_pairs_runs_and_records_what_it_used(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = written(tmp_path / "own", people=6, pairs_of_each=2)
    tiny = {"backbone__name": str(tiny_backbone), "prompts__depth": 2, "device": "cpu", "data__num_workers": 0}
    sizes = {"backbone__image_height": HEIGHT, "backbone__image_width": WIDTH}
    result = train(config_for(folder, **tiny, **sizes, loop__num_epochs=2), tmp_path / "run")
    evaluated = [event["epoch"] for event in read_events(tmp_path / "run") if event.get("stage") == EPOCH]
    assert evaluated == [2] and result.best_epoch == 2, "on train the last epoch is kept"
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert (saved.data.batch_size, saved.data.select_on, saved.optim.warmup_epochs) == (12, "train", 0)
    assert result.num_epochs_done == 2 and not saved.adaptable
    assert load_config(tmp_path / "run" / "config.yaml", fit=False) == saved
