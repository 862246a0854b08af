"""Compiled blocks train to the same losses, and leave nothing of themselves in what is saved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cskt.embed import load
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain
from cskt.training.events import read_events
from cskt.training.loop import train
from tiny_run import Configure


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own ways
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU takes a C++ compiler")
def test_compiled_blocks_learn_the_same(configure: Configure, tmp_path: Path) -> None:
    folders = [
        train(configure({"loop.compile": compiled, "loop.num_epochs": 1}), tmp_path / str(compiled)).folder
        for compiled in (False, True)
    ]
    plain, compiled = ([e["loss"] for e in read_events(folder) if e["event"] == "step"] for folder in folders)
    assert len(plain) > 2
    assert compiled == pytest.approx(plain, rel=1e-4)
    names = [load_plain(folder / "last.pt")["model"].keys() for folder in folders]
    assert names[0] == names[1]
    load(folders[1], device="cpu").encode_text(["a man"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_missing_compiler_is_one_line(configure: Configure, tmp_path: Path) -> None:
    from torch._inductor import config

    torch._dynamo.reset()  # blocks that another test compiled would be used again
    with (
        config.patch({"cpp.cxx": (None, "/bin/false"), "force_disable_caches": True}),
        pytest.raises(CsktError, match=r"torch\.compile failed: .*compiler.*; install g\+\+ .*leave out --compile"),
    ):
        train(configure({"loop.compile": True}), tmp_path / "run")
    torch._dynamo.reset()
