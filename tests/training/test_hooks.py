"""Hooks: what they see, log and stop, and that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_distributed import torchrun

from cskt import plugins
from cskt.cli.main import main
from cskt.config import read_yaml, save_config
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation
from cskt.model.io.tensors import load_plain
from cskt.training import trainer
from cskt.training.events import read_events
from cskt.training.hooks import HOOKS, Hook
from cskt.training.loop import train
from cskt.training.run_hooks import TrainingRun
from same_run import assert_same_run, story
from tiny_run import Configure


@dataclass
class Recorder(Hook):
    """Remembers its calls, and stops after `stop_at`."""

    stop_at: str = ""
    calls: list[str] = field(default_factory=list)

    def _act(self, run: TrainingRun, moment: str) -> None:
        self.calls.append(f"{moment} {run.epoch}")
        run.log({f"{moment}/calls": len(self.calls)})
        if self.calls[-1] == self.stop_at:
            run.stop(f"stopped {self.stop_at}")

    def before_epoch(self, run: TrainingRun) -> None:
        self._act(run, "before")

    def after_epoch(self, run: TrainingRun) -> None:
        self._act(run, "after")

    def after_evaluation(self, run: TrainingRun, evaluation: Evaluation) -> None:
        assert 0 <= evaluation.t2i.r1 <= 1 and run.encoder().embed_dim and len(run.train_split.captions) == 24
        self._act(run, "evaluated")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def test_hooks_are_called_between_epochs_and_log(configure: Configure, tmp_path: Path) -> None:
    hook = Recorder()
    config = configure({"loop.num_epochs": 3, "loop.eval_period_epochs": 2})
    run = train(config, tmp_path / "run", hooks=[hook]).folder
    assert hook.calls == [
        "before 1", "after 1", "before 2", "after 2", "evaluated 2", "before 3", "after 3", "evaluated 3"
    ]  # fmt: skip
    logged = [event for event in read_events(run) if event["event"] == "hook"]
    assert logged[0] == {"event": "hook", "epoch": 1, "step": 0, "values": {"before/calls": 1.0}}
    assert [event["step"] for event in logged] == [0, 3, 3, 6, 6, 6, 9, 9]
    plain = train(config, tmp_path / "plain").folder
    assert (plain / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()
    assert "hooks" not in read_yaml(plain / "config.yaml")


@pytest.mark.parametrize("moment", ["before 2", "after 2", "evaluated 2"])
def test_a_stopped_run_ends_evaluated_after_the_epoch_and_stays_finished(
    configure: Configure, tmp_path: Path, moment: str
) -> None:
    config = configure({"loop.num_epochs": 4, "loop.eval_period_epochs": 2 if moment == "evaluated 2" else 4})
    result = train(config, tmp_path / "run", hooks=[Recorder(moment)])
    assert (result.num_epochs_done, result.best_epoch, result.stopped) == (2, 2, f"stopped {moment}")
    assert read_events(result.folder)[-1]["stopped"] == f"stopped {moment}"
    again = train(config, result.folder, resume=True, hooks=[Recorder(moment)])
    assert again.already_finished and again.num_epochs_done == 2 and again.stopped == f"stopped {moment}"


class CutError(Exception):
    """Raised in a test to end a training."""


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("place", ["optimizer_step", "evaluate"])
def test_a_resumed_run_with_hooks_equals_an_uninterrupted_one(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, place: str
) -> None:
    config = configure({"loop.num_epochs": 3, "loop.save_period_steps": 1})
    whole = train(config, tmp_path / "whole", hooks=[Recorder("evaluated 2")]).folder
    function, calls = getattr(trainer, place), [0]

    def interrupt(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == (step if place == "optimizer_step" else min(step, 2)):
            raise CutError
        return function(*arguments)

    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(trainer, place, interrupt)
        train(config, tmp_path / "cut", hooks=[Recorder("evaluated 2")])
    train(config, tmp_path / "cut", resume=True, hooks=[Recorder("evaluated 2")])
    assert_same_run(tmp_path / "cut", whole)


def test_a_run_is_resumed_with_its_hooks_only(configure: Configure, tmp_path: Path) -> None:
    changes = {"loop.num_epochs": 2}
    run = train(configure({**changes, "loop.stop_after_epochs": 1}), tmp_path / "run", hooks=[Recorder()]).folder
    with pytest.raises(CsktError, match=r"trained with other hooks \(before: Recorder; now: none\); resume it with"):
        train(configure(changes), run, resume=True)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([Recorder], "is not an instance of cskt.training.hooks.Hook"),
        (["Recorder"], "hooks: 'Recorder' is not an instance of"),
        ([Recorder(), Recorder()], "hooks: two hooks of class Recorder; give one of each class"),
    ],
)
def test_what_is_no_hook_is_refused_before_a_folder_is_made(
    configure: Configure, tmp_path: Path, hooks: list[Any], message: str
) -> None:
    with pytest.raises(CsktError, match=message):
        train(configure(), tmp_path / "run", hooks=hooks)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"), [({"a\nb": 1.0}, "the name 'a\nb' of a value"), ({"a": float("nan")}, "'a' is nan; log")]
)
def test_bad_values_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(CsktError, match=message):
        TrainingRun(None).log(values)  # type: ignore[arg-type]


def test_patience_ends_the_training_alike_in_one_session_and_in_two(configure: Configure, tmp_path: Path) -> None:
    changes = {"loop.num_epochs": 9, "loop.patience_epochs": 2, "optim.lr": 1e-9}  # nothing improves after epoch 1
    whole = train(configure(changes), tmp_path / "whole")
    reason = "no better R1 than that of epoch 1 (loop.patience_epochs 2)"
    assert (whole.num_epochs_done, whole.best_epoch, whole.stopped) == (3, 1, reason)
    run = train(configure({**changes, "loop.stop_after_epochs": 2}), tmp_path / "cut").folder
    assert read_events(run)[-1].get("stopped") is None
    result = train(configure(changes), run, resume=True)
    assert (result.num_epochs_done, result.stopped) == (3, reason) and not result.already_finished
    found, expected = (
        [event for event in story(folder) if event["event"] in ("step", "evaluation")] for folder in (run, whole.folder)
    )
    assert found == expected
    assert train(configure(changes), run, resume=True).already_finished
    with pytest.raises(CsktError, match=r"loop\.patience_epochs: 2 -> 5"):
        train(configure({**changes, "loop.patience_epochs": 5}), run, resume=True)


HOOK = """
from dataclasses import dataclass
from cskt.training.hooks import Hook, register

@register("good_enough")
@dataclass
class GoodEnough(Hook):
    r1: float = 2.0

    def after_evaluation(self, run, evaluation):
        run.log({"missing": self.r1 - evaluation.t2i.r1})
        if evaluation.t2i.r1 >= self.r1:
            run.stop(f"R1 is at least {self.r1}")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plug-in with a hook; forgotten afterwards."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    path = tmp_path / "enough.py"
    path.write_text(HOOK)
    yield path
    for loaded in plugins.loaded_plugins():
        HOOKS.forget(loaded)


def test_a_hook_of_a_plugin_by_the_command(
    plugin: Path, configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(configure({"loop.num_epochs": 3}), tmp_path / "config.yaml")
    run = tmp_path / "run"
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--output", str(run), "--plugin", str(plugin)]
    assert main([*command, "--hooks.good-enough.r1", "0"]) == 0
    assert "ended after 1 of 3 epochs: R1 is at least 0.0" in capsys.readouterr().out
    config = read_yaml(run / "config.yaml")
    assert config["hooks"] == {"good_enough": {"r1": 0.0}} and config["plugins"][0]["provides"] == ["hooks.good_enough"]
    assert main(["train", "--resume", str(run), "--plugin", str(plugin)]) == 0
    assert "already finished (1 of 3 epochs)" in capsys.readouterr().out
    command[4] = str(tmp_path / "other")
    assert main([*command, "--hooks.good-enough"]) == 0
    assert read_yaml(tmp_path / "other" / "config.yaml")["hooks"] == {"good_enough": {}}


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"good_enuf": {}}, "unknown hook 'good_enuf': did you mean 'good_enough'"),
        ({"good_enough": {"r2": 1}}, "unknown key 'hooks.good_enough.r2'"),
        ({"good_enough": {"r1": "high"}}, "hooks.good_enough.r1: input should be a valid number"),
    ],
)
def test_bad_hooks_are_refused_before_anything_is_written(
    plugin: Path, configure: Configure, tmp_path: Path, hooks: dict[str, Any], message: str
) -> None:
    plugins.load_plugins([plugin])
    with pytest.raises(CsktError) as caught:
        train(configure({"hooks": hooks}), tmp_path / "run")
    assert message in str(caught.value) and not (tmp_path / "run").exists()


def test_python_loads_the_plugins_of_a_training(plugin: Path, configure: Configure, tmp_path: Path) -> None:
    changes = {"hooks": {"good_enough": {"r1": 0.0}}, "loop.num_epochs": 2}
    with pytest.raises(CsktError, match="unknown hook 'good_enough'"):
        train(configure(changes), tmp_path / "run")
    result = train(configure(changes), tmp_path / "run", plugins=[plugin])
    assert result.num_epochs_done == 1 and result.stopped == "R1 is at least 0.0"


SHARED_HOOK = """
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from cskt.training.hooks import Hook, register

@register("shared")
@dataclass
class Shared(Hook):
    folder: str = ""
    calls: int = 0

    def note(self, run, moment):
        self.calls += 1
        with (Path(self.folder) / f"calls.{os.environ.get('RANK', 'alone')}").open("a") as file:
            file.write(f"{moment} {run.epoch}\\n")

    def before_epoch(self, run):
        self.note(run, "before")
        losses = run.pair_losses("id")["id"]
        run.pair_weights = (torch.arange(len(losses)) + run.epoch) % 3
        run.log({"mean": losses.mean()})

    def after_evaluation(self, run, evaluation):
        self.note(run, "evaluated")
        if run.epoch == 2:
            run.stop("two are enough")

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]
"""


@pytest.mark.slow
def test_hooks_of_two_processes_act_in_one_for_both(plugin: Path, configure: Configure, tmp_path: Path) -> None:
    """The losses of rows are computed where the rows are: both processes need the weights that one has set."""
    plugin.write_text(SHARED_HOOK)
    changes: dict[str, Any] = {
        "loop.num_epochs": 3, "loss.weights": {"sdm": 1.0, "id": 1.0}, "loss.temperature": 0.05,
        "hooks": {"shared": {"folder": str(tmp_path)}},
    }  # fmt: skip
    save_config(configure(changes), tmp_path / "config.yaml")
    words = ["--config", tmp_path / "config.yaml", "--output", tmp_path / "two", "--plugin", plugin]
    ran = torchrun(2, "-m", "cskt", "train", *words)
    assert ran.returncode == 0, ran.stderr
    expected = "before 1\nevaluated 1\nbefore 2\nevaluated 2\n"
    assert (tmp_path / "calls.0").read_text() == expected and not (tmp_path / "calls.1").exists()
    alone = train(configure(changes), tmp_path / "alone", plugins=[plugin])
    assert (tmp_path / "calls.alone").read_text() == expected
    two, one = (read_events(tmp_path / name) for name in ("two", "alone"))
    assert [event["event"] for event in two] == [event["event"] for event in one]
    assert two[-1]["stopped"] == alone.stopped == "two are enough"
    for shared, whole in zip(two, one, strict=True):
        if whole["event"] == "step":
            assert shared["losses"] == pytest.approx(whole["losses"], rel=1e-3)
        if whole["event"] == "hook":
            assert shared["values"] == pytest.approx(whole["values"], rel=1e-3)
    saved = load_plain(tmp_path / "two" / "last.pt")["hooks"]
    assert saved["states"] == {"shared": {"calls": 4}} and saved["stopped"] == "two are enough"
    assert saved["pair_weights"].tolist() == [(pair + 2) % 3 for pair in range(24)]
    resumed = train(configure(changes), tmp_path / "two", resume=True)
    assert resumed.already_finished and resumed.stopped == "two are enough" and resumed.num_epochs_done == 2
