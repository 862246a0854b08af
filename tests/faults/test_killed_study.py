"""kill -9 at any moment of a study: the same command goes on, and the tables are those of a study never stopped."""

from __future__ import annotations

import csv
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml
from processes import kill_some_time, num_moments, run

from fault_tries import chance, record, tries
from tiny_run import HEIGHT, WIDTH

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")


@pytest.fixture
def study(tiny_backbone: Path, tmp_path: Path) -> Path:
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
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def table(output: Path) -> list[dict[str, str]]:
    """The study's figures, without what the clock says."""
    with (output / "dolls.csv").open(encoding="utf-8", newline="") as stream:
        return [
            {key: value for key, value in row.items() if "second" not in key and "bytes" not in key}
            for row in csv.DictReader(stream)
        ]


@pytest.mark.timeout(900)
def test_killed_at_any_moment_and_gone_on_with(study: Path, dolls: Path, tmp_path: Path) -> None:
    random, num_tries = chance("study"), tries(2, 20)

    def words(output: Path) -> list[str | Path]:
        return ["command", "study", study, "--root", dolls, "--output", output]

    def check(output: Path) -> None:
        assert table(output) == table(undisturbed)
        weights = sorted(path.relative_to(output) for path in output.rglob("best.safetensors"))
        assert len(weights) == 5
        for path in weights:
            assert (output / path).read_bytes() == (undisturbed / path).read_bytes(), path

    undisturbed, output, num_kills = tmp_path / "whole", tmp_path / "out", 0
    total = num_moments(run(*words(undisturbed)))
    for attempt in range(3 * num_tries):
        if num_kills == num_tries:
            break
        if attempt % 2:
            killed = kill_some_time(random, 1.5, *words(output))
        else:
            ended = run(*words(output), moment=random.randint(1, max(4 * total // num_tries, 8)))
            killed = ended.returncode == -signal.SIGKILL
            assert killed or ended.returncode == 0, ended.stderr
        if not killed:  # it came to its end first: again from the start
            check(output)
            shutil.rmtree(output)
        num_kills += killed
    assert num_kills == num_tries, "it was at work when it was killed"
    ended = run(*words(output))
    assert ended.returncode == 0, ended.stderr
    check(output)
    record("study killed (kill -9)", tried=num_kills, test="tests/faults/test_killed_study.py")
