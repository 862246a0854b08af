"""Per-query results: the file, what it promises, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cskt import metrics
from cskt.config import load_config, save_config
from cskt.data.datasets import read_dataset
from cskt.data.records import Record, Split
from cskt.evaluation.results import (
    METRICS,
    Result,
    ResultInfo,
    find_results,
    load_result,
    result_path,
    save_result,
    words_to_evaluate,
)
from cskt.evaluation.statistics import curve_interval


def made_up_result(seed: int = 0, **changes: Any) -> Result:
    """Random similarities of 20 captions and 9 images; the last three captions are of somebody without an image."""
    generator = torch.Generator().manual_seed(seed)
    captions, images = torch.tensor([5, 5, 7, 8] * 4 + [5, 99, 99, 99]), torch.tensor([5, 7, 8] * 3)
    similarity = torch.rand(len(captions), len(images), generator=generator)
    t2i = metrics.from_similarity(similarity, captions, images)
    i2t = metrics.from_similarity(similarity.T, images, captions)
    values: dict[str, Any] = {
        "dataset": "cuhk-pedes", "split": "test", "split_sha256": "ab" * 32, "label": "cskt",
        "metrics": {"t2i": t2i.summary(), "i2t": i2t.summary()}, "query_pids": captions.numpy(),
        "first_right_rank": t2i.per_query.first_right_rank.numpy(),
        "average_precision": t2i.per_query.average_precision.numpy(),
        "inverse_negative_penalty": t2i.per_query.inverse_negative_penalty.numpy(),
    }  # fmt: skip
    return Result(**(values | changes))


def test_values_of_matched_queries_give_the_means() -> None:
    result = made_up_result()
    assert (len(result.query_pids), len(result.groups)) == (20, 17)
    assert 99 not in result.groups
    for metric in METRICS:
        values = result.values(metric)
        assert values.shape == result.groups.shape
        assert values.mean() == pytest.approx(result.metrics["t2i"][metric], abs=1e-12)
    assert set(result.values("r1")) == {0.0, 1.0}
    assert (result.values("r1") <= result.values("r5")).all() and (result.values("r5") <= result.values("r10")).all()
    with pytest.raises(ValueError, match="unknown metric 'r2'; there are r1, r5, r10, mean_ap, mean_inp"):
        result.values("r2")


def test_a_saved_result_is_loaded_unchanged(tmp_path: Path) -> None:
    facts = ResultInfo(
        trainable_parameters=12, training_seconds=3.5, images_per_second=10, device="cpu", trained_on="dolls"
    )
    saved = made_up_result(seed=3, note="selected on test", facts=facts)
    path = save_result(tmp_path / "run", replace(saved, seed=7))
    assert path == tmp_path / "run" / "evaluations" / "cuhk-pedes_test_abababab.json"
    loaded = load_result(path)
    assert (loaded.seed, loaded.note, loaded.facts, loaded.metrics) == (7, "selected on test", facts, saved.metrics)
    for name in ("query_pids", "first_right_rank", "average_precision", "inverse_negative_penalty"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype


def test_a_folder_stores_one_result_for_each_split_and_way_of_ranking(tmp_path: Path) -> None:
    save_result(tmp_path, made_up_result(label="old"))
    save_result(tmp_path, made_up_result(label="new"))
    save_result(tmp_path, made_up_result(label="expanded", options="query-expansion-5"))
    save_result(tmp_path, made_up_result(label="elsewhere", dataset="rstpreid"))
    save_result(tmp_path, made_up_result(label="val", split="val"))
    assert sorted(result.label for result in find_results(tmp_path)) == ["elsewhere", "expanded", "new"]
    assert [result.label for result in find_results(tmp_path, split="val")] == ["val"]
    assert [result.label for result in find_results(tmp_path, dataset="rstpreid")] == ["elsewhere"]
    assert [result.label for result in find_results(tmp_path, dataset="RSTPReid")] == ["elsewhere"]


def test_a_folder_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        find_results(tmp_path)
    remedy = f"make them: cskt evaluate MODEL --split test --output {tmp_path}"
    assert str(error.value) == f"{tmp_path}: holds no per-query results; {remedy}"
    save_result(tmp_path, made_up_result())
    held = f"{tmp_path}: holds per-query results on cuhk-pedes test"
    with pytest.raises(ValueError) as error:
        find_results(tmp_path, split="val")
    remedy = f"make them: cskt evaluate MODEL --split val --output {tmp_path}"
    assert str(error.value) == f"{held}, none on any data set val; {remedy}"
    with pytest.raises(ValueError) as error:
        find_results(tmp_path, dataset="rstpreid")
    remedy = f"make them: cskt evaluate MODEL --split test --dataset rstpreid --root DIR --output {tmp_path}"
    assert str(error.value) == f"{held}, none on rstpreid test; {remedy}"


def test_a_run_without_results_is_itself_the_model_to_evaluate(tmp_path: Path) -> None:
    save_config(load_config("cskt"), tmp_path / "config.yaml")
    with pytest.raises(ValueError) as error:
        find_results(tmp_path)
    remedy = f"make them: cskt evaluate {tmp_path} --split test"
    assert str(error.value) == f"{tmp_path}: holds no per-query results; {remedy}"
    save_result(tmp_path, made_up_result())
    with pytest.raises(ValueError) as error:
        find_results(tmp_path, split="val")
    held = f"{tmp_path}: holds per-query results on cuhk-pedes test, none on any data set val"
    assert str(error.value) == f"{held}; make them: cskt evaluate {tmp_path} --split val"


@pytest.mark.parametrize("is_run", [True, False])
def test_a_corrupt_result_names_the_command_that_replaces_it(is_run: bool, tmp_path: Path) -> None:
    if is_run:
        save_config(load_config("cskt"), tmp_path / "config.yaml")
    path = save_result(tmp_path, made_up_result())
    path.write_text("[1, 2]")
    with pytest.raises(ValueError) as error:
        load_result(path)
    remedy = f"cskt evaluate {tmp_path}" if is_run else f"cskt evaluate MODEL --output {tmp_path}"
    assert str(error.value) == f"{path}: must be an object, got [1, 2]; make it again: {remedy}"


def test_a_command_to_evaluate_names_the_place_of_data_that_is_not_the_runs_own(tmp_path: Path) -> None:
    save_config(load_config("cskt", {"data.dataset": "ICFG_PEDES"}), tmp_path / "config.yaml")
    for dataset, flags in (("icfg-pedes", []), ("jsonl", ["--root", "DIR"])):
        words = ["evaluate", str(tmp_path), "--split", "val", "--dataset", dataset, *flags]
        assert words_to_evaluate(tmp_path, "val", dataset) == words


def test_digest_of_a_split_is_that_of_its_content(dolls: Path, tmp_path: Path) -> None:
    split = read_dataset("cuhk-pedes", dolls)["test"]
    digest = split.sha256
    elsewhere = Path(shutil.copytree(dolls, tmp_path / "moved"))
    assert read_dataset("cuhk-pedes", elsewhere)["test"].sha256 == digest
    first, *rest = split.records
    for other in (
        replace(first, pid=first.pid + 1000),
        replace(first, image_path=first.image_path.with_name("other.jpg")),
        replace(first, captions=(*first.captions, "one more")),
        replace(first, captions=("in other words", *first.captions[1:])),
    ):
        assert replace(split, records=(other, *rest)).sha256 != digest
    assert replace(split, records=(*rest, first)).sha256 != digest, "the order breaks ties"


def test_identities_that_are_strings_are_kept_as_the_data_set_writes_them(tmp_path: Path) -> None:
    names = [f"anna {pid}" for pid in made_up_result().query_pids]
    result = made_up_result(query_pids=np.array(names))
    assert json.loads(save_result(tmp_path, result).read_text())["query_pids"] == names
    (loaded,) = find_results(tmp_path, split=result.split)
    assert loaded.query_pids.tolist() == names
    one, other = (curve_interval(each.values("r1")[:, None], each.groups) for each in (loaded, result))
    assert one == other


def test_the_digest_depends_on_the_ends_of_captions() -> None:
    one, other = (
        Split("jsonl", "test", (Record(1, Path("a.jpg"), captions, "test"),)) for captions in (("a, b",), ("a", " b"))
    )
    assert one.sha256 != other.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_pids": np.arange(3)}, "expected one value per query"),
        ({"first_right_rank": np.full(20, -1)}, "r1 is .*, but its queries give 0.0"),
        ({"average_precision": np.full(20, 69.7)}, "mean_ap is .*, but its queries give 69.7"),
        ({"average_precision": np.full(20, np.nan)}, "mean_ap is .*, but its queries give nan"),
        ({"average_precision": np.full(20, 0.5)}, "mean_ap is .*, but its queries give 0.5"),
    ],
)
def test_results_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"result 'cskt': .*{message}"):
        made_up_result(**changes)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edited


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not JSON: .*; make it again: cskt evaluate"),
        (lambda _: "[1, 2]", "must be an object, got .1, 2.; make it again"),
        (
            edit(lambda content: content.update(version=99)),
            "a newer version of cskt .format 99, this one reads 1.",
        ),
        (edit(lambda content: content.pop("query_pids")), "the field 'query_pids' is missing"),
        (edit(lambda content: content.pop("label")), "the field 'label' is missing"),
        (edit(lambda content: content.update(rank=3)), "the field 'rank' is unknown"),
        (edit(lambda content: content.update(seed="one")), "'seed' must be a valid integer, got 'one'"),
        (edit(lambda content: content["facts"].update(device=3)), "'facts.device' must be a valid string, got 3"),
        (
            edit(lambda content: content["query_pids"].__setitem__(0, 1.5)),
            r"'query_pids.0\S*' must be a valid integer",
        ),
        (edit(lambda content: content["first_right_rank"].pop()), "expected one value per query"),
        (edit(lambda content: content.update(metrics=None)), "make it again"),
        (edit(lambda content: content["metrics"].pop("i2t")), "the field 'metrics.i2t' is missing"),
        (edit(lambda content: content["metrics"]["t2i"].pop("r1")), "the field 'metrics.t2i.r1' is missing"),
    ],
)
def test_damaged_files_are_refused_in_one_line(damage: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = save_result(tmp_path, made_up_result())
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message) as error:
        load_result(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        find_results(tmp_path)


def test_figures_of_the_other_direction_are_checked_too(tmp_path: Path) -> None:
    for value in (math.nan, "0.5", None, -0.1, 1.5, [0.5]):
        path = save_result(tmp_path, made_up_result())
        path.write_text(edit(lambda content, value=value: content["metrics"]["i2t"].update(r1=value))(path.read_text()))
        with pytest.raises(ValueError, match="'metrics.i2t.r1' .*make it again"):
            load_result(path)


def test_names_of_a_result_never_lead_outside_its_folder(tmp_path: Path) -> None:
    path = save_result(tmp_path / "run", made_up_result(dataset="../../x", split="/etc/y", options="a/../b"))
    assert path.parent == tmp_path / "run" / "evaluations" and load_result(path).dataset == "../../x"
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_link_in_place_of_the_results_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluations").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="leads outside"):
        save_result(tmp_path / "run", made_up_result())
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = result_path(tmp_path, "cuhk-pedes", "test", "ab" * 32, "rerank")
    assert path.name == "cuhk-pedes_test_abababab_rerank.json"
    with pytest.raises(ValueError, match="_rerank.json: no such file; make it again"):
        load_result(path)
