"""A run folder, or a file in it, that somebody deletes, moves or replaces during training: the run ends in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cskt.cli.main import main
from cskt.config import ClipArchitecture, RunConfig, save_config
from cskt.errors import CsktError
from cskt.training.loop import train
from cskt.training.run_folder import RunFolder
from tiny_run import Configure

Harm = Callable[[Path], object]


def remove_file(name: str) -> Harm:
    return lambda run: (run / name).unlink()


def empty_folder(run: Path) -> None:
    for path in list(run.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_folder(run: Path) -> None:
    """As when another run is copied there: the same names, other files."""
    shutil.copytree(run, run.with_name("other"))
    shutil.rmtree(run)
    run.with_name("other").rename(run)


HARMS: dict[str, tuple[Harm, str]] = {
    "folder deleted": (shutil.rmtree, "deleted or moved"),
    "folder moved": (lambda run: run.rename(run.with_name("moved")), "deleted or moved"),
    "folder emptied": (empty_folder, "'config.yaml' was deleted or replaced"),
    "folder replaced": (replace_folder, "'metrics.jsonl' was deleted or replaced"),
    "a file in its place": (lambda run: (shutil.rmtree(run), run.write_text("")), "deleted or moved"),
    "config deleted": (remove_file("config.yaml"), "'config.yaml' was deleted or replaced"),
    "events deleted": (remove_file("metrics.jsonl"), "'metrics.jsonl' was deleted or replaced"),
    "checkpoint deleted": (remove_file("last.pt"), "'last.pt' was deleted or replaced"),
    "best weights deleted": (remove_file("best.safetensors"), "'best.safetensors' was deleted or replaced"),
}


def after_event(monkeypatch: pytest.MonkeyPatch, number: int, harm: Callable[[Path], object]) -> list[str]:
    """Do harm to a run behind its n-th event; the names of the events that were recorded."""
    record, recorded = RunFolder.record, []

    def record_and_harm(run: RunFolder, event: str, **values: Any) -> None:
        record(run, event, **values)
        recorded.append(event)
        if len(recorded) == number:
            harm(run.path)

    monkeypatch.setattr(RunFolder, "record", record_and_harm)
    return recorded


@pytest.mark.parametrize("harm", HARMS)
def test_deleted_files_end_the_training_in_one_line(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Behind the first step of the second epoch, when all files are there."""
    do, what = HARMS[harm]
    recorded = after_event(monkeypatch, 6, do)
    run = tmp_path / "run"
    with pytest.raises(CsktError, match=r"during training, which ends here; put it back and continue with") as caught:
        train(configure({"loop.num_epochs": 3}), run)
    assert recorded == ["start", "step", "step", "step", "evaluation", "step"], "noticed at the next write"
    message = str(caught.value)
    assert message.startswith(f"{run}: {what}") and f"'cskt train --resume {run}'" in message and "\n" not in message
    if "deleted or moved" in what:
        assert not run.is_dir(), "nothing is made anew"


@pytest.mark.parametrize("number", range(1, 10))
def test_a_deleted_folder_is_noticed_after_any_event(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """2 epochs of 3 steps and an evaluation: 10 events, and the folder is gone behind one of them."""
    recorded = after_event(monkeypatch, number, shutil.rmtree)
    with pytest.raises(CsktError, match="run: deleted or moved during training"):
        train(configure({"loop.num_epochs": 2}), tmp_path / "run")
    assert len(recorded) == number and not (tmp_path / "run").exists()


def test_a_folder_deleted_before_the_first_event_is_noticed(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = RunFolder.create

    def create_and_delete(run: RunFolder, config: RunConfig, architecture: ClipArchitecture) -> None:
        create(run, config, architecture)
        shutil.rmtree(run.path)

    monkeypatch.setattr(RunFolder, "create", create_and_delete)
    with pytest.raises(CsktError, match="run: deleted or moved during training"):
        train(configure(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_ends_with_code_2(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_config(configure({"loop.num_epochs": 2}), tmp_path / "config.yaml")
    after_event(monkeypatch, 3, shutil.rmtree)
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"cskt: {tmp_path / 'run'}: deleted or moved") or "run: deleted or moved" in last


def test_deletion_is_noticed_in_a_resumed_run_too(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(configure({"loop.stop_after_epochs": 1, "loop.num_epochs": 3}), tmp_path / "run").folder
    after_event(monkeypatch, 2, remove_file("best.safetensors"))
    with pytest.raises(CsktError, match=r"run: 'best\.safetensors' was deleted or replaced"):
        train(configure({"loop.num_epochs": 3}), run, resume=True)


def test_a_folder_that_was_put_back_is_resumed(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = configure({"loop.num_epochs": 2}), tmp_path / "run"
    with monkeypatch.context() as patch:
        after_event(patch, 6, lambda path: path.rename(tmp_path / "moved"))
        with pytest.raises(CsktError, match="deleted or moved"):
            train(config, run)
    (tmp_path / "moved").rename(run)
    assert train(config, run, resume=True).best_epoch > 0


def test_a_link_in_place_of_the_moved_folder_is_the_same_folder(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move_and_link(run: Path) -> None:
        run.rename(tmp_path / "moved")
        run.symlink_to(tmp_path / "moved")

    after_event(monkeypatch, 3, move_and_link)
    assert train(configure({"loop.num_epochs": 2}), tmp_path / "run").best_epoch > 0
