"""Runs of a series: the contents of a folder decide whether a run is started, resumed or left as it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_resume import CHANGES, stop_after_epoch

from cskt.config import RunConfig
from cskt.data.paperdoll import make_dataset
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain
from cskt.training.loop import train
from cskt.training.run_folder import claimed
from cskt.training.series import check_same_config, finished, seed_folder, train_or_resume
from cskt.training.trainer import Trainer
from elsewhere import claimed_elsewhere
from same_run import assert_same_run, story
from tiny_run import quick_config, write_backbone


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a folder but its lock, which every start leaves."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def config(dolls: Path, tiny_backbone: Path) -> RunConfig:
    return quick_config(dolls, tiny_backbone, "cskt", CHANGES | {"loop.num_epochs": 2})


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `config`; tests change copies of it."""
    return train(config, tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each training from now on, True if it resumed from a checkpoint."""
    seen: list[bool] = []
    for name, resumes in (("start", False), ("resume", True)):
        original = getattr(Trainer, name)

        def noted(*arguments: Any, original: Any = original, resumes: bool = resumes, **named: Any) -> Any:
            seen.append(resumes)
            return original(*arguments, **named)

        monkeypatch.setattr(Trainer, name, noted)
    return seen


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    root, backbone = Path(config.data.root), Path(config.backbone.name)
    return quick_config(root, backbone, "cskt", CHANGES | {"loop.num_epochs": 2} | changes)


def test_a_finished_run_is_not_started_again(config: RunConfig, calls: list[bool], tmp_path: Path) -> None:
    folder = seed_folder(tmp_path, 7)
    assert folder == tmp_path / "seed-7" and finished(folder) is None
    first = train_or_resume(config, folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train_or_resume(config, folder) == first == finished(folder)
    assert calls == [False]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    (folder / "last.pt").unlink()
    assert train_or_resume(config, folder) == first, "a finished run needs no checkpoint"
    (folder / "best.safetensors").unlink()
    assert finished(folder) is None, "a run without its weights is no run"


def test_the_result_of_a_finished_run_is_that_of_its_training(config: RunConfig, tmp_path: Path) -> None:
    result = train(config, tmp_path / "run")
    found = finished(result.folder)
    assert found == result
    assert found is not None and (found.num_epochs_done, found.already_finished, found.stopped) == (2, True, "")


def test_a_finished_run_without_checkpoints_is_kept(config: RunConfig, whole: Path, tmp_path: Path) -> None:
    """A study deletes the checkpoints of what is finished."""
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("last.pt", "last.previous.pt"):
        (folder / name).unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for resume in (None, False):
        with pytest.raises(CsktError, match=r"holds a run; it has no last\.pt and cannot be resumed; delete it"):
            train(config, folder, resume=resume)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_interrupted_run_is_resumed(
    config: RunConfig, whole: Path, calls: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = tmp_path / "stopped"
    stop_after_epoch(1, config, stopped, monkeypatch)
    assert finished(stopped) is None
    calls.clear()
    result = train_or_resume(config, stopped)
    assert calls == [True] and result.folder == stopped
    assert_same_run(stopped, whole)


def test_a_folder_without_a_checkpoint_starts_again(
    config: RunConfig, whole: Path, calls: list[bool], tmp_path: Path
) -> None:
    early = shutil.copytree(whole, tmp_path / "early")
    for name in ("last.pt", "last.previous.pt", "best.safetensors"):
        (early / name).unlink()
    lines = (early / "metrics.jsonl").read_text().splitlines(keepends=True)
    (early / "metrics.jsonl").write_text("".join(lines[:2]) + '{"event": "eva')
    calls.clear()
    train_or_resume(config, early)
    assert calls == [False]
    assert_same_run(early, whole)


def test_a_run_whose_weights_were_deleted_is_not_overwritten(config: RunConfig, whole: Path, tmp_path: Path) -> None:
    """As the runs of a study are shared."""
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("last.pt", "last.previous.pt", "best.safetensors"):
        (folder / name).unlink()
    before = contents(folder)
    for start in (partial(train, resume=None), train, train_or_resume):
        with pytest.raises(CsktError, match=r"it has no last\.pt and cannot be resumed; delete it or name another"):
            start(config, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("resume", [None, False])
def test_a_config_that_the_user_wrote_is_not_overwritten(
    config: RunConfig, tmp_path: Path, resume: bool | None
) -> None:
    (tmp_path / "config.yaml").write_text("recipe: demo\n")
    with pytest.raises(CsktError, match="already holds a run"):
        train(config, tmp_path, resume=resume)
    assert contents(tmp_path) == {tmp_path / "config.yaml": b"recipe: demo\n"}


def test_a_start_that_was_killed_before_its_first_event_starts_again(
    config: RunConfig, whole: Path, tmp_path: Path
) -> None:
    for name in ("config.yaml", "configs.yaml"):
        shutil.copy(whole / name, tmp_path / name)
    train(config, tmp_path, resume=None)
    assert_same_run(tmp_path, whole)


def test_a_run_that_another_process_has_just_started_is_refused(config: RunConfig, whole: Path, tmp_path: Path) -> None:
    """It has no checkpoint yet, but its claim."""
    shutil.copytree(whole, tmp_path / "run")
    for name in ("last.pt", "last.previous.pt", "best.safetensors"):
        (tmp_path / "run" / name).unlink()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:2]))
    with claimed_elsewhere(tmp_path / "run"):
        with pytest.raises(CsktError, match="another process is training there"):
            train_or_resume(config, tmp_path / "run")
        with pytest.raises(CsktError, match="another process is training there"):
            train(config, tmp_path / "run", resume=None)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "".join(lines[:2])
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("state", ["finished", "interrupted", "no checkpoint"])
def test_another_config_is_refused(
    state: str,
    config: RunConfig,
    whole: Path,
    calls: list[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if state == "finished":
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    else:
        stop_after_epoch(1, config, tmp_path, monkeypatch)
    if state == "no checkpoint":
        (tmp_path / "last.pt").unlink()
    calls.clear()
    before = story(tmp_path)
    other = changed(config, {"optim.lr": 0.5, "seed": 3, "data.num_workers": 1})
    for asked in (train_or_resume, check_same_config):
        with pytest.raises(CsktError) as caught:
            asked(other, tmp_path)
        message = str(caught.value)
        assert message == (
            f"{tmp_path}: holds a run with another config (optim.lr: 0.01 -> 0.5; seed: 1 -> 3); name another folder"
        )
    assert calls == [] and story(tmp_path) == before


@pytest.mark.parametrize("recipe", ["up-person", "dm-adapter", "rde", "tbps-clip"])
def test_a_run_records_defaults_and_still_belongs_to_its_recipe(
    recipe: str, dolls: Path, tiny_backbone: Path, calls: list[bool], tmp_path: Path
) -> None:
    """Settings of parts, losses, operations and hooks that the recipe does not name are written into the run."""
    config = quick_config(dolls, tiny_backbone, recipe, {"loop.num_epochs": 1})
    train_or_resume(config, tmp_path)
    assert calls == [False]
    train_or_resume(config, tmp_path)
    assert calls == [False], "it is finished"


def test_a_finished_run_belongs_to_its_data_and_its_backbone(
    config: RunConfig, whole: Path, calls: list[bool], tmp_path: Path
) -> None:
    folder, other_root, other_backbone = whole, tmp_path / "dolls", tmp_path / "other.safetensors"
    make_dataset(other_root, ids={"train": 6, "val": 3, "test": 3}, images_per_id=2, seed=2)
    write_backbone(other_backbone, seed=5)
    for changes, problem in (
        ({"data.root": str(other_root)}, f"on other training data than that in {other_root}"),
        ({"backbone.name": str(other_backbone)}, f"over another backbone than {other_backbone}"),
    ):
        with pytest.raises(CsktError) as caught:
            train_or_resume(changed(config, changes), folder)
        assert str(caught.value) == f"{folder}: holds a run {problem}; name another folder"
    assert calls == []


def test_a_run_that_stopped_early_does_not_count_as_the_whole(config: RunConfig, tmp_path: Path) -> None:
    train(changed(config, {"loop.stop_after_epochs": 1}), tmp_path)
    with pytest.raises(CsktError, match=r"\(loop\.stop_after_epochs: 1 -> None\)"):
        train_or_resume(config, tmp_path)


def test_settings_of_place_and_speed_and_an_open_image_size_may_differ(
    config: RunConfig, calls: list[bool], tmp_path: Path
) -> None:
    """A config may leave the image size to the weight file; the run's own config then says what that was."""
    open_size = changed(config, {"backbone.image_height": None, "backbone.image_width": None})
    train_or_resume(open_size, tmp_path)
    for same in (open_size, config, changed(config, {"data.num_workers": 1, "name": "other"})):
        train_or_resume(same, tmp_path)
    assert calls == [False]
    with pytest.raises(CsktError, match="backbone.image_height: 32 -> 16"):
        train_or_resume(changed(config, {"backbone.image_height": 16}), tmp_path)


def test_the_config_is_written_atomically(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it writes the config leaves a folder that can be started in."""

    def half(config: RunConfig, path: Path) -> None:
        path.write_text("name:")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cskt.training.run_folder.save_config", half)
        with pytest.raises(KeyboardInterrupt):
            train_or_resume(config, tmp_path)
    train_or_resume(config, tmp_path)
    assert load_plain(tmp_path / "last.pt")["progress"]["epoch"] == 2


# --- claims


def test_one_worker_claims_a_folder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with claimed(folder) as mine, claimed_elsewhere(folder) as theirs, claimed_elsewhere(tmp_path / "other") as other:
        assert (mine, theirs, other) == (True, False, True)
        with claimed_elsewhere(folder) as again:
            assert not again, "a refusal does not release the claim of another"
        with claimed(folder) as once_more:
            assert once_more, "a process may claim again what it has claimed"
        with claimed_elsewhere(folder) as still:
            assert not still, "it is released with the first claim"
    with claimed_elsewhere(folder) as theirs, claimed(folder) as mine:
        assert (theirs, mine) == (True, False)
    with claimed(folder) as again:
        assert again
    with pytest.raises(RuntimeError), claimed(folder):
        raise RuntimeError("work that fails")
    with claimed(folder) as after_failure:
        assert after_failure


HOLDER = """
import pathlib, sys
from cskt.training.run_folder import claimed
with claimed(pathlib.Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_claim_ends_with_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "True\n"
            with claimed(tmp_path) as mine:
                assert not mine
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with claimed(tmp_path) as mine:
        assert mine
