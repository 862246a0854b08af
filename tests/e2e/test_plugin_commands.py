"""Plug-ins through the flag, the environment variable and Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import typed

import cskt
from cskt import plugins

DATASET = """
from pathlib import Path
from cskt.data.datasets import DatasetFormat, Record, register

class OneLine(DatasetFormat):
    def read(self, folder: Path) -> list[Record]:
        rows = [line.split(",", 2) for line in (folder / "people.csv").read_text().splitlines()]
        return [Record(int(pid), folder / image, (caption,), "test") for image, pid, caption in rows]

register(OneLine("one-line", remedy="write people.csv: image,pid,caption"))
"""


@pytest.fixture
def dataset(tmp_path: Path, forgets_plugins: None) -> Path:
    """A folder with data and the plug-in `one_line.py` that reads them."""
    (tmp_path / "one_line.py").write_text(DATASET)
    (tmp_path / "people.csv").write_text("a.jpg,1,a man in red\nb.jpg,2,a woman in blue\n")
    return tmp_path


def test_a_command_loads_a_plugin_before_and_after_its_name(dataset: Path) -> None:
    check = f"data check {dataset} --dataset one-line --no-decode --json"
    for command in (
        f"cskt {check} --plugin {dataset}/one_line.py",
        f"cskt --plugin {dataset}/one_line.py --traceback {check}",
        f"cskt {check} --plugin={dataset}/one_line.py",
    ):
        outcome = typed(command)
        assert outcome.code == 1, outcome.err  # the images are missing
        assert '"num_ids": 2' in outcome.out or '"counts"' in outcome.out


def test_without_the_plugin_the_message_names_the_flag(dataset: Path) -> None:
    reason = typed(f"cskt data check {dataset} --dataset one-line").refusal()
    assert "unknown data set 'one-line'" in reason and "--plugin FILE" in reason


def test_a_process_that_a_command_starts_loads_the_plugin_too(dataset: Path) -> None:
    typed(f"cskt data check {dataset} --dataset one-line --no-decode --plugin {dataset}/one_line.py")
    assert os.environ[plugins.ENVIRONMENT] == str(dataset / "one_line.py")
    code = "from cskt.cli.main import main; raise SystemExit(main(['data', 'check', '.', '--dataset', 'one-line']))"
    process = subprocess.run([sys.executable, "-c", code], cwd=dataset, capture_output=True, text=True, check=False)
    assert process.returncode == 1 and "one-line" in process.stdout, process.stderr


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--plugin missing.py", "plug-in missing.py: no such file"),
        ("--plugin no_such_module", "plug-in no_such_module: no such module; install it, or give a file"),
        ("--plugin", "--plugin names no plug-in; give a Python file, or the name of a module"),
        ("--plugin {tmp}/broken.py", "plug-in broken.py, line 2: NameError: name 'a' is not defined"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(dataset: Path, flag: str, reason: str) -> None:
    (dataset / "broken.py").write_text("\na\n")
    assert reason in typed(f"cskt data check {dataset} {flag.format(tmp=dataset)}").refusal()


def test_an_exception_of_a_plugin_is_reported_with_its_name(dataset: Path) -> None:
    (dataset / "people.csv").write_text("a.jpg,one,a man\n")
    outcome = typed(f"cskt data check {dataset} --dataset one-line --plugin {dataset}/one_line.py")
    assert outcome.code == 70
    assert "Traceback" in outcome.err
    assert "the plug-in one_line.py raised this exception" in outcome.err.splitlines()[-1]
    assert "please report" not in outcome.err


@pytest.mark.slow
def test_losses_of_the_package_that_a_plugin_imports_first_are_not_its_own(dataset: Path) -> None:
    (dataset / "loss.py").write_text(
        "from dataclasses import dataclass\nfrom cskt.losses import ITCLoss, register\n"
        '@register("mine")\n@dataclass(eq=False)\nclass Mine(ITCLoss):\n    pass\n'
    )
    code = (
        "from cskt.plugins import load_plugins, REGISTRIES\n"
        f"load_plugins([{str(dataset / 'loss.py')!r}])\n"
        "losses = REGISTRIES['cskt.losses']\n"
        "print([name for name in losses if losses.provider(name)], len(losses) > 5)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "['mine'] True"


def test_load_takes_plugins(dataset: Path) -> None:
    encoder = cskt.load("clip-tiny", device="cpu", plugins=[dataset / "one_line.py"])
    assert encoder.embed_dim and [plugin.name for plugin in plugins.loaded_plugins()] == ["one_line.py"]
    assert cskt.read_dataset("One_Line", dataset)["test"].counts.num_ids == 2


def test_every_help_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("cskt search --help", "cskt train --help", "cskt --help", "python test.py --help"):
        assert "--plugin FILE_OR_MODULE" in typed(command).out


def test_the_help_of_train_lists_the_constants_of_losses(dataset: Path) -> None:
    (dataset / "sce.py").write_text(
        "from dataclasses import dataclass\n"
        "from cskt.losses import ITCLoss, register\n\n"
        '@register("sce_loss")\n@dataclass(eq=False)\nclass SCE(ITCLoss):\n    smoothing: float = 0.1\n'
    )
    text = typed(f"cskt train --help --plugin {dataset}/sce.py").out
    assert "--loss.sce-loss.smoothing VALUE" in text and "smoothing of sce_loss (default: 0.1)" in text
    assert "--loss.sdm.temperature VALUE" in text


def test_a_bug_without_a_frame_of_a_plugin_names_the_loaded_plugins(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cskt.cli.data_check.main", lambda words: 1 // 0)
    outcome = typed(f"cskt data check {dataset} --plugin {dataset}/one_line.py")
    assert outcome.bug() == "ZeroDivisionError: integer division or modulo by zero"
    assert "unless it is one in a plug-in (one_line.py); please report this" in outcome.err.splitlines()[-1]
