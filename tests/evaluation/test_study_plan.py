"""A study's file, and the runs that it comes to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from cskt.config import ClipArchitecture, RunConfig
from cskt.evaluation.study_plan import OWN_KEYS, Arm, Size, Study, StudyData, load_study, plan, select, study_names
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.weights import load_backbone

CONTENT: dict[str, Any] = {
    "title": "Two methods",
    "baseline": "CSKT",
    "seeds": [4, 2],
    "datasets": [{"name": "dolls", "dataset": "cuhk-pedes", "root": "made"}, {"name": "own", "dataset": "jsonl"}],
    "common": {"optim.lr": 1e-1, "optim.eps": 1e-1, "optim.gamma": 0.2, "loss.temperature": 0.3, "data.batch_size": 5},
    "small": {"optim.lr": 1e-2, "optim.eps": 1e-2, "optim.gamma": 0.3, "loss.temperature": 0.4},
    "arms": [
        {"label": "CLIP, zero-shot", "recipe": "clip"},
        {
            "label": "CSKT",
            "recipe": "cskt",
            "set": {"optim.lr": 1e-3, "optim.eps": 1e-3, "optim.gamma": 0.4},
            "small": {"optim.lr": 1e-4, "optim.eps": 1e-4},
        },
        {"label": "whole", "recipe": "finetune", "size": "full"},
        {"label": "thin", "recipe": "lora", "size": "small"},
    ],
}


def write(folder: Path, changes: dict[str, Any] | None = None) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(CONTENT | (changes or {})))
    return str(path)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(write(tmp_path))


def refusal(name: str) -> str:
    """The one line with which a study is refused, on loading or on planning."""
    with pytest.raises(ValueError) as caught:
        plan(load_study(name), Path("out"), Path("data"))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# --- the file


def test_defaults(tmp_path: Path) -> None:
    keys = ("title", "baseline", "datasets")
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump({key: CONTENT[key] for key in keys} | {"arms": [{"label": "CSKT", "recipe": "cskt"}]})
    )
    study = load_study(str(path))
    assert (study.seeds, study.test_on, study.common, study.small) == ((1, 2, 3), "own", {}, {})
    assert (study.arms[0].set, study.arms[0].small, study.arms[0].size) == ({}, {}, "both")
    assert study.datasets == (StudyData("dolls", "cuhk-pedes", "made"), StudyData("own", "jsonl", "."))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basline": "CSKT"}, "study.yaml: unknown key 'basline': did you mean 'baseline'?"),
        ({"arms": [{"label": "CSKT", "recipe": "cskt", "smal": {}}]},
         "study.yaml: arms[1]: unknown key 'smal': did you mean 'small'?"),
        ({"datasets": [CONTENT["datasets"][1], {"name": "x", "dataset": "jsonl", "rot": "."}]},
         "study.yaml: datasets[2]: unknown key 'rot': did you mean 'root'?"),
        ({"arms": [{"label": "CSKT", "recipe": "ckst"}]},
         "study 'Two methods', arm 'CSKT': unknown recipe 'ckst': did you mean 'cskt'?"),
        ({"arms": [{"label": "CSKT", "recipe": "cskt", "set": {"optim.lrr": 1}}]},
         "study 'Two methods', arm 'CSKT': overrides: unknown key 'optim.lrr': did you mean 'optim.lr'?"),
        ({"arms": [{"label": "CSKT", "recipe": "cskt", "set": {"optim.lr": "quick"}}]},
         "arm 'CSKT': overrides: optim.lr: input should be a valid number, unable to parse string as a number"),
        ({"common": {"prompts.dept": 1}}, "did you mean 'prompts.depth'?"),
        ({"arms": [{"label": "CSKT", "recipe": "cskt"}, {"label": "cskt!", "recipe": "maple"}]},
         "arms at the size small: 'cskt' is given twice"),
        ({"arms": [{"label": "!?", "recipe": "cskt"}], "baseline": "!?"},
         "arms at the size small: '' is no name for a folder; use letters and digits"),
        ({"datasets": [CONTENT["datasets"][1]] * 2}, "datasets: 'own' is given twice"),
        ({"seeds": [1, 2, 1]}, "seeds: '1' is given twice"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [-1]}, "seeds.0: input should be greater than or equal to 0, got -1"),
        ({"arms": []}, "arms: "),
        ({"baseline": "cskt"}, "baseline: no arm is called 'cskt'"),
        ({"test_on": "others"}, "test_on: input should be 'own' or 'all', got 'others'"),
        ({"arms": ["cskt"]}, "study.yaml: arms[1]: expected 'key: value' pairs, found 'cskt'"),
        ({"arms": "cskt"}, "study.yaml: arms: "),
    ],
)  # fmt: skip
def test_an_invalid_study_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(write(tmp_path, changes))


def test_a_missing_key_is_named_and_so_is_a_misspelt_one(tmp_path: Path) -> None:
    misspelt = {("basline" if key == "baseline" else key): value for key, value in CONTENT.items()}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(misspelt))
    assert refusal(str(path)) == f"{path}: unknown key 'basline': did you mean 'baseline'?"
    path.write_text("baseline: CSKT")
    assert re.fullmatch(rf"{re.escape(str(path))}: (title|arms|datasets): .*", refusal(str(path)))


def test_an_unknown_study() -> None:
    assert refusal("methds") == "unknown study 'methds': did you mean 'methods'?"
    assert refusal("nowhere.yaml") == "nowhere.yaml: no such file"


def test_a_label_can_name_one_arm_at_each_size(tmp_path: Path) -> None:
    arms = [{"label": "CSKT", "recipe": "cskt", "size": size} for size in ("small", "full")]
    assert len(load_study(write(tmp_path, {"arms": arms})).arms) == 2
    assert "'cskt' is given twice" in refusal(write(tmp_path, {"arms": [*arms, arms[0] | {"size": "both"}]}))


# --- the plan


def test_runs_are_planned_seed_by_seed_and_untrained_arms_once(study: Study) -> None:
    runs = plan(study, Path("out"), Path("data"))
    assert [str(run.folder) for run in runs] == [
        "out/dolls/clip-zero-shot/seed-4", "out/dolls/cskt/seed-4", "out/dolls/thin/seed-4",
        "out/own/clip-zero-shot/seed-4", "out/own/cskt/seed-4", "out/own/thin/seed-4",
        "out/dolls/cskt/seed-2", "out/dolls/thin/seed-2", "out/own/cskt/seed-2", "out/own/thin/seed-2",
    ]  # fmt: skip
    for run in runs:
        assert (run.config.seed, run.config.name) == (run.seed, run.arm.label)
        assert (run.config.data.dataset, Path(run.config.data.root)) == (run.data.dataset, Path("data") / run.data.root)
    assert {run.arm.label for run in plan(study, Path("out"), Path("data"), size="full")} == {
        "CLIP, zero-shot", "CSKT", "whole",
    }  # fmt: skip


def config_of_arm(study: Study, arm: str, size: Size, overrides: dict[str, Any] | None = None) -> RunConfig:
    return next(
        run.config for run in plan(study, Path(), Path(), size=size, overrides=overrides) if run.arm.label == arm
    )


def test_precedence_of_config_keys(study: Study) -> None:
    """common < small < set < small of the arm < what the command line says; the recipe below all."""
    small = config_of_arm(study, "CSKT", "small", {"optim.lr": 1e-5})
    assert (small.optim.lr, small.optim.eps, small.optim.gamma) == (1e-5, 1e-4, 0.4)
    assert (small.loss.temperature, small.data.batch_size, small.adapters.text_scale) == (0.4, 5, 4.0)
    full = config_of_arm(study, "CSKT", "full")
    assert (full.optim.lr, full.optim.eps, full.optim.gamma, full.loss.temperature) == (1e-3, 1e-3, 0.4, 0.3)
    assert config_of_arm(study, "thin", "small").optim.gamma == 0.3


def test_a_setting_of_a_part_is_for_the_arms_that_have_it() -> None:
    arms = [Arm(label="CSKT", recipe="cskt"), Arm(label="DM", recipe="dm-adapter")]
    study = Study(title="Parts", baseline="CSKT", datasets=[StudyData(name="a", dataset="jsonl")], arms=arms)
    changes: dict[str, Any] = {"parts.dm_adapter.vision_scale": 0.5, "optim.lr": 1e-5}
    plain, experts = (config_of_arm(study, label, "full", changes) for label in ("CSKT", "DM"))
    assert not plain.parts and plain.optim.lr == 1e-5
    assert experts.parts["dm_adapter"]["vision_scale"] == 0.5 and experts.optim.lr == 1e-5
    added = config_of_arm(study, "CSKT", "full", {"parts.up_person.rank": 3})
    assert added.parts["up_person"]["rank"] == 3, "no arm has it"


@pytest.mark.parametrize("key", OWN_KEYS)
def test_keys_of_the_study_are_refused_as_overrides(key: str, study: Study) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(key)} is for the study to set; give {OWN_KEYS[key]}$"):
        plan(study, Path("out"), Path("data"), overrides={"optim.lr": 1e-5, key: "x"})


def test_other_seeds_and_data_sets(study: Study) -> None:
    chosen = select(study, seeds=[9], datasets=[StudyData("rstpreid", "rstpreid")])
    assert [run.folder.parent.name for run in plan(chosen, Path(), Path())] == ["clip-zero-shot", "cskt", "thin"]
    assert {(run.seed, run.config.data.dataset) for run in plan(chosen, Path(), Path())} == {(9, "rstpreid")}
    assert select(study) == study


def test_arms_are_chosen_by_the_beginning_of_their_labels(study: Study) -> None:
    assert [arm.label for arm in select(study, arms=["THIN"]).arms] == [study.baseline, "thin"], "the baseline stays"
    with pytest.raises(ValueError, match="no arm of the study begins with 'fat'; it has CLIP, zero-shot, CSKT"):
        select(study, arms=["thin", "fat"])


# --- the studies that ship with the package


@pytest.fixture(scope="module")
def small_architecture() -> ClipArchitecture:
    """Architecture of clip-tiny at the small size."""
    (config,) = {run.config.backbone for run in plan(load_study("ablation"), Path(), Path(), size="small")}
    assert config.name == "clip-tiny"
    return load_backbone(config).architecture


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[] if size == "small" else pytest.mark.slow) for size in get_args(Size)]
)
@pytest.mark.parametrize("name", study_names())
def test_every_arm_of_a_shipped_study_can_be_built(name: str, size: Size, small_architecture: ClipArchitecture) -> None:
    study = load_study(name)
    runs = plan(select(study, seeds=study.seeds[:1]), Path(), Path(), size=size)
    assert study.baseline in {run.arm.label for run in runs}
    for run in runs:
        config = run.config
        height, width = (224, 224) if run.arm.recipe == "tbps-clip" else (384, 128)
        full = ClipArchitecture(image_height=height, image_width=width)
        architecture = small_architecture if size == "small" else full
        assert config.backbone.name == ("clip-tiny" if size == "small" else "ViT-B/16")
        assert (config.backbone.image_height, config.backbone.image_width) == (
            architecture.image_height, architecture.image_width,
        )  # fmt: skip
        with torch.device("meta"):
            model = DualEncoder(architecture, config.method, trainable=config.trainable)
        assert (model.num_parameters(trainable_only=True) > 0) == (config.trainable != "none"), run.arm.label


def test_the_arms_of_a_shipped_study_differ() -> None:
    """Two arms with one config would be a slip of the pen."""
    for name in study_names():
        for size in get_args(Size):
            study = load_study(name)
            runs = plan(select(study, seeds=study.seeds[:1], datasets=study.datasets[:1]), Path(), Path(), size=size)
            configs = [dataclasses.replace(run.config, name="") for run in runs]
            assert [configs.index(config) for config in configs] == list(range(len(configs))), (name, size)
