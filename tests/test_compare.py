"""Settings in which runs differ, as `cskt compare` and `cskt report` list them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cskt.cli.compare import differing_settings, distinct_names, run_folders
from cskt.cli.run_report import evaluate_command, warnings_of
from cskt.config import RunConfig, load_config, save_config


def changed(recipe: str = "cskt", **changes: Any) -> list[RunConfig]:
    return [load_config(recipe, {key.replace("__", "."): value for key, value in changes.items()})]


def found(**configs: list[RunConfig]) -> dict[str, dict[str, str]]:
    return {one.key: {label: one.text_of(label) for label in one.values} for one in differing_settings(configs)}


def test_only_what_differs_is_listed() -> None:
    assert found(a=changed(optim__lr=1e-3), b=changed()) == {"optim.lr": {"a": "0.001", "b": "0.0003"}}
    assert found(a=changed(), b=changed()) == {} == found(a=changed(optim__lr=1.0)) == found()


def test_paths_names_seeds_and_speed_are_not_compared() -> None:
    elsewhere = changed(
        name="other", seed=7, device="cuda", output_dir="x", data__root="y", data__cache_dir="z", data__num_workers=1,
        backbone__name="/there/ViT-B/16", loop__log_period_steps=3, loop__compile=True,
    )  # fmt: skip
    assert found(a=changed(backbone__name="/here/16"), b=elsewhere) == {}


def test_values_of_every_kind() -> None:
    weights = {"sdm": 1.0, "id": 0.5}
    here = changed(loss__weights=weights, optim__milestones=(5, 7), data__cache_images=True, optim__ema_decay=0.9)
    assert found(a=here, b=changed(backbone__name="ViT-L/14", data__dataset="rstpreid")) == {
        "backbone.name": {"a": "16", "b": "14"},
        "loss.weights": {"a": "sdm 1 id 0.5", "b": "sdm 1"},
        "data.dataset": {"a": "cuhk-pedes", "b": "rstpreid"},
        "optim.ema_decay": {"a": "0.9", "b": "none"},
        "optim.milestones": {"a": "5,7", "b": "20,50"},
    }


def test_seeds_that_differ_among_themselves() -> None:
    assert found(a=[*changed(optim__lr=1e-3), *changed(optim__lr=1e-4)], b=changed(optim__lr=1e-3)) == {
        "optim.lr": {"a": "0.001 / 0.0001", "b": "0.001"}
    }


def test_a_field_that_an_older_run_left_empty_is_no_difference() -> None:
    assert found(a=changed(), b=changed(backbone__vision_heads=12, backbone__activation="quick_gelu")) == {}
    assert found(a=changed(backbone__vision_heads=8), b=changed(backbone__vision_heads=12)) != {}


def test_settings_of_prompts_that_a_run_has_not_are_left_out() -> None:
    differences = found(a=changed(prompts__length=2, prompts__depth=3), lora=changed("lora"))
    assert differences["prompts.directions"] == {"a": "both", "lora": "none"}
    assert not differences.keys() & {"prompts.length", "prompts.depth", "lora.rank"}
    shorter = changed(prompts__length=2)
    assert found(a=shorter, b=changed(), lora=changed("lora"))["prompts.length"] == {"a": "2", "b": "4"}


def test_settings_of_parts_losses_and_hooks_that_a_run_has_not_are_left_out() -> None:
    differences = found(a=changed("rde"), b=changed("up-person"))
    assert differences["parts.tse"] == {"a": "used", "b": "none"}
    assert differences["hooks.noise_division"] == {"a": "used", "b": "none"}
    assert not [key for key in differences if key.count(".") == 2]
    wider = found(a=changed("rde"), b=changed("rde", parts__tse__width=512), c=changed("up-person"))
    assert wider["parts.tse.width"] == {"a": "1024", "b": "512"}


def test_untrained_and_unknown_runs_are_left_out() -> None:
    assert found(a=changed(), clip=changed("clip"), unknown=[]) == {}
    assert found(a=changed(), b=changed(optim__lr=1.0), unknown=[])["optim.lr"] == {"a": "0.0003", "b": "1"}


def test_a_run_is_found_by_its_folder_its_seeds_or_its_result_file(tmp_path: Path) -> None:
    for place in ("one", "many/seed-1", "many/seed-2"):
        (tmp_path / place / "evaluations").mkdir(parents=True)
        save_config(load_config("cskt"), tmp_path / place / "config.yaml")
    (tmp_path / "one" / "evaluations" / "a.json").touch()
    (tmp_path / "lone.json").touch()
    (tmp_path / "results").mkdir()
    assert run_folders(str(tmp_path / "one")) == run_folders(str(tmp_path / "one/evaluations/a.json")) == [
        tmp_path / "one"
    ]  # fmt: skip
    assert run_folders(str(tmp_path / "many")) == [tmp_path / "many/seed-1", tmp_path / "many/seed-2"]
    assert run_folders(str(tmp_path / "results")) == run_folders(str(tmp_path / "lone.json")) == []


def test_older_runs_have_no_warnings() -> None:
    assert warnings_of([{"event": "start"}, {"event": "step"}, {"event": "end", "best_r1": 0.5}]) == []
    assert warnings_of([{"event": "start", "warnings": ["a"]}, {"event": "end", "warnings": ["b"]}]) == ["a", "b"]


def test_names_are_lengthened_until_they_are_distinct() -> None:
    assert distinct_names(["a", "b"], ["x", "y"]) == ["a", "b"]
    assert distinct_names(["a", "a", "b"], ["x", "y", "z"]) == ["x", "y", "b"]
    assert distinct_names(["a", "a"], ["x", "x"], ["p/x", "q/x"]) == ["p/x", "q/x"]


def test_the_command_to_evaluate_a_mix_names_every_data_set() -> None:
    config = load_config("cskt", {"data.root": "a", "data.mix": [{"root": "b"}, {"root": "c"}]})
    assert evaluate_command(Path("runs"), config).endswith(" evaluate runs --root a --root b --root c")
