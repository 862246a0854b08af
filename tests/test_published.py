"""The published flags: each reaches its config key, and a config goes there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cskt.config import RunConfig, flat_fields, load_config, save_config
from cskt.config.released_flags import FLAGS, KEYS, from_published, recipe_of, to_published
from cskt.model.io.released.reader import read_released_config
from cskt.training.run_folder import RunFolder

# Published flag, a value as it is published, our key, our value: written out, so that the table itself is on trial.
TRANSLATIONS: list[tuple[str, Any, str, Any]] = [
    ("name", "baseline", "name", "baseline"),
    ("output_dir", "out", "output_dir", "out"),
    ("log_period", 7, "loop.log_period_steps", 7),
    ("eval_period", 2, "loop.eval_period_epochs", 2),
    ("val_dataset", "test", "data.select_on", "test"),
    ("pretrain_choice", "ViT-B/32", "backbone.name", "ViT-B/32"),
    ("temperature", 0.07, "loss.temperature", 0.07),
    ("depth", 9, "prompts.depth", 9),
    ("n_ctx", 3, "prompts.length", 3),
    ("cmt_depth", 2, "mlm.cmt_depth", 2),
    ("lr_factor", 2.5, "optim.head_lr_factor", 2.5),
    ("stride_size", 12, "backbone.stride", 12),
    ("text_length", 64, "data.caption_length", 64),
    ("optimizer", "Adam", "optim.name", "adam"),
    ("optimizer", "AdamW", "optim.name", "adamw"),
    ("optimizer", "Adamw", "optim.name", "adamw"),
    ("optimizer", "SGD", "optim.name", "sgd"),
    ("lr", 1e-5, "optim.lr", 1e-5),
    ("bias_lr_factor", 3.0, "optim.bias_lr_factor", 3.0),
    ("momentum", 0.8, "optim.momentum", 0.8),
    ("weight_decay", 1e-3, "optim.weight_decay", 1e-3),
    ("weight_decay_bias", 1e-4, "optim.weight_decay_bias", 1e-4),
    ("alpha", 0.85, "optim.beta1", 0.85),
    ("beta", 0.98, "optim.beta2", 0.98),
    ("num_epoch", 40, "loop.num_epochs", 40),
    ("milestones", (10, 30), "optim.milestones", (10, 30)),
    ("gamma", 0.5, "optim.gamma", 0.5),
    ("warmup_factor", 0.2, "optim.warmup_factor", 0.2),
    ("warmup_epochs", 3, "optim.warmup_epochs", 3),
    ("warmup_method", "constant", "optim.warmup_method", "constant"),
    ("lrscheduler", "step", "optim.schedule", "step"),
    ("lrscheduler", "poly", "optim.schedule", "poly-released"),
    ("target_lr", 1e-7, "optim.target_lr", 1e-7),
    ("power", 0.7, "optim.power", 0.7),
    ("dataset_name", "CUHK-PEDES", "data.dataset", "cuhk-pedes"),
    ("dataset_name", "ICFG-PEDES", "data.dataset", "icfg-pedes"),
    ("dataset_name", "RSTPReid", "data.dataset", "rstpreid"),
    ("sampler", "identity", "data.sampler", "identity-released"),
    ("sampler", "random", "data.sampler", "random"),
    ("num_instance", 2, "data.instances", 2),
    ("root_dir", "/somewhere", "data.root", "/somewhere"),
    ("batch_size", 64, "data.batch_size", 64),
    ("test_batch_size", 512, "data.eval_batch_size", 512),
    ("num_workers", 8, "data.num_workers", 8),
    ("img_size", (224, 112), "backbone.image_height", 224),
    ("img_size", (224, 112), "backbone.image_width", 112),
    ("MLM", True, "mlm.masked_for_all", True),
    ("MLM", False, "mlm.masked_for_all", False),
    ("loss_names", "sdm+itc", "loss.weights", {"sdm": 1.0, "itc": 1.0}),
    ("img_aug", False, "augment.pad_pixels", 0),
    ("img_aug", False, "augment.erase_probability", 0.0),
    ("img_aug", True, "augment.pad_pixels", 10),
    ("img_aug", True, "augment.erase_probability", 0.5),
    ("img_aug", False, "augment.flip_probability", 0.5),  # flipped with or without the flag, as released
    ("vocab_size", 49408, "loss.temperature", 0.02),  # CLIP's own number: nothing to change
]
SEVERAL_KEYS = {"img_size", "loss_names", "img_aug", "MLM", "vocab_size"}


def config_of(flags: dict[str, Any], recipe: str = "cskt-reference") -> RunConfig:
    return load_config(recipe, from_published(flags))


def at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("flag", "published", "key", "ours"), TRANSLATIONS)
def test_a_flag_reaches_its_key(flag: str, published: Any, key: str, ours: Any) -> None:
    assert at(config_of({flag: published}), key) == ours


def test_every_flag_is_tried_and_every_key_exists() -> None:
    with_key = {name: flag.key for name, flag in FLAGS.items() if flag.key}
    assert {flag for flag, *_ in TRANSLATIONS} == with_key.keys() | SEVERAL_KEYS
    assert set(with_key.values()) <= {name for name, _ in flat_fields()}
    assert {key: name for name, key in with_key.items()} == KEYS, "no key is set by two flags"


@pytest.mark.parametrize(("flag", "published", "key", "ours"), [row for row in TRANSLATIONS if row[0] in KEYS.values()])
def test_a_flag_moves_its_key_only(flag: str, published: Any, key: str, ours: Any) -> None:
    before, after = load_config("cskt-reference"), config_of({flag: published})
    moved = {name for name, _ in flat_fields() if at(before, name) != at(after, name)}
    assert moved <= ({key, "optim.eps"} if flag == "optimizer" else {key})


def test_no_flags_change_nothing() -> None:
    assert from_published({}) == {}
    assert from_published({"local_rank": 0, "distributed": False, "MLM": False}) == {}, "flags of the launcher"


def test_the_published_command_is_the_reference_recipe() -> None:
    flags = {
        "name": "baseline", "img_aug": True, "batch_size": 128, "dataset_name": "CUHK-PEDES", "loss_names": "sdm",
        "num_epoch": 60, "root_dir": "data", "lr": 3e-4, "depth": 12, "n_ctx": 4,
    }  # fmt: skip
    assert config_of(flags) == load_config("cskt-reference", {"name": "baseline"})


@pytest.mark.parametrize(("optimizer", "eps"), [("Adam", 1e-3), ("AdamW", 1e-8), ("Adamw", 1e-8)])
@pytest.mark.parametrize("recipe", ["cskt", "cskt-reference"])
def test_each_optimiser_brings_the_eps_of_the_released_program(recipe: str, optimizer: str, eps: float) -> None:
    assert config_of({"optimizer": optimizer}, recipe).optim.eps == eps


@pytest.mark.parametrize(
    ("flags", "weights"),
    [
        ({"loss_names": "sdm"}, {"sdm": 1.0}),
        ({"loss_names": "sdm+id", "id_loss_weight": 0.5}, {"sdm": 1.0, "id": 0.5}),
        ({"loss_names": "sdm+id"}, {"sdm": 1.0, "id": 1.0}),
        ({"loss_names": "sdm", "id_loss_weight": 0.5}, {"sdm": 1.0}),
        ({"loss_names": "sdm+mlm", "mlm_loss_weight": 0.25, "id_loss_weight": 0.5}, {"sdm": 1.0, "mlm": 0.25}),
        ({"id_loss_weight": 0.5}, {"sdm": 1.0}),
        ({"MLM": True, "loss_names": "sdm"}, {"sdm": 1.0}),
    ],
)
def test_losses_and_their_weights(flags: dict[str, Any], weights: dict[str, float]) -> None:
    assert config_of(flags).loss.weights == weights


@pytest.mark.parametrize(
    ("flags", "weights"),
    [
        ({}, {"sdm": 2.0, "id": 1.0}),
        ({"id_loss_weight": 0.5, "mlm_loss_weight": 0.5}, {"sdm": 2.0, "id": 0.5}),
        ({"loss_names": "id+itc"}, {"id": 1.0, "itc": 1.0}),
    ],
)
def test_weights_alone_change_the_losses_of_the_recipe(flags: dict[str, Any], weights: dict[str, float]) -> None:
    assert from_published(flags, {"sdm": 2.0, "id": 1.0})["loss.weights"] == weights


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        ({}, "cskt-reference"),
        ({"MLM": False, "loss_names": "sdm+id"}, "cskt-reference"),
        ({"MLM": True, "loss_names": "sdm+mlm+id", "cmt_depth": 4}, "irra"),
        ({"MLM": True, "depth": 12, "n_ctx": 4}, "cskt-reference"),
        ({"MLM": True, "n_ctx": 4}, "cskt-reference"),
    ],
)
def test_the_recipe_that_flags_belong_to(flags: dict[str, Any], recipe: str) -> None:
    assert recipe_of(flags) == recipe


def test_the_published_command_of_irra_is_its_recipe() -> None:
    flags = {
        "name": "iira", "img_aug": True, "batch_size": 64, "MLM": True, "loss_names": "sdm+mlm+id",
        "dataset_name": "CUHK-PEDES", "root_dir": "data", "num_epoch": 60,
    }  # fmt: skip
    assert config_of(flags, recipe_of(flags)) == load_config("irra", {"name": "iira"})


@pytest.mark.parametrize("size", ["384,128", "(384, 128)", "384 128", [384, 128], (384, 128)])
def test_image_sizes_in_any_spelling(size: Any) -> None:
    backbone = config_of({"img_size": size}, "demo").backbone
    assert (backbone.image_height, backbone.image_width) == (384, 128)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"temperature": 0}, "temperature 0: sdm and itc divide by it; give a positive one such as 0.02"),
        ({"temperature": -1}, "loss.temperature: input should be greater than 0, got -1"),
        ({"vocab_size": 40000}, "vocab_size 40000: CLIP's vocabulary has 49408 tokens; leave the flag out"),
        ({"img_size": "384"}, "img_size '384': give height and width, as in --img_size 384,128"),
        ({"img_size": "384,1.5"}, "img_size '384,1.5': give height and width"),
        ({"img_size": [384, 128, 3]}, "give height and width"),
        ({"dataset_name": "CUHK", "batch_size": "many"}, "data.batch_size: input should be a valid integer"),
        ({"optimizer": "Adagrad"}, "optim.name: input should be 'adam', 'adamw' or 'sgd', got 'Adagrad'"),
        ({"optimizer": ["Adam"]}, "optim.name: input should be 'adam', 'adamw' or 'sgd'"),
        ({"lrscheduler": "cosin"}, "optim.schedule: input should be 'cosine'"),
        ({"loss_names": "sdm+id", "id_loss_weight": "much"}, "loss.weights.id: input should be a valid number"),
        ({"loss_names": "+"}, "loss.weights: dictionary should have at least 1 item"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        config_of(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


ROUND_TRIPS: list[dict[str, Any]] = [
    {},
    {"optim.schedule": "poly-released"},
    {"optim.schedule": "poly"},
    {"optim.name": "sgd", "optim.milestones": [3, 5], "optim.schedule": "step"},
    {"loss.weights": {"sdm": 1.0, "id": 0.25}},
    {"data.dataset": "rstpreid", "data.select_on": "test", "backbone.stride": 12},
    {"data.dataset": "jsonl", "backbone.name": "weights/my clip.pt"},
    {"augment.pad_pixels": 0, "augment.erase_probability": 0},
    {"data.sampler": "identity-released", "data.instances": 2},
]


@pytest.mark.parametrize("recipe", ["cskt", "cskt-reference", "irra"])
@pytest.mark.parametrize("changes", ROUND_TRIPS)
def test_a_config_survives_the_published_form(recipe: str, changes: dict[str, Any]) -> None:
    if changes.get("optim.name") == "sgd":
        changes = changes | {"optim.eps": 1e-8}
    config = load_config(recipe, changes)
    assert load_config(recipe, from_published(to_published(config))) == config


def test_an_image_size_left_to_the_backbone_stays_so() -> None:
    config = load_config("demo")
    assert config.backbone.image_height is None
    assert "img_size" not in to_published(config)
    assert load_config("demo", from_published(to_published(config))) == config


@pytest.mark.parametrize("changes", ROUND_TRIPS)
def test_the_flat_copy_of_a_run_is_read_as_a_released_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    if changes.get("optim.name") == "sgd":
        changes = changes | {"optim.eps": 1e-8}
    config = load_config("cskt-reference", changes)
    folder = tmp_path / "run"
    RunFolder(folder).create(config)
    flat = yaml.safe_load((folder / "configs.yaml").read_text())
    assert flat == to_published(config), "plain YAML: no tuples, no tags"
    assert read_released_config(folder) == config


@pytest.mark.parametrize(
    "changes", [{}, {"mlm.cmt_depth": 2, "loss.weights": {"mlm": 0.5, "sdm": 1.0, "id": 0.25}, "optim.lr": 1e-4}]
)
def test_the_flat_copy_of_an_irra_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = load_config("irra", changes)
    folder = tmp_path / "run"
    RunFolder(folder).create(config)
    flat = yaml.safe_load((folder / "configs.yaml").read_text())
    assert flat["MLM"] is True and flat["cmt_depth"] == config.mlm.cmt_depth
    assert flat["loss_names"] == "+".join(config.loss.weights)
    assert not {"depth", "n_ctx"} & flat.keys(), "IRRA has no prompts"
    assert read_released_config(folder) == config


def test_a_released_flat_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "configs.yaml").write_text(
        "MLM: false\nbatch_size: 128\ndataset_name: CUHK-PEDES\nimg_aug: true\nimg_size: !!python/tuple\n- 384\n- 128\n"
        "local_rank: 0\nloss_names: sdm\nlrscheduler: poly\nmilestones: !!python/tuple\n- 20\n- 50\noptimizer: Adam\n"
        "stride_size: 16\nvocab_size: 49408\nval_dataset: test\ntarget_lr: 0\n"
    )
    changes = {"optim.schedule": "poly-released", "data.select_on": "test", "backbone.stride": 16}
    assert read_released_config(tmp_path) == load_config("cskt-reference", changes)
    save_config(read_released_config(tmp_path), tmp_path / "ours.yaml")
    assert load_config(tmp_path / "ours.yaml") == read_released_config(tmp_path)
