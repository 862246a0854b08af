"""Training, evaluation and resuming on a GPU, where this machine has one; elsewhere these tests skip and say so."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from cskt.device import peak_memory_bytes, reset_peak_memory
from cskt.embed import load
from cskt.training.loop import train
from tiny_run import quick_config

AVAILABLE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.fixture(params=AVAILABLE)
def device(request: pytest.FixtureRequest) -> str:
    """A GPU of this machine."""
    name: str = request.param
    if not AVAILABLE[name]:
        pytest.skip(f"no {name} device here")
    return name


def step_losses(folder: Path) -> list[float]:
    events: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


def touch_memory(num_bytes: int) -> None:
    """Hold that much for a moment, of pages asked of the system: an allocator may still hold free ones, which count."""
    with mmap.mmap(-1, num_bytes) as pages:
        for start in range(0, num_bytes, mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="only Linux can forget a process's peak")
def test_the_peak_of_a_process_is_counted_from_the_reset() -> None:
    cpu, num_bytes = torch.device("cpu"), 256 << 20
    reset_peak_memory(cpu)
    before = peak_memory_bytes(cpu)
    touch_memory(num_bytes)
    high = peak_memory_bytes(cpu)
    assert high > before + num_bytes // 2, "what is gone again still counts"
    reset_peak_memory(cpu)
    assert 0 < peak_memory_bytes(cpu) < high - num_bytes // 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_evaluates_and_resumes(
    dolls: Path, tiny_backbone: Path, tmp_path: Path, device: str, precision: str
) -> None:
    changes = {"device": device, "precision": precision, "loop.num_epochs": 2, "optim.ema_decay": 0.9}
    stopped = quick_config(dolls, tiny_backbone, "cskt", changes | {"loop.stop_after_epochs": 1})
    train(stopped, tmp_path / "run")
    config = quick_config(dolls, tiny_backbone, "cskt", changes)
    assert train(config, tmp_path / "run", resume=True).best_epoch in (1, 2)
    features = load(tmp_path / "run", device=device).encode_text(["a woman in a red coat"])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(1))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("cskt", {}),
        ("lora", {"augment.caption_drop_probability": 0.2, "loss.weights": {"sdm": 1.0, "tal": 0.1}}),
        ("irra", {"mlm.cmt_depth": 1, "optim.lr": 1e-4, "data.captions_per_image": 2, "optim.ema_decay": 0.9}),
    ],
)
def test_a_gpu_computes_the_losses_of_the_cpu(
    dolls: Path, tiny_backbone: Path, tmp_path: Path, *, device: str, recipe: str, changes: dict[str, Any]
) -> None:
    for folder, where in (("ours", device), ("reference", "cpu")):
        train(quick_config(dolls, tiny_backbone, recipe, changes | {"device": where}), tmp_path / folder)
    ours, reference = step_losses(tmp_path / "ours"), step_losses(tmp_path / "reference")
    assert ours == pytest.approx(reference, rel=1e-3)
