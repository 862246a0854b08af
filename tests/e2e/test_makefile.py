"""`make`, as far as it goes without installing anything."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with what the Makefile looks at."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `make` without the variables of another `make` that started the tests, as `make test PIP_FLAGS=` does."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PIP_FLAGS", "NVIDIA_DRIVER", "VENV", "PYTHON"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def test_environment_that_fails_halfway_is_taken_away(copy: Path) -> None:
    python = copy / "python"
    # what Debian's Python does where python3-venv is missing
    python.write_text('#!/bin/sh\n[ "$1" = -m ] || exit 0\nmkdir -p "$3/bin" && touch "$3/bin/python" && exit 1\n')
    python.chmod(0o755)
    assert make(copy, "demo", f"PYTHON={python}").returncode != 0
    assert not (copy / ".venv").exists()


def test_folder_that_is_no_environment_is_left_alone(copy: Path) -> None:
    mine = copy / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    refused = make(copy, "demo", "VENV=mine", "PYTHON=true")
    assert refused.returncode != 0 and "set VENV=" in refused.stdout
    assert (mine / "letter.txt").read_text() == "dear"


def test_flags_for_pip(copy: Path) -> None:
    flags = "--extra-index-url https://download.pytorch.org/whl/cpu"
    for target in ("demo", "test"):
        plan = make(copy, "--dry-run", target, f"PIP_FLAGS={flags}").stdout
        assert f"pip install {flags} --constraint constraints.txt --editable" in plan


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere pip's own torch is a CPU build")
def test_linux_without_a_driver_installs_the_cpu_build(copy: Path) -> None:
    index = "https://download.pytorch.org/whl/cpu"
    for target in ("install", "demo", "lint"):
        assert index in make(copy, "--dry-run", target, "NVIDIA_DRIVER=").stdout
        assert index not in make(copy, "--dry-run", target, "NVIDIA_DRIVER=/usr/bin/nvidia-smi").stdout
        assert index not in make(copy, "--dry-run", target, "NVIDIA_DRIVER=", "PIP_FLAGS=").stdout
