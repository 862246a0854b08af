"""`train.py` and `test.py` as the released CSKT and IRRA repositories document them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done, in_new_process, typed

import cskt
from cskt.cli import train as train_module
from cskt.config import AdapterConfig, ClipArchitecture, LossConfig, MlmConfig, PromptConfig, RunConfig, load_config
from cskt.data.datasets import read_dataset
from cskt.embed import load
from cskt.evaluation.evaluate import evaluate
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import read_method
from cskt.model.io.released.methods import released_name
from cskt.training.events import read_events
from cskt.training.objective import Objective
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH

VERBATIM = (
    "python train.py --name baseline --img_aug --batch_size 128 --dataset_name {dataset} --loss_names 'sdm'"
    " --num_epoch 60 --root_dir {root} --lr 3e-4 --depth 12 --n_ctx 4"
)
VERBATIM_IRRA = (
    "python train.py --name iira --img_aug --batch_size 64 --MLM --loss_names 'sdm+mlm+id' --dataset_name {dataset}"
    " --root_dir {root} --num_epoch 60"
)
SMALL_IRRA = f"--batch_size 8 --num_epoch 1 --cmt_depth 1 --img_size {HEIGHT},{WIDTH} --device cpu"
SMALL = f"--depth 2 --n_ctx 2 --batch_size 8 --num_epoch 1 --img_size {HEIGHT},{WIDTH} --device cpu"
"""Typed behind a published command, these win over it."""


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configs that train.py would train, instead of training them."""
    configs: list[RunConfig] = []

    def keep(
        config: RunConfig, folder: Path | None = None, *, resume: bool = False, refuse_overlaps: bool = True
    ) -> int:
        assert not refuse_overlaps, "the released program trains on any data"
        configs.append(config)
        return 0

    monkeypatch.setattr(train_module, "run", keep)
    return configs


def value_at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


# --- what the flags mean


def test_published_command_is_the_reference_recipe(asked_for: list[RunConfig]) -> None:
    done(VERBATIM.format(dataset="CUHK-PEDES", root="DIR"))
    (config,) = asked_for
    assert config == load_config("cskt-reference", {"name": "baseline", "data.root": "DIR"})
    expected = {
        "data.dataset": "cuhk-pedes", "data.batch_size": 128, "data.select_on": "val", "loss.weights": {"sdm": 1.0},
        "loss.temperature": 0.02, "loop.num_epochs": 60, "optim.name": "adam", "optim.lr": 3e-4, "optim.eps": 1e-3,
        "optim.schedule": "cosine", "optim.warmup_epochs": 5, "prompts.depth": 12, "prompts.length": 4,
        "prompts.directions": "both", "prompts.init": "random", "adapters.sides": "both", "adapters.init": "normal",
        "augment.pad_pixels": 10, "augment.erase_probability": 0.5, "backbone.name": "ViT-B/16",
        "backbone.image_height": 384, "backbone.image_width": 128, "trainable": "added", "seed": 1,
    }  # fmt: skip
    assert {key: value_at(config, key) for key in expected} == expected


def test_published_command_of_irra_is_its_recipe(asked_for: list[RunConfig]) -> None:
    done(VERBATIM_IRRA.format(dataset="CUHK-PEDES", root="DIR"))
    (config,) = asked_for
    assert config == load_config("irra", {"name": "iira", "data.root": "DIR"})
    expected = {
        "data.dataset": "cuhk-pedes", "data.batch_size": 64, "data.select_on": "val", "loop.num_epochs": 60,
        "loss.weights": {"sdm": 1.0, "mlm": 1.0, "id": 1.0}, "loss.temperature": 0.02, "mlm.cmt_depth": 4,
        "mlm.mask_probability": 0.15, "mlm.masked_for_all": True, "optim.name": "adam", "optim.lr": 1e-5,
        "optim.eps": 1e-3, "optim.head_lr_factor": 5.0, "optim.schedule": "cosine", "optim.warmup_epochs": 5,
        "prompts.directions": "none", "adapters.sides": "none", "lora.sides": "none", "trainable": "all",
        "augment.pad_pixels": 10, "augment.erase_probability": 0.5, "backbone.name": "ViT-B/16",
        "backbone.image_height": 384, "backbone.image_width": 128, "seed": 1,
    }  # fmt: skip
    assert {key: value_at(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("flags", "recipe", "reason"),
    [
        ("", "cskt-reference", "for neither --recipe nor --MLM is given"),
        ("--MLM", "irra", "for --MLM without --depth and --n_ctx"),
        ("--MLM --depth 12 --loss_names sdm+mlm", "cskt-reference", "for --MLM with --depth or --n_ctx"),
        ("--MLM --n_ctx 4 --loss_names sdm+mlm", "cskt-reference", "for --MLM with --depth or --n_ctx"),
        ("--recipe maple", "maple", "as --recipe says"),
        ("--recipe irra --loss_names sdm+id", "irra", "as --recipe says"),
    ],
)
def test_the_recipe_and_its_reason_are_logged(
    asked_for: list[RunConfig], caplog: pytest.LogCaptureFixture, flags: str, recipe: str, reason: str
) -> None:
    with caplog.at_level("INFO"):
        done(f"python train.py {flags}")
    assert f"recipe: {recipe} ({reason})" in caplog.messages
    assert asked_for[0].name == recipe


@pytest.mark.parametrize("flags", ["--depth 12", "--n_ctx 4", "--recipe cskt"])
def test_mlm_with_prompts_warns_that_the_released_program_cannot_run_it(
    asked_for: list[RunConfig], caplog: pytest.LogCaptureFixture, flags: str
) -> None:
    done(f"python train.py --MLM {flags} --loss_names sdm+mlm")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("the released CSKT program cannot run the loss mlm with prompts") and "\n" not in warning
    assert asked_for[0].loss.weights.keys() == {"sdm", "mlm"}, "this program trains it all the same"


@pytest.mark.parametrize("flags", ["--MLM", "--depth 12 --n_ctx 4"])
def test_what_the_released_programs_run_gets_no_such_warning(
    asked_for: list[RunConfig], caplog: pytest.LogCaptureFixture, flags: str
) -> None:
    done(f"python train.py {flags}")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
    assert len(asked_for) == 1


VALUES: list[tuple[str, dict[str, Any]]] = [
    ("--name 2024", {"name": "2024"}),
    ("--root_dir 2024", {"data.root": "2024"}),
    ("--output_dir 007", {"output_dir": "007"}),
    ("--log_period 7", {"loop.log_period_steps": 7}),
    ("--eval_period 3", {"loop.eval_period_epochs": 3}),
    ("--val_dataset test", {"data.select_on": "test"}),
    ("--pretrain_choice ViT-L/14", {"backbone.name": "ViT-L/14"}),
    ("--temperature 0.05", {"loss.temperature": 0.05}),
    ("--img_aug", {"augment.pad_pixels": 10, "augment.erase_probability": 0.5}),
    ("--lr_factor 3", {"optim.head_lr_factor": 3.0}),
    ("--loss_names sdm+id+itc", {"loss.weights": {"sdm": 1.0, "id": 1.0, "itc": 1.0}}),
    ("--loss_names sdm+id --id_loss_weight 0.5", {"loss.weights": {"sdm": 1.0, "id": 0.5}}),
    ("--img_size '(256, 96)'", {"backbone.image_height": 256, "backbone.image_width": 96}),
    ("--stride_size 12", {"backbone.stride": 12}),
    ("--text_length 60", {"data.caption_length": 60}),
    ("--vocab_size 49408", {}),
    ("--optimizer SGD", {"optim.name": "sgd", "optim.eps": 1e-8}),
    ("--optimizer AdamW", {"optim.name": "adamw", "optim.eps": 1e-8}),
    ("--lr 1e-5", {"optim.lr": 1e-5}),
    ("--bias_lr_factor 1.5", {"optim.bias_lr_factor": 1.5}),
    ("--momentum 0.8", {"optim.momentum": 0.8}),
    ("--weight_decay 1e-4", {"optim.weight_decay": 1e-4}),
    ("--weight_decay_bias 1e-6", {"optim.weight_decay_bias": 1e-6}),
    ("--alpha 0.8", {"optim.beta1": 0.8}),
    ("--beta 0.99", {"optim.beta2": 0.99}),
    ("--num_epoch 30", {"loop.num_epochs": 30}),
    ("--milestones 10 30", {"optim.milestones": (10, 30)}),
    ("--milestones 10,30", {"optim.milestones": (10, 30)}),
    ("--gamma 0.5", {"optim.gamma": 0.5}),
    ("--warmup_factor 0.2", {"optim.warmup_factor": 0.2}),
    ("--warmup_epochs 0", {"optim.warmup_epochs": 0}),
    ("--warmup_method constant", {"optim.warmup_method": "constant"}),
    ("--lrscheduler step", {"optim.schedule": "step"}),
    ("--lrscheduler poly", {"optim.schedule": "poly-released"}),
    ("--target_lr 1e-6", {"optim.target_lr": 1e-6}),
    ("--power 0.7", {"optim.power": 0.7}),
    ("--dataset_name RSTPReid", {"data.dataset": "rstpreid"}),
    ("--sampler identity", {"data.sampler": "identity-released"}),
    ("--sampler random", {"data.sampler": "random"}),
    ("--num_instance 2", {"data.instances": 2}),
    ("--root_dir /data/pedes", {"data.root": "/data/pedes"}),
    ("--batch_size 64", {"data.batch_size": 64}),
    ("--test_batch_size 512", {"data.eval_batch_size": 512}),
    ("--num_workers 8", {"data.num_workers": 8}),
    ("--depth 9", {"prompts.depth": 9}),
    ("--n_ctx 2", {"prompts.length": 2}),
    ("--local_rank 0", {}),
    # ours
    ("--precision bf16", {"precision": "bf16"}),
    ("--checkpoint_activations", {"loop.checkpoint_activations": True}),
    ("--seed 7", {"seed": 7}),
    ("--cmt_depth 6", {"mlm.cmt_depth": 6}),
    ("--masked_token_rate 0.5", {}),  # the released program does not look at these two
    ("--masked_token_unchanged_rate 0.5", {}),
    ("--mlm_loss_weight 2", {}),  # there is no such loss without --MLM
]
IRRA_VALUES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--cmt_depth 2", {"mlm.cmt_depth": 2}),
    ("--mlm_loss_weight 2", {"loss.weights": {"sdm": 1.0, "id": 1.0, "mlm": 2.0}}),
    ("--id_loss_weight 0.5", {"loss.weights": {"sdm": 1.0, "id": 0.5, "mlm": 1.0}}),
    ("--loss_names sdm+mlm --mlm_loss_weight 0.1", {"loss.weights": {"sdm": 1.0, "mlm": 0.1}}),
    ("--loss_names sdm+id", {"loss.weights": {"sdm": 1.0, "id": 1.0}, "mlm.without_loss": True}),
    ("--masked_token_rate 0.5 --masked_token_unchanged_rate 0.5", {}),
    ("--lr 1e-4 --batch_size 128", {"optim.lr": 1e-4, "data.batch_size": 128}),
]
REFUSED = [
    ("--loss_names sdm+mlm+id", "--loss_names sdm+mlm+id: the loss mlm needs masked words; add --MLM"),
    ("--MLM --cmt_depth 0", "--cmt_depth: input should be greater than 0, got 0"),
    ("--test", "use test.py --config_file"),
    ("--local_rank 1", "no launcher has started other processes; use torchrun"),
    ("--vocab_size 49409", "leave the flag out"),
    ("--temperature 0", "0.02"),
    ("--img_size 384", "--img_size 384,128"),
    ("--stride_size 0", "--stride_size: input should be greater than 0, got 0"),
    ("--optimizer Lion", "'adam', 'adamw' or 'sgd'"),
    ("--lrscheduler cosin", "'cosine'"),
    ("--val_dataset tset", "--val_dataset: input should be 'val', 'test' or 'train', got 'tset'"),
    ("--milestones ten", "--milestones.0: input should be a valid integer"),
    ("--precision fp64", "--precision: input should be 'fp32', 'bf16' or 'fp16'"),
    ("--resume", "--resume_ckpt_file RUN/last.pt"),
    ("--resume --resume_ckpt_file RUN/best.pth", "--resume_ckpt_file RUN/last.pt"),
    ("--batchsize 8", "did you mean --batch_size?"),
    ("--recipe cskt-refrence", "did you mean 'cskt-reference'?"),
]
RELEASED_FLAGS = """
    local_rank name output_dir log_period eval_period val_dataset resume resume_ckpt_file pretrain_choice temperature
    img_aug cmt_depth masked_token_rate masked_token_unchanged_rate lr_factor MLM loss_names mlm_loss_weight
    id_loss_weight img_size stride_size text_length vocab_size optimizer lr bias_lr_factor momentum weight_decay
    weight_decay_bias alpha beta num_epoch milestones gamma warmup_factor warmup_epochs warmup_method lrscheduler
    target_lr power dataset_name sampler num_instance root_dir batch_size test_batch_size num_workers test depth n_ctx
"""


def test_every_released_flag_is_looked_at_here() -> None:
    words = " ".join(flags for flags, _ in [*VALUES, *REFUSED]).split()
    assert set(RELEASED_FLAGS.split()) <= {word.removeprefix("--") for word in words if word.startswith("--")}


@pytest.mark.parametrize(("flags", "expected"), VALUES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_flag_sets_its_keys_only(asked_for: list[RunConfig], flags: str, expected: dict[str, Any]) -> None:
    done("python train.py --num_epoch 60")
    done(f"python train.py {flags}")
    plain, changed = asked_for
    without_augmentation = {"augment.pad_pixels": 0, "augment.erase_probability": 0.0}
    assert plain == load_config("cskt-reference", without_augmentation)
    assert changed == load_config("cskt-reference", without_augmentation | expected)


@pytest.mark.parametrize(("flags", "expected"), IRRA_VALUES)
def test_flag_beside_mlm_changes_irra(asked_for: list[RunConfig], flags: str, expected: dict[str, Any]) -> None:
    done(f"python train.py --MLM --img_aug {flags}")
    assert asked_for == [load_config("irra", expected)]


def test_mlm_without_its_loss_masks_the_captions_of_cskt(
    asked_for: list[RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "cskt"):
        done("python train.py --MLM --img_aug --depth 12 --n_ctx 4 --loss_names sdm")
    assert asked_for == [load_config("cskt-reference", {"mlm.masked_for_all": True, "mlm.without_loss": True})]
    (printed,) = [message for message in caplog.messages if message.startswith("--MLM without the loss mlm")]
    assert "masked captions for sdm, as in the released programs" in printed
    assert "the released CSKT program cannot run the loss mlm with prompts" in printed


@pytest.mark.parametrize(("flags", "reason"), REFUSED, ids=lambda value: value)
def test_flag_is_refused_with_the_reason(asked_for: list[RunConfig], flags: str, reason: str) -> None:
    assert reason in typed(f"python train.py {flags}").refusal()
    assert asked_for == []


def test_error_names_what_was_typed(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = f"python train.py {SMALL} --root_dir {root} --pretrain_choice {tiny_backbone} --output_dir {tmp_path}"
    refusal = typed(f"{command} --batch_size 64").refusal()
    assert refusal == "--batch_size 64 is more than the 32 training pairs; lower --batch_size"


def test_error_in_a_recipe_names_its_own_key(asked_for: list[RunConfig], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {select_on: tset}")
    refusal = typed(f"python train.py --recipe {recipe}").refusal()
    assert refusal.startswith(f"{recipe}: data.select_on: ") and asked_for == []


def test_help_shows_what_the_reference_recipe_sets() -> None:
    text = " ".join(done("python train.py --help").split())
    for line in (
        "base learning rate (0.0003)", "CUHK-PEDES, ICFG-PEDES or RSTPReid (CUHK-PEDES)", "or SGD (Adam)",
        "height,width in pixels (384,128)", "rate by gamma (20,50)", "test is the published protocol (val)",
        "takes irra instead: name irra, loss_names sdm+id+mlm, lr 1e-05, batch_size 64.",
    ):  # fmt: skip
        assert line in text


def test_another_recipe(asked_for: list[RunConfig]) -> None:
    done("python train.py --recipe cskt --img_aug --lr 1e-4")
    assert asked_for == [load_config("cskt", {"optim.lr": 1e-4})]


# --- training and testing for real


def only_run(output: Path, dataset: str) -> Path:
    (folder,) = (output / dataset).iterdir()
    return folder


@pytest.mark.parametrize("dataset", ["CUHK-PEDES", "ICFG-PEDES", "RSTPReid"])
def test_train_then_test(root: Path, tiny_backbone: Path, tmp_path: Path, dataset: str) -> None:
    command = VERBATIM.format(dataset=dataset, root=root)
    out = done(f"{command} {SMALL} --pretrain_choice {tiny_backbone} --output_dir {tmp_path}")
    folder = only_run(tmp_path, dataset.lower())
    assert folder.name.endswith("_baseline")
    assert "selected on val" in out
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # ICFG-PEDES has no val: its 12 training identities give one away
    assert events[0]["train_identities"] == (11 if dataset == "ICFG-PEDES" else 8)
    assert {event["split"] for event in events if event["event"] == "evaluation"} == {"val"}

    table = done(f"python test.py --config_file {folder}/configs.yaml")
    assert "text to image" in table and "image to text" in table and "selected on" not in table
    figures = typed(f"python test.py --config_file {folder}/configs.yaml --json").json()
    assert (figures["dataset"], figures["split"], figures["note"]) == (dataset.lower(), "test", "")
    assert (figures["t2i"]["num_gallery"], figures["t2i"]["num_unmatched_queries"]) == (12, 0)
    direct = evaluate(cskt.load(folder, device="cpu"), read_dataset(dataset, root)["test"])
    assert figures["t2i"] == direct.t2i.summary() and figures["i2t"] == direct.i2t.summary()


def test_train_irra_then_test(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = VERBATIM_IRRA.format(dataset="CUHK-PEDES", root=root)
    done(f"{command} {SMALL_IRRA} --pretrain_choice {tiny_backbone} --output_dir {tmp_path}")
    folder = only_run(tmp_path, "cuhk-pedes")
    assert folder.name.endswith("_iira")
    steps = [event for event in read_events(folder) if event["event"] == "step"]
    assert steps and all(event["losses"].keys() == {"sdm", "mlm", "id"} for event in steps)

    saved = read_method(folder / "best.safetensors")
    towers = DualEncoder(ARCHITECTURE)
    assert saved.tensors.keys() == dict(towers.named_parameters()).keys(), "the heads exist in training only"

    figures = typed(f"python test.py --config_file {folder}/configs.yaml --json").json()
    direct = evaluate(cskt.load(folder, device="cpu"), read_dataset("CUHK-PEDES", root)["test"])
    assert figures["t2i"] == direct.t2i.summary() and figures["split"] == "test"


def test_cskt_with_masked_language_modelling(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = VERBATIM.format(dataset="CUHK-PEDES", root=root)
    mlm = "--MLM --loss_names sdm+mlm --cmt_depth 1"
    done(f"{command} {SMALL} {mlm} --pretrain_choice {tiny_backbone} --output_dir {tmp_path}")
    folder = only_run(tmp_path, "cuhk-pedes")
    config = load_config(folder / "config.yaml")
    assert (config.prompts.directions, config.loss.weights) == ("both", {"sdm": 1.0, "mlm": 1.0})
    tensors = read_method(folder / "best.safetensors").tensors
    assert {name.split(".")[0] for name in tensors} == {"prompts", "adapters"}
    assert "text to image" in done(f"python test.py --config_file {folder}/configs.yaml")


def test_data_and_backbone_that_moved(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copytree(root / "RSTPReid", before / "RSTPReid")
    shutil.copy(tiny_backbone, before / "clip.safetensors")
    command = VERBATIM.format(dataset="RSTPReid", root=before)
    done(f"{command} {SMALL} --pretrain_choice {before}/clip.safetensors --output_dir {tmp_path}")
    config_file = only_run(tmp_path, "rstpreid") / "configs.yaml"
    expected = typed(f"python test.py --config_file {config_file} --json").json()

    before.rename(after)
    refusal = typed(f"python test.py --config_file {config_file}").refusal()
    assert refusal.startswith(f"{before}: no such folder") and refusal.endswith("say where: --root_dir DIR")
    assert typed(f"cskt evaluate {config_file.parent}").refusal().endswith("say where: --root DIR")
    moved = f"python test.py --config_file {config_file} --root_dir {after} --dataset_name RSTPReid"
    assert "--backbone" in typed(moved).refusal()
    assert typed(f"{moved} --backbone {after}/clip.safetensors --json").json() == expected


def test_precision(run: Path) -> None:
    command = f"python test.py --config_file {run}/configs.yaml --json"
    assert typed(f"{command} --precision fp32").json() == typed(command).json(), "the run's own"
    reduced = typed(f"{command} --precision bf16").json()
    assert reduced["t2i"] == typed(f"cskt evaluate {run} --precision bf16 --json").json()["t2i"]


def test_other_split(run: Path) -> None:
    figures = typed(f"python test.py --config_file {run}/configs.yaml --split val --json").json()
    assert (figures["split"], figures["t2i"]["num_gallery"]) == ("val", 8)


def test_resume(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = (
        f"python train.py {SMALL} --root_dir {root} --pretrain_choice {tiny_backbone} --output_dir {tmp_path} --lr 3e-4"
    )
    first = done(command)
    last = only_run(tmp_path, "cuhk-pedes") / "last.pt"
    again = done(f"{command} --resume --resume_ckpt_file {last}").splitlines()
    assert again[0] == "already finished (1 of 1 epochs); nothing was trained"
    assert again[1:-1] == first.splitlines() and "--init-from" in again[-1]
    assert "(--lr: 0.0003 -> 0.1)" in typed(f"{command} --resume --resume_ckpt_file {last} --lr 0.1").refusal()
    missing = tmp_path / "elsewhere" / "last.pt"
    assert f"{missing}: no such file" in typed(f"{command} --resume --resume_ckpt_file {missing}").refusal()


@pytest.mark.slow
def test_both_programs_from_a_shell(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = VERBATIM.format(dataset="CUHK-PEDES", root=root)
    trained = in_new_process(f"{command} {SMALL} --pretrain_choice {tiny_backbone}", tmp_path)
    assert trained.code == 0, trained.err
    assert [line.split(":")[0] for line in trained.out.splitlines()] == ["best", "run", "report", "next"]
    assert "zero-shot: R1" in trained.err and "epoch 1: R1" in trained.err and "Traceback" not in trained.err
    folder = only_run(tmp_path / "logs", "cuhk-pedes")
    tested = in_new_process(f"python test.py --config_file {folder}/configs.yaml", tmp_path)
    assert tested.code == 0 and "text to image" in tested.out and tested.err.startswith("per-query results: ")


# --- folders that the authors' own program left

RELEASED_ARCHITECTURE = ClipArchitecture(  # their heads are 64 wide
    embed_dim=16, image_height=HEIGHT, image_width=WIDTH, patch_size=8, stride=8, vision_width=64, vision_layers=2,
    vision_heads=1, text_width=64, text_layers=2, text_heads=1,
)  # fmt: skip
RELEASED_CONFIG = """\
batch_size: 128
dataset_name: ICFG-PEDES
depth: 2
distributed: false
img_aug: true
img_size: !!python/tuple
- 32
- 16
loss_names: sdm
lr: 0.0003
milestones: !!python/tuple
- 20
- 50
n_ctx: 3
name: baseline
num_epoch: 60
output_dir: /home/author/logs
pretrain_choice: ViT-B/16
root_dir: /home/author/data
stride_size: 8
text_length: 77
val_dataset: test
vocab_size: 49408
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DualEncoder]:
    """A folder in the released form, and the model that it holds."""
    model = DualEncoder(
        RELEASED_ARCHITECTURE, {"prompts": PromptConfig(depth=2, length=3), "adapters": AdapterConfig(init="normal")}
    )
    generator = torch.Generator().manual_seed(5)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    folder = tmp_path_factory.mktemp("released")
    (folder / "configs.yaml").write_text(RELEASED_CONFIG)
    state = {f"module.{released_name(name)}": value.detach() for name, value in model.named_parameters()}
    torch.save({"model": state, "epoch": 41}, folder / "best.pth")
    return folder, model


def test_released_folder_with_its_authors_paths(released: tuple[Path, DualEncoder], root: Path) -> None:
    folder, model = released
    assert "/home/author/data: no such folder" in typed(f"python test.py --config_file {folder}/configs.yaml").refusal()
    own = typed(f"python test.py --config_file {folder}/configs.yaml --root_dir {root} --json").json()
    assert (own["dataset"], own["note"]) == ("icfg-pedes", "selected on test")
    other = f"python test.py --config_file {folder}/configs.yaml --root_dir {root} --dataset_name CUHK-PEDES"
    encoder = cskt.Encoder(model, cskt.load(folder).tokenizer, device=torch.device("cpu"))
    expected = evaluate(encoder, read_dataset("cuhk-pedes", root)["test"])
    assert typed(f"{other} --json").json()["t2i"] == expected.t2i.summary()
    assert "selected on test" in done(other)


def test_released_folder_with_the_modern_commands(
    released: tuple[Path, DualEncoder], root: Path, tmp_path: Path
) -> None:
    folder, _ = released
    assert "text to image" in done(f"cskt evaluate {folder} --dataset rstpreid --root {root}")
    hits = typed(f"cskt query {folder} 'a man in black' --root {root} --json").json()[0]["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    merged = tmp_path / "merged.safetensors"
    done(f"cskt export {folder} --merge {merged}")
    assert load(merged, device="cpu").fingerprint == load(folder, device="cpu").fingerprint


def test_released_irra_folder(root: Path, tmp_path: Path) -> None:
    model = DualEncoder(RELEASED_ARCHITECTURE)
    objective = Objective(LossConfig(weights={"id": 1.0, "mlm": 1.0}), MlmConfig(), RELEASED_ARCHITECTURE, 9)
    model.initialise_backbone(torch.Generator().manual_seed(5))
    objective.initialise(torch.Generator().manual_seed(6))
    parameters = [*model.named_parameters(), *objective.named_parameters()]
    state = {f"module.{released_name(name)}": value.detach() for name, value in parameters}
    torch.save({"model": state, "epoch": 41}, tmp_path / "best.pth")
    config = RELEASED_CONFIG.replace("depth: 2\n", "MLM: true\ncmt_depth: 4\n").replace("n_ctx: 3\n", "")
    (tmp_path / "configs.yaml").write_text(config.replace("loss_names: sdm", "loss_names: sdm+mlm+id"))

    figures = typed(f"python test.py --config_file {tmp_path}/configs.yaml --root_dir {root} --json").json()
    loaded = cskt.load(tmp_path, device="cpu")
    expected = evaluate(
        cskt.Encoder(model, loaded.tokenizer, device=torch.device("cpu")), read_dataset("icfg-pedes", root)["test"]
    )
    assert figures["t2i"] == expected.t2i.summary() and figures["note"] == "selected on test"
    assert loaded.model.num_parameters() == model.num_parameters()
