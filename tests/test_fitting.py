"""Recipes over a backbone that they were not written for."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cskt.config import RunConfig, load_config, recipe_names, save_config, to_dict
from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.training.checks import BEST_RATES

OVER_TINY = {"backbone.name": "clip-tiny"}
CLIP_TINY = load_config("tiny").backbone.architecture
OTHERS = {"demo", "tiny", "adapt"}
"""Recipes over clip-tiny, over no backbone, and over that of a run."""


@pytest.mark.parametrize("recipe", sorted(set(recipe_names()) - OTHERS))
def test_every_recipe_fits_clip_tiny(recipe: str) -> None:
    assert CLIP_TINY is not None
    config = load_config(recipe, OVER_TINY)
    assert (config.backbone.image_height, config.backbone.image_width) == (128, 64)
    with torch.device("meta"):
        DualEncoder(CLIP_TINY, config.method, config.trainable)  # refuses more prompts than there are blocks
    if config.trainable != "none":
        assert config.loss.temperature == 0.05 and config.data.batch_size == 32 and config.loop.num_epochs == 6


def test_the_rate_follows_what_is_trained() -> None:
    expected = {
        "cskt-bpt": 1e-3, "cskt": 1e-3, "cskt-dat": 1e-3, "lora": 3e-3, "up-person": 3e-3, "dm-adapter": 1e-3,
        "linear": 3e-4, "irra": 1e-4, "finetune": 1e-4, "rde": 3e-4, "rde-released": 3e-4, "tbps-clip": 3e-4,
    }  # fmt: skip
    assert {name: load_config(name, OVER_TINY).optim.lr for name in expected} == expected
    assert load_config("rde", OVER_TINY).optim.head_lr_factor == 10
    assert load_config("rde").optim.head_lr_factor == 100
    slow = load_config("rde", OVER_TINY | {"optim.lr": 1e-5}).optim
    assert (slow.lr, slow.head_lr_factor) == (1e-5, 100), "they were measured together"
    added = {"trainable": "added", "adapters.sides": "both"}
    assert load_config("tbps-clip", OVER_TINY | added).optim.lr == 1e-3


def test_measured_rates_are_the_defaults() -> None:
    (over_tiny,) = yaml.safe_load(BEST_RATES.read_text(encoding="utf-8"))["measured"]
    assert {recipe: load_config(recipe, OVER_TINY).optim.lr for recipe in over_tiny["rates"]} == over_tiny["rates"]


def test_a_part_has_settings_for_the_backbone_too(tmp_path: Path) -> None:
    key = "parts.dm_adapter.vision_scale"

    def scale(*arguments: Any) -> float:
        return float(load_config(*arguments).parts["dm_adapter"]["vision_scale"])

    assert scale("dm-adapter") == 0.1
    assert scale("dm-adapter", OVER_TINY) == 4
    assert scale("dm-adapter", OVER_TINY | {key: 0.1}) == 0.1
    own = tmp_path / "own.yaml"
    own.write_text(
        "base: dm-adapter\nbackbone: {name: clip-tiny}\nparts: {dm_adapter: {vision_scale: 0.3}}\n", encoding="utf-8"
    )
    assert scale(own) == 0.3
    assert scale(load_config(own)) == 0.3


def test_one_line_names_what_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = load_config("irra", OVER_TINY)
    assert load_config(config) == config
    (line,) = caplog.messages
    assert line.startswith("fitted to clip-tiny (the recipe is for ViT-B/16): ") and "optim.lr 1e-05 -> 0.0001" in line
    assert "prompts" not in line, "irra has none"


def test_flags_and_files_win(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: cskt\noptim: {lr: 1.0e-5}\nbackbone: {image_height: 96}\n", encoding="utf-8")
    config = load_config(own, OVER_TINY | {"prompts.depth": 2})
    assert (config.optim.lr, config.backbone.image_height, config.prompts.depth) == (1e-5, 96, 2)
    assert config.loss.temperature == 0.05
    own.write_text("base: cskt\nbackbone: {name: clip-tiny}\n", encoding="utf-8")
    config = load_config(own)
    assert (config.prompts.depth, config.adapters.vision_scale) == (4, 4)


def test_recipes_over_their_own_backbone_a_saved_run_and_other_backbones_stay_as_they_are(tmp_path: Path) -> None:
    assert load_config("demo", OVER_TINY | {"name": "other"}).optim.lr == load_config("demo").optim.lr == 3e-3
    plain = load_config("cskt", fit=False)
    for name in ("ViT-B/16", "ViT-L/14", "some/clip-tiny", "../assets/clip-tiny"):
        assert load_config("cskt", {"backbone.name": name}).optim == plain.optim
    assert load_config("cskt", OVER_TINY, fit=False).optim == plain.optim
    save_config(load_config("cskt", OVER_TINY | {"optim.lr": 0.5}), tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").optim.lr == 0.5


def test_what_may_be_fitted_is_in_no_file() -> None:
    config = load_config("cskt", {"optim.lr": 1e-4})
    assert "optim.lr" not in config.adaptable and "data.batch_size" in config.adaptable
    assert dataclasses.replace(config, seed=3).adaptable == config.adaptable
    assert "adaptable" not in to_dict(config) and not RunConfig().adaptable
    assert load_config(config, {"data.batch_size": 8}).adaptable == config.adaptable - {"data.batch_size"}
    with pytest.raises(CsktError, match="adaptable: is not a key of a config; delete it"):
        load_config({"adaptable": ["optim.lr"]})


def test_adapt_takes_the_model_of_its_run_at_a_gentler_rate(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    before = load_config(
        "irra", OVER_TINY | {"optim.lr": 2e-4, "data.root": "elsewhere", "data.caption_length": 40, "seed": 7}
    )
    save_config(before, run / "config.yaml")
    config = load_config("adapt", {"init_from": str(run), "data.root": "marks"})
    for same in ("backbone", "prompts", "adapters", "augment", "trainable"):
        assert getattr(config, same) == getattr(before, same), same
    assert config.optim.lr == pytest.approx(2e-5) and config.optim.name == "adam"
    assert config.loss.weights == {"sdm": 1.0} and config.loss.temperature == before.loss.temperature
    assert (config.data.dataset, config.data.root, config.data.caption_length) == ("jsonl", "marks", 40)
    assert (config.name, config.seed, config.loop.num_epochs) == ("adapt", 1, 10)
    assert load_config("adapt", {"init_from": str(run), "optim.lr": 1e-6}).optim.lr == 1e-6

    own = tmp_path / "own.yaml"
    own.write_text(f"base: adapt\nname: mine\ninit_from: {run}\n", encoding="utf-8")
    assert load_config(own).backbone == before.backbone


def test_adapt_without_a_run_is_refused_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(CsktError, match="adapt continues a trained model; name its run: --init-from RUN"):
        load_config("adapt")
    with pytest.raises(CsktError, match=r"init_from .*: no run folder with a config.yaml, which the recipe adapt"):
        load_config("adapt", {"init_from": str(tmp_path)})
    (tmp_path / "config.yaml").write_text("optim: 3\ndata: []\n", encoding="utf-8")
    with pytest.raises(CsktError, match="config.yaml"):
        load_config("adapt", {"init_from": str(tmp_path)})
