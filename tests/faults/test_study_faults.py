"""A study that is killed (-9) or whose disk is full: the same command continues, to the tables of a whole study."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from processes import kill_at, num_moments, run

from disks import mounted
from fault_tries import chance, record, tries
from tiny_run import HEIGHT, WIDTH

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")]

TEST = "tests/faults/test_study_faults.py"


@pytest.fixture(scope="module")
def study(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods that train and one that does not, with two seeds."""
    content = {
        "title": "Two methods and none",
        "baseline": "CSKT",
        "seeds": [1, 2],
        "datasets": [{"name": "dolls", "dataset": "cuhk-pedes"}],
        "common": {
            "backbone.name": str(tiny_backbone), "backbone.image_height": HEIGHT, "backbone.image_width": WIDTH,
            "device": "cpu", "data.batch_size": 8, "data.num_workers": 0, "loop.num_epochs": 2, "prompts.depth": 2,
            "prompts.length": 2, "optim.warmup_epochs": 0,
        },
        "arms": [{"label": label, "recipe": label.lower()} for label in ("CSKT", "LoRA", "CLIP")],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def table(output: Path) -> list[dict[str, str]]:
    """Figures of the study without durations and sizes."""
    with (output / "dolls.csv").open(encoding="utf-8", newline="") as stream:
        return [
            {key: value for key, value in row.items() if "second" not in key and "bytes" not in key}
            for row in csv.DictReader(stream)
        ]


class Whole(NamedTuple):
    """The study, run without interruption."""

    folder: Path
    moments: int
    """Number of moments at which it could be killed."""


@pytest.fixture(scope="module")
def whole(study: Path, dolls: Path) -> Whole:
    folder = study.parent / "whole"
    return Whole(folder, num_moments(run(*words(study, dolls, folder))))


def words(study: Path, dolls: Path, output: Path) -> list[str | Path]:
    """Arguments of `dying.py`."""
    return ["command", "study", study, "--root", dolls, "--output", output]


def assert_same_study(output: Path, reference: Path) -> None:
    """Check that tables and weights are the same, byte for byte."""
    assert table(output) == table(reference)
    weights = sorted(path.relative_to(output) for path in output.rglob("best.safetensors"))
    assert len(weights) == 5
    for path in weights:
        assert (output / path).read_bytes() == (reference / path).read_bytes(), path


@pytest.mark.timeout(900)
def test_a_study_killed_at_any_moment_is_continued(study: Path, whole: Whole, dolls: Path, tmp_path: Path) -> None:
    random, num_tries = chance("study"), tries(2, 20)
    output, num_kills = tmp_path / "out", 0
    command = words(study, dolls, output)
    for attempt in range(3 * num_tries):
        if num_kills == num_tries:
            break
        moment = random.randint(1, max(4 * whole.moments // num_tries, 8))
        if attempt % 2:
            killed = kill_at(moment, *command)
        else:
            ended = run(*command, moment=moment)
            killed = ended.returncode == -signal.SIGKILL
            assert killed or ended.returncode == 0, ended.stderr
        if not killed:  # it ended before the kill: again from the start
            assert_same_study(output, whole.folder)
            shutil.rmtree(output)
        num_kills += killed
    assert num_kills == num_tries, "killed while it was running"
    ended = run(*command)
    assert ended.returncode == 0, ended.stderr
    assert_same_study(output, whole.folder)
    record("study killed (kill -9)", tried=num_kills, test=TEST)


@pytest.mark.timeout(900)
def test_a_disk_that_fills_up(study: Path, whole: Whole, dolls: Path, tmp_path: Path) -> None:
    """The study ends in one line wherever the disk is full, and continues with a little more space."""
    random, num_full = chance("study's disk"), 0
    needed = sum(path.stat().st_blocks for path in whole.folder.rglob("*")) // 2
    most_given = needed * 1024 // tries(1, 5)
    with mounted(tmp_path / "disk", 2 * needed) as disk:
        taken = disk / "other"
        taken.write_bytes(bytes(shutil.disk_usage(disk).free))
        while (ended := run(*words(study, dolls, disk / "out"))).returncode:
            assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
            line = ended.stderr.splitlines()[-1]
            assert "No space left" in line or "free disk space" in line
            assert taken.stat().st_size, "twice what it needs is not enough"
            num_full += 1
            given = random.randrange(most_given // 2, most_given)
            os.truncate(taken, max(0, taken.stat().st_size - given))
        assert_same_study(disk / "out", whole.folder)
    assert num_full > 1
    record("disk full during a study", tried=num_full, test=TEST)
