"""`cskt index --watch`: a folder that is followed, through a kill (kill -9), until Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import typed

import cskt


def start(gallery: Path, crops: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "cskt", "index", str(gallery), "--images", str(crops), "--device", "cpu"]
    words += ["--watch", "--interval", "0.05", "--prune", "--json"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def report(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next report, waiting for it."""
    assert process.stdout is not None
    facts: dict[str, Any] = json.loads(process.stdout.readline())
    return {name: facts[name] for name in ("crops", "added", "removed") if facts[name]}


@pytest.mark.slow
def test_a_watched_folder_survives_a_kill(dolls: Path, tmp_path: Path) -> None:
    gallery, crops = tmp_path / "gallery", tmp_path / "crops"
    crops.mkdir()
    pictures = sorted(dolls.rglob("*.jpg"))[:3]
    shutil.copyfile(pictures[0], crops / "0.jpg")
    with start(gallery, crops) as process:
        assert report(process) == {"crops": 1, "added": 1}
        shutil.copyfile(pictures[1], crops / "1.jpg")
        assert report(process) == {"crops": 2, "added": 1}
        process.kill()
        assert process.wait() == -signal.SIGKILL
    (crops / "0.jpg").unlink()
    shutil.copyfile(pictures[2], crops / "2.jpg")
    with start(gallery, crops) as process:
        assert report(process) == {"crops": 2, "added": 1, "removed": 1}
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        assert process.returncode == 130 and "2 images are in the gallery; run the same command to continue" in said
    with cskt.Gallery.open(gallery, device="cpu") as opened:
        assert opened.check().findings == []


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--images {crops} --interval 1", "--interval is the time between two looks .* add --watch"),
        ("--images {crops} --watch --interval 0", "--interval 0.0: give a number of seconds above 0"),
        ("--images {crops} --watch --interval nan", "--interval nan: give a number of seconds above 0"),
        ("--images {crops} --watch --engine ray", "--watch encodes in this process"),
        ("--images {crops}/a.tar --watch", "--watch is for a folder or a list"),
    ],
)
def test_what_is_refused(tmp_path: Path, flags: str, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    outcome = typed(f"cskt index {tmp_path / 'gallery'} {flags.format(crops=tmp_path)}")
    assert re.search(reason, outcome.refusal())
    assert not (tmp_path / "gallery").exists()
