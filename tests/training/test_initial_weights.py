"""Runs that start from the weights of another (`init_from`), and the training heads that a run keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import with_scores
from test_resume import stop_after_epoch

from cskt.cli.export import read_run, write_merged
from cskt.config import RunConfig
from cskt.data.paperdoll import make_dataset
from cskt.errors import CsktError
from cskt.model.io.cache import sha256_of
from cskt.model.io.native import read_heads, read_method, save_weights
from cskt.model.io.tensors import load_plain
from cskt.training.context import TrainingContext
from cskt.training.events import first_event, read_events
from cskt.training.initial_weights import read_run_heads
from cskt.training.loop import train
from cskt.training.series import train_or_resume
from cskt.training.trainer import Trainer
from cskt.utils.console import Advance
from same_run import assert_same_run
from tiny_run import quick_config, write_backbone

ID: dict[str, Any] = {"loss.weights": {"sdm": 1.0, "id": 1.0}, "adapters.init": "normal"}
IRRA: dict[str, Any] = {"mlm.cmt_depth": 1, "optim.lr": 1e-4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, dolls: Path, tiny_backbone: Path) -> Path:
    """A CSKT run of one epoch with an identity head."""
    folder = tmp_path_factory.mktemp("source") / "run"
    return train(quick_config(dolls, tiny_backbone, "cskt", ID), folder).folder


@pytest.fixture
def starting(dolls: Path, tiny_backbone: Path, source: Path) -> Any:
    """A CSKT config that starts from `source`, with changes."""

    def configured(changes: dict[str, Any] | None = None, recipe: str = "cskt") -> RunConfig:
        own = ID if recipe == "cskt" else {}
        return quick_config(dolls, tiny_backbone, recipe, own | {"init_from": str(source)} | (changes or {}))

    return configured


def refused(config: RunConfig, folder: Path) -> str:
    with pytest.raises(CsktError) as caught:
        train(config, folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists(), "a refused start leaves nothing behind"
    return str(caught.value)


# --- heads of the best epoch


def test_the_heads_of_the_best_epoch_are_kept(
    dolls: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contexts: list[TrainingContext]
) -> None:
    config = quick_config(dolls, tiny_backbone, "cskt", ID | {"loop.num_epochs": 3})
    states: list[dict[str, torch.Tensor]] = []
    evaluate_epoch = Trainer.evaluate_epoch

    def recording(trainer: Trainer, epoch: int) -> None:
        states.append({name: p.detach().clone() for name, p in trainer.context.state.objective.named_parameters()})
        evaluate_epoch(trainer, epoch)

    monkeypatch.setattr(Trainer, "evaluate_epoch", recording)
    with_scores(monkeypatch, [0.2, 0.5, 0.3])
    folder = train(config, tmp_path / "run").folder
    heads = read_heads(folder / "best.heads.safetensors")
    assert heads.tensors.keys() == {"classifier.weight", "classifier.bias"}
    for name, value in heads.tensors.items():
        assert torch.equal(value, states[1][name]) and not torch.equal(value, states[2][name]), name
    assert heads.weights_sha256 == sha256_of(folder / "best.safetensors")
    assert (heads.data_sha256, heads.facts) == (contexts[0].state.data_sha256, {"epoch": "2"})
    found = read_run_heads(folder)
    assert found is not None and found.note == "" and found.tensors.keys() == heads.tensors.keys()
    assert not any("classifier" in name for name in read_method(folder / "best.safetensors").tensors)


def test_a_resumed_run_keeps_the_same_heads(
    dolls: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_config(dolls, tiny_backbone, "irra", IRRA | {"loop.num_epochs": 2})
    whole, stopped = train(config, tmp_path / "whole").folder, tmp_path / "stopped"
    stop_after_epoch(1, config, stopped, monkeypatch)
    train(config, stopped, resume=True)
    assert (stopped / "best.heads.safetensors").read_bytes() == (whole / "best.heads.safetensors").read_bytes()
    names = read_heads(whole / "best.heads.safetensors").tensors
    assert {
        "classifier.weight",
        "interaction.mlm_head.fc.bias",
        "interaction.cross_attn.in_proj.weight",
    } <= names.keys()


def test_losses_without_heads_leave_no_file(dolls: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    folder = train(quick_config(dolls, tiny_backbone), tmp_path / "run").folder
    assert not (folder / "best.heads.safetensors").exists() and read_run_heads(folder) is None


def test_heads_that_do_not_fit_the_weights_are_noticed(source: Path, tmp_path: Path) -> None:
    """A kill between the two files leaves older heads; then, as in old runs, those of last.pt are taken."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("best.safetensors", "best.heads.safetensors", "last.pt"):
        (folder / name).write_bytes((source / name).read_bytes())
    last = load_plain(folder / "last.pt")["objective"]

    (folder / "best.safetensors").write_bytes((source / "best.safetensors").read_bytes() + b" ")
    stale = read_run_heads(folder)
    assert stale is not None and "belongs to another best.safetensors" in stale.note and "last epoch's" in stale.note
    assert all(torch.equal(stale.tensors[name], value) for name, value in last.items())

    (folder / "best.heads.safetensors").unlink()
    old = read_run_heads(folder)
    assert old is not None and old.note.endswith("so the training heads are the last epoch's, from last.pt")

    (folder / "best.heads.safetensors").write_bytes(b"cut short")
    with pytest.raises(CsktError, match=r"delete the file to use the last epoch's heads instead") as caught:
        read_run_heads(folder)
    assert "\n" not in str(caught.value)
    (folder / "best.heads.safetensors").unlink()
    (folder / "last.pt").unlink()
    assert read_run_heads(folder) is None


# --- what is taken over


def started(
    config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, torch.Tensor], TrainingContext]:
    """Every parameter before the first step, and the context."""
    seen: list[tuple[dict[str, torch.Tensor], TrainingContext]] = []
    train_epoch = Trainer.train_epoch

    def recording(trainer: Trainer, advance: Advance) -> None:
        context = trainer.context
        if not seen:
            both = [*context.state.model.named_parameters(), *context.state.objective.named_parameters()]
            seen.append(({name: value.detach().clone() for name, value in both}, context))
        train_epoch(trainer, advance)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_epoch", recording)
        train(config, folder)
    return seen[0]


def test_a_run_starts_from_the_best_weights_and_heads_of_another(
    starting: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = starting({"optim.ema_decay": 0.9, "loop.evaluate_before": True, "seed": 7})
    parameters, context = started(config, tmp_path / "run", monkeypatch)
    weights = read_method(source / "best.safetensors").tensors
    heads = read_heads(source / "best.heads.safetensors").tensors
    for name, value in (weights | heads).items():
        assert torch.equal(parameters[name], value), name
    start = first_event(read_events(tmp_path / "run"), "start")
    assert start["init_from"] == str(source) and start["init_from_heads"] == ["classifier"]
    assert start["init_from_sha256"] == sha256_of(source / "best.safetensors")
    assert context.config.init_from == str(source)

    # The figures before the first step: CLIP without the method, and the loaded weights.
    figures = {e["stage"]: e["t2i"]["r1"] for e in read_events(tmp_path / "run") if e["event"] == "evaluation"}
    best = [e for e in read_events(source) if e["event"] == "evaluation"][-1]
    assert figures["step-0"] == best["t2i"]["r1"]


def test_zero_shot_is_that_of_the_backbone_when_the_whole_model_is_loaded(
    dolls: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    changes = {"optim.lr": 3e-3, "loop.evaluate_before": True}
    first = train(quick_config(dolls, tiny_backbone, "finetune", changes), tmp_path / "first").folder
    again = quick_config(dolls, tiny_backbone, "finetune", changes | {"init_from": str(first)})
    second = train(again, tmp_path / "second").folder

    def evaluation(folder: Path, stage: str) -> Any:
        (found,) = [e for e in read_events(folder) if e.get("stage") == stage]
        return found["t2i"]

    assert evaluation(second, "zero-shot") == evaluation(first, "zero-shot")
    assert evaluation(second, "step-0") == evaluation(first, "epoch")


def test_the_moving_average_starts_from_the_loaded_weights(
    starting: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averages: list[dict[str, torch.Tensor]] = []
    train_epoch = Trainer.train_epoch

    def recording(trainer: Trainer, advance: Advance) -> None:
        assert trainer.context.state.ema is not None
        state = trainer.context.state.ema.state_dict()
        averages.append({name: value.clone() for name, value in state["averages"].items()})
        assert state["num_updates"] == 0
        train_epoch(trainer, advance)

    monkeypatch.setattr(Trainer, "train_epoch", recording)
    train(starting({"optim.ema_decay": 0.9}), tmp_path / "run")
    for name, value in read_method(source / "best.safetensors").tensors.items():
        assert torch.equal(averages[0][name], value), name


def test_a_merged_file_gives_the_same_start(
    starting: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_merged(tmp_path / "merged.safetensors", read_run(source, None))
    from_run, _ = started(starting(), tmp_path / "run", monkeypatch)
    config = starting({"init_from": str(tmp_path / "merged.safetensors")})
    from_file, _ = started(config, tmp_path / "other", monkeypatch)
    assert all(torch.equal(from_file[name], value) for name, value in from_run.items() if "classifier" not in name)
    assert not torch.equal(from_file["classifier.weight"], from_run["classifier.weight"]), "a merged file has no heads"


def test_heads_are_drawn_anew_if_the_identities_differ(
    starting: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "others", ids={"train": 6, "val": 3, "test": 1}, images_per_id=2, seed=9)
    with caplog.at_level("INFO"):
        parameters, _ = started(starting({"data.root": str(tmp_path / "others")}), tmp_path / "run", monkeypatch)
    assert (
        "the classifier is initialised from the recipe: that run trained on other identities or captions" in caplog.text
    )
    assert parameters["classifier.weight"].std() < 2e-3 and not parameters["classifier.bias"].any()
    assert first_event(read_events(tmp_path / "run"), "start")["init_from_heads"] == []


def test_each_head_is_used_independently(
    dolls: Path, tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(quick_config(dolls, tiny_backbone, "irra", IRRA), tmp_path / "first").folder
    make_dataset(tmp_path / "others", ids={"train": 6, "val": 3, "test": 1}, images_per_id=2, seed=9)
    changes = IRRA | {"init_from": str(first), "data.root": str(tmp_path / "others")}
    with caplog.at_level("INFO"):
        parameters, _ = started(quick_config(dolls, tiny_backbone, "irra", changes), tmp_path / "run", monkeypatch)
    heads = read_heads(first / "best.heads.safetensors").tensors
    assert torch.equal(parameters["interaction.mlm_head.fc.weight"], heads["interaction.mlm_head.fc.weight"])
    assert not torch.equal(parameters["classifier.weight"], heads["classifier.weight"])
    assert "the interaction continues from that run" in caplog.text
    with caplog.at_level("INFO"):
        deeper = quick_config(dolls, tiny_backbone, "irra", changes | {"mlm.cmt_depth": 2})
        train(deeper, tmp_path / "deeper")
    assert "the interaction is initialised from the recipe: that run's has another shape" in caplog.text


def test_a_run_without_saved_heads_gives_those_of_its_last_epoch(
    starting: Any, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("best.safetensors", "last.pt", "config.yaml"):
        (old / name).write_bytes((source / name).read_bytes())
    with caplog.at_level("INFO"):
        train(starting({"init_from": str(old)}), tmp_path / "run")
    assert "so the training heads are the last epoch's, from last.pt" in caplog.text
    assert "the classifier continues from that run" in caplog.text


def test_a_run_that_trained_added_parts_can_start_one_that_trains_all(
    starting: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, context = started(starting({"trainable": "all", "optim.lr": 1e-4}), tmp_path / "run", monkeypatch)
    assert all(parameter.requires_grad for parameter in context.state.model.parameters())
    assert torch.equal(parameters["prompts.text.0"], read_method(source / "best.safetensors").tensors["prompts.text.0"])


# --- what is refused, in one line


@pytest.mark.parametrize(
    ("changes", "recipe", "message"),
    [
        ({"prompts.depth": 1}, "cskt", "unknown tensor 'prompts.text.1', which this recipe does not have"),
        ({"prompts.length": 1}, "cskt", "'prompts.text.0' has shape [2, 32], expected [1, 32]"),
        ({"adapters.sides": "text"}, "cskt", "unknown tensor 'adapters.vision.0.norm.weight'"),
        ({}, "finetune", "unknown tensor 'prompts.text.0'"),
        (
            {"lora.sides": "text"},
            "cskt",
            "tensor 'lora.text.0.query.down' is missing, which this recipe has; start from a run of the same recipe",
        ),
        ({"trainable": "none", "loss.weights": {"sdm": 1.0}}, "cskt", "trainable none trains nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    starting: Any, tmp_path: Path, changes: dict[str, Any], recipe: str, message: str
) -> None:
    assert message in refused(starting(changes, recipe), tmp_path / "run")


def test_tensors_that_were_trained_must_not_be_frozen(dolls: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Only what trains is saved: a frozen tensor that is not the backbone's would be lost."""
    first = train(quick_config(dolls, tiny_backbone, "finetune", {"optim.lr": 3e-3}), tmp_path / "first").folder
    linear = quick_config(dolls, tiny_backbone, "linear", {"init_from": str(first)})
    assert "was trained there and is frozen here; set trainable" in refused(linear, tmp_path / "run")


def test_a_merged_lora_run_is_not_accepted_as_a_frozen_backbone(
    dolls: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    first = train(quick_config(dolls, tiny_backbone, "lora"), tmp_path / "first").folder
    write_merged(tmp_path / "merged.safetensors", read_run(first, None))
    named = {"init_from": str(tmp_path / "merged.safetensors")}
    assert "is frozen here" in refused(quick_config(dolls, tiny_backbone, "linear", named), tmp_path / "run")
    train(quick_config(dolls, tiny_backbone, "finetune", named), tmp_path / "whole")


def test_another_backbone_is_refused(starting: Any, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    message = refused(starting({"backbone.name": str(other)}), tmp_path / "run")
    assert "trained over the backbone" in message and message.endswith(
        "name the file of that backbone: --backbone.name FILE"
    )


def test_other_weights_of_the_same_backbone_file_are_refused(starting: Any, source: Path, tmp_path: Path) -> None:
    file = read_method(source / "best.safetensors")
    config = file.config | {"backbone": file.config["backbone"] | {"weights": "ema"}}
    save_weights(tmp_path / "other.safetensors", dataclasses.replace(file, config=config))
    message = refused(starting({"init_from": str(tmp_path / "other.safetensors")}), tmp_path / "run")
    assert message.endswith("the ema weights of its backbone, and backbone.weights is model; start from the same")


def test_other_files_and_folders_are_refused(starting: Any, tiny_backbone: Path, source: Path, tmp_path: Path) -> None:
    missing = refused(starting({"init_from": str(tmp_path / "nowhere")}), tmp_path / "run")
    assert missing == f"init_from {tmp_path / 'nowhere'}: no such run folder or file"
    (tmp_path / "empty").mkdir()
    assert "no best.safetensors there" in refused(starting({"init_from": str(tmp_path / "empty")}), tmp_path / "run")
    for path in (tiny_backbone, source / "best.heads.safetensors", source / "last.pt"):
        message = refused(starting({"init_from": str(path)}), tmp_path / "run")
        assert "no run folder, released folder or file of 'cskt export --merge'" in message


@pytest.mark.parametrize("change", ["missing", "unknown", "nan"])
def test_a_changed_weight_file_is_refused(starting: Any, source: Path, tmp_path: Path, change: str) -> None:
    file = read_method(source / "best.safetensors")
    tensors = dict(file.tensors)
    if change == "missing":
        del tensors["prompts.vision.1"]
    elif change == "unknown":
        tensors["prompts.vision.9"] = torch.zeros(2)
    else:
        tensors["prompts.vision.1"] = torch.full_like(tensors["prompts.vision.1"], torch.nan)
    save_weights(tmp_path / "other.safetensors", dataclasses.replace(file, tensors=tensors))
    message = refused(starting({"init_from": str(tmp_path / "other.safetensors")}), tmp_path / "run")
    expected = {
        "missing": "tensor 'prompts.vision.1' is missing", "unknown": "unknown tensor 'prompts.vision.9'",
        "nan": "'prompts.vision.1' holds NaN or infinity",
    }  # fmt: skip
    assert expected[change] in message


def test_settings_that_change_the_function_are_named(
    starting: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(starting({"adapters.vision_scale": 0.2}), tmp_path / "run")
    (warning,) = [message for message in caplog.messages if "adapters" in message]
    assert warning.endswith("adapters.vision_scale was 0.1, now 0.2")


# --- resuming and series


def test_resuming_does_not_need_the_other_run(
    dolls: Path, tiny_backbone: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("best.safetensors", "best.heads.safetensors"):
        (copy / name).write_bytes((source / name).read_bytes())
    config = quick_config(dolls, tiny_backbone, "cskt", ID | {"loop.num_epochs": 2, "init_from": str(copy)})
    whole, stopped = train(config, tmp_path / "whole").folder, tmp_path / "stopped"
    stop_after_epoch(1, config, stopped, monkeypatch)
    for path in copy.iterdir():
        path.unlink()
    train(config, stopped, resume=True)
    assert_same_run(stopped, whole)
    with pytest.raises(CsktError, match=r"made with another config \(init_from: "):
        train(dataclasses.replace(config, init_from=None), stopped, resume=True)


def test_a_series_notices_other_weights_to_start_from(starting: Any, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "best.safetensors").write_bytes((source / "best.safetensors").read_bytes())
    config = starting({"init_from": str(copy)})
    first = train_or_resume(config, tmp_path / "run")
    assert train_or_resume(config, tmp_path / "run") == first, "the finished run is unchanged"
    other = train(starting({"init_from": None, "seed": 5}), tmp_path / "other").folder
    (copy / "best.safetensors").write_bytes((other / "best.safetensors").read_bytes())
    with pytest.raises(CsktError, match="holds a run that started from other weights than those in"):
        train_or_resume(config, tmp_path / "run")
    (copy / "best.safetensors").unlink()
    assert train_or_resume(config, tmp_path / "run") == first, "a finished run does not need them"
