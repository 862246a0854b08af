"""Training on a full disk, in a read-only folder, and without rights: one line, nothing lost, and it can resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cskt.config import RunConfig, save_config
from cskt.training.events import read_events
from cskt.training.loop import train
from disks import mounted
from fault_tries import record, tries
from same_run import assert_same_run
from tiny_run import quick_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights"),
]

NOBODY = 65534
TRAINING = """
import os, pathlib, sys, torch
import torch.utils.tensorboard
from cskt.cli import main, run_report
from cskt.training import loop, trainer

torch.set_num_threads(1)
config, folder, lost_at = sys.argv[1:]
update, claimed, steps = trainer.optimizer_step, loop.claimed, [0]

def become_another():
    if os.geteuid() == 0:  # may do all
        os.seteuid(NOBODY)
    else:
        pathlib.Path(folder).chmod(0o555)

def update_and_lose(session, position, num_steps):
    steps[0] += 1
    if steps[0] == int(lost_at):
        become_another()
    return update(session, position, num_steps)

def lose_and_claim(folder):
    if lost_at == "0" and os.geteuid() == 0:
        become_another()
    return claimed(folder)

trainer.optimizer_step, loop.claimed = update_and_lose, lose_and_claim
sys.exit(main.main(["train", "--config", config, "--output", folder]))
""".replace("NOBODY", str(NOBODY))


@pytest.fixture
def config(dolls: Path, tiny_backbone: Path) -> RunConfig:
    changes = {"loop.num_epochs": 3, "loop.save_period_steps": 1, "data.batch_size": 5}
    return quick_config(dolls, tiny_backbone, "cskt", changes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    with mounted(tmp_path / "disk", 400) as place:
        yield place


def test_full_disk(config: RunConfig, small_disk: Path, tmp_path: Path) -> None:
    """Training ends with one line wherever the disk becomes full, and resumes with more space."""
    train(config, tmp_path / "whole")
    needed = sum(path.stat().st_blocks * 512 for path in (tmp_path / "whole").rglob("*"))
    assert needed > 200_000
    save_config(config, tmp_path / "config.yaml")
    errors = []
    for taken in range(40_000, 400_000, 400_000 // tries(4, 20)):
        folder = small_disk / "run"
        shutil.rmtree(folder, ignore_errors=True)
        (small_disk / "other").write_bytes(bytes(taken))
        words = ["--config", str(tmp_path / "config.yaml"), "--output", str(folder)]
        ended = subprocess.run(
            [sys.executable, "-m", "cskt", "train", *words], capture_output=True, text=True, check=False, timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert "Traceback" not in ended.stderr, ended.stderr
        if ended.returncode == 0:
            assert_same_run(folder, tmp_path / "whole")
            continue
        assert ended.returncode == 2
        errors.append(ended.stderr.splitlines()[-1])
        assert "No space left" in errors[-1] or "free disk space" in errors[-1]
        (small_disk / "other").unlink()
        if (folder / "last.pt").is_file():
            roomy = tmp_path / f"roomy-{taken}"
            shutil.copytree(folder, roomy)
            train(config, roomy, resume=True)
            assert_same_run(roomy, tmp_path / "whole")
    assert errors
    record("disk full while training", tried=len(errors), test="tests/faults/test_places.py")


def test_read_only_folder_and_rights_removed_during_training(config: RunConfig, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # other users cannot read pytest's folders
        Path(open_to_all).chmod(0o755)
        scratch = Path(shutil.copytree(config.data.root, Path(open_to_all) / "scratch"))
        backbone = Path(shutil.copy(config.backbone.name, scratch / "backbone.safetensors"))
        changes = {"loop.num_epochs": 3, "loop.save_period_steps": 1, "data.batch_size": 5}
        save_config(quick_config(scratch, backbone, "cskt", changes), scratch / "config.yaml")
        for path in [scratch, *scratch.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)

        def training(folder: Path, lost_at: int) -> subprocess.CompletedProcess[str]:
            words = [str(scratch / "config.yaml"), str(folder), str(lost_at)]
            return subprocess.run(
                [sys.executable, "-c", TRAINING, *words], capture_output=True, text=True, check=False, timeout=120,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(scratch)}, cwd=scratch,
            )  # fmt: skip

        closed = scratch / "closed"
        closed.mkdir(mode=0o555)
        ended = training(closed / "run", 0)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        assert "cannot be written: Permission denied; free disk space, or choose" in ended.stderr.splitlines()[-1]

        place = scratch / "open"
        ended = training(place / "run", 7)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
        assert "Permission denied" in ended.stderr.splitlines()[-1]
        (place / "run").chmod(0o755)
        moved = quick_config(scratch, backbone, "cskt", changes)
        train(moved, place / "run", resume=True)
        train(moved, tmp_path / "whole")
        assert_same_run(place / "run", tmp_path / "whole")
        assert len([event for event in read_events(place / "run") if event["event"] == "start"]) == 1
    record("read-only folder, rights lost while training", tried=2, test="tests/faults/test_places.py")
