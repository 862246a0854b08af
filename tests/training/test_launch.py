"""Environment of a launcher: ranks, restarts, and commands that are refused under it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cskt.cli import main as cli
from cskt.cli.released_programs import train_main
from cskt.cli.train import run
from cskt.config.file_names import CONFIG, LAST, PREVIOUS
from cskt.errors import CsktError
from cskt.training.distributed import process_group
from cskt.training.launch import Ranks, check_restart_supported, check_single_process, num_restarts, read_ranks
from cskt.training.loop import train
from elsewhere import claimed_elsewhere
from tiny_run import Configure

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "3",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in (TORCHRUN | changes).items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one_process() -> None:
    assert read_ranks() == Ranks()
    assert read_ranks().is_main_process and num_restarts() == 0
    check_single_process("anything")


def test_ranks_of_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch(monkeypatch)
    assert read_ranks() == Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert not read_ranks().is_main_process and num_restarts() > 0
    with pytest.raises(CsktError, match="--max-restarts starts a run again, .* use cskt train --output FOLDER"):
        check_restart_supported(None)
    launch(monkeypatch, RANK="0", TORCHELASTIC_RESTART_COUNT="0")
    assert read_ranks().is_main_process and num_restarts() == 0


def test_several_machines_that_share_a_store_are_not_restarted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each counts its restarts for itself, and the store keeps the addresses of the dead."""
    launch(monkeypatch, GROUP_WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="True")
    with pytest.raises(CsktError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them"):
        check_restart_supported(tmp_path)
    launch(monkeypatch, GROUP_WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="False")
    check_restart_supported(tmp_path)
    launch(monkeypatch, GROUP_WORLD_SIZE="1", TORCHELASTIC_USE_AGENT_STORE="True")
    check_restart_supported(tmp_path)


def test_a_restart_does_not_resume_a_run_that_its_launch_was_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, folder = configure({"loop.num_epochs": 1}), tmp_path / "run"
    train(config, folder)
    for checkpoint in (LAST, PREVIOUS):  # as a study leaves a run
        (folder / checkpoint).unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    for attempt in ("0", "1", "2"):
        launch(monkeypatch, **alone, TORCHELASTIC_RESTART_COUNT=attempt)
        with pytest.raises(CsktError, match="already holds a run"):
            run(config, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path in before} == before
    (folder / CONFIG).unlink()
    launch(monkeypatch, **alone, TORCHELASTIC_RESTART_COUNT="0")
    assert run(config, folder) == 0, "another launch, or another try"


def test_a_restart_does_not_resume_a_run_that_another_process_had_claimed(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone, folder = {"RANK": "0", "WORLD_SIZE": "1"}, tmp_path / "run"
    config = configure({"loop.num_epochs": 2})
    with claimed_elsewhere(folder):
        launch(monkeypatch, **alone, TORCHELASTIC_RESTART_COUNT="0")
        with pytest.raises(CsktError, match="another process is training there"):
            run(config, folder)
    train(configure({"loop.num_epochs": 2, "loop.stop_after_epochs": 1}), folder)
    launch(monkeypatch, **alone, TORCHELASTIC_RESTART_COUNT="1")
    with pytest.raises(CsktError, match="already holds a run"):
        run(config, folder)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert run(config, folder) == 0, "a restart of the launch that has begun it"


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_an_incomplete_environment_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    launch(monkeypatch)
    monkeypatch.delenv(name)
    with pytest.raises(CsktError, match=f"^WORLD_SIZE is 8, but {name} is no number; start with torchrun, or unset"):
        read_ranks()


def test_an_environment_without_an_address_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    level = logging.getLogger("cskt").level
    with pytest.raises(CsktError, match="MASTER_ADDR expected, but not set; start with torchrun"), process_group():
        pass
    assert logging.getLogger("cskt").level == level, "the other ranks log errors only while they train"


def test_commands_for_one_process_are_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight processes that evaluate, or wait for one another's seeds, are no help."""
    launch(monkeypatch)
    for words in (["evaluate", "clip-tiny"], ["study", "methods"], ["train", "--config", "demo", "--seeds", "1,2"]):
        assert cli.main(words) == 2
        message = capsys.readouterr().err.strip()
        assert message.endswith(": 8 processes would all do the same; torchrun is for one training, leave it out")
        assert "\n" not in message


def test_the_published_program_checks_local_rank_against_its_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    launch(monkeypatch, TORCHELASTIC_MAX_RESTARTS="0", TORCHELASTIC_RESTART_COUNT="0")
    words = ["--root_dir", str(tmp_path), "--dataset_name", "CUHK-PEDES", "--test", "--local_rank"]
    for rank, message in (("1", "--test: "), ("3", "--local_rank 3: no launcher has started other processes")):
        with_test = words if rank == "1" else [word for word in words if word != "--test"]
        assert train_main([*with_test, rank]) == 2
        assert message in capsys.readouterr().err
