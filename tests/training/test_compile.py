"""Compiled blocks train to the same losses, and leave nothing of themselves in what is saved."""

from __future__ import annotations

import shutil
from functools import partialmethod
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
    folders = check_losses(configure, tmp_path, "cskt")
    names = [load_plain(folder / "last.pt")["model"].keys() for folder in folders]
    assert names[0] == names[1]
    load(folders[1], device="cpu").encode_text(["a man"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["rde", "rde-released", "up-person", "dm-adapter", "tbps-clip"])
def test_traced_blocks_of_every_method_learn_the_same(
    recipe: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as by --compile; their graphs run without generated C++, which takes minutes."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_module, backend="aot_eager"))
    check_losses(configure, tmp_path, recipe)


def check_losses(configure: Configure, folder: Path, recipe: str) -> list[Path]:
    """Train without and with compiled blocks, and check that the losses are equal; return both runs."""
    torch._dynamo.reset()  # blocks that another test compiled would be used again
    own = {"hooks.noise_division.mixture": "none", "parts.tse.width": 8} if recipe.startswith("rde") else {}
    changes = {"loop.num_epochs": 1, "optim.lr": 1e-3, **own}
    runs = [
        train(configure({**changes, "loop.compile": compiled}, recipe), folder / str(compiled)).folder
        for compiled in (False, True)
    ]
    plain, compiled = ([e["losses"] for e in read_events(run) if e["event"] == "step"] for run in runs)
    assert len(plain) > 2
    for one, other in zip(plain, compiled, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    return runs


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
