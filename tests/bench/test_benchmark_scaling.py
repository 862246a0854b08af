"""Projection for many GPUs: counts compared with closed forms, formulas with values computed by hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling, scaling_plan
from benchmarks.scaling_plan import Counting, Device, Links, Step, project
from tiny_run import ARCHITECTURE

ROOT = Path(__file__).resolve().parents[2]
STEP = Step(
    "CSKT", kernels=1000, fixed_bytes=2e9, pair_bytes=1e9, fixed_flop=0, pair_flop=1e12, gradient_bytes=80e6,
    loss_bytes=100, embed_dim=500,
)  # fmt: skip
DEVICE = Device(bytes_per_second=1e12, matrix_flops=1e15, float32_flops=1e14, launch_seconds=1e-5)
LINKS = Links(
    devices_per_machine=4, device_bytes_per_second=100e9, network_bytes_per_second=10e9, device_latency_seconds=1e-5,
    network_latency_seconds=1e-4,
)  # fmt: skip


def test_kernels_and_bytes_are_those_of_the_operations() -> None:
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    with Counting() as counts:
        (left @ right).T.reshape(-1)[2:].view(-1)
    assert counts.kernels == 2, "the product, and the copy that a transposed tensor needs to be flat; views are free"
    assert counts.num_bytes == 4 * (12 + 20 + 15) + 4 * (15 + 15)


def test_counts_are_linear_in_the_batch() -> None:
    step = scaling_plan.count_step("fine-tuning", ARCHITECTURE)
    assert step.gradient_bytes == 4 * sum(p.numel() for p in _model().parameters())
    with FlopCounterMode(display=False) as flops:
        model = _model()
        features = model(torch.ones(1, 3, 32, 16), torch.tensor([[49_406, 5, 49_407]]))
        torch.autograd.backward(features[0].sum() + features[1].sum())
    assert step.pair_flop > flops.get_total_flops(), "captions of 37 tokens cost more than one of three"
    assert step.fixed_flop < step.pair_flop
    added = scaling_plan.count_step("CSKT", ARCHITECTURE)
    assert 0 < added.gradient_bytes < step.gradient_bytes
    assert step.loss_bytes == added.loss_bytes > 4 * 10, "ten passes over the similarities at the least"


def _model() -> torch.nn.Module:
    from tiny_run import plain_clip

    return plain_clip().requires_grad_(True)


def test_one_device() -> None:
    alone = project(STEP, 1, 32, device=DEVICE, links=LINKS)
    assert alone.computing_seconds == pytest.approx(34e9 / 1e12 + 32e12 / 1e15)
    assert alone.loss_seconds == pytest.approx(1024 * 100 / 1e12 + 6 * 1024 * 500 / 1e14)
    assert alone.gathering_seconds == alone.reducing_seconds == 0
    assert alone.num_steps == 60 * 2129
    assert alone.pairs_per_second == pytest.approx(32 / alone.step_seconds)


def test_devices_of_one_machine_and_of_three() -> None:
    near = project(STEP, 4, 32, device=DEVICE, links=LINKS)
    assert near.computing_seconds == pytest.approx(10e9 / 1e12 + 8e12 / 1e15)
    assert near.gathering_seconds == pytest.approx(2 * (0.75 * 64_000 / 100e9 + 3e-5))
    assert near.reducing_seconds == pytest.approx(2 * (0.75 * 80e6 / 100e9 + 3e-5))
    far = project(STEP, 12, 32, device=DEVICE, links=LINKS)
    assert far.computing_seconds == pytest.approx(max(1000 * 1e-5, 5e9 / 1e12 + 3e12 / 1e15)), "three pairs at most"
    assert far.gathering_seconds == pytest.approx(2 * (11 / 12 * 64_000 / 10e9 + 11e-4))
    assert far.reducing_seconds == pytest.approx(near.reducing_seconds + 2 * (2 / 3 * 20e6 / 10e9 + 2e-4))


def test_launching_kernels_limits_a_step() -> None:
    slow = dataclasses.replace(DEVICE, launch_seconds=1e-3)
    assert project(STEP, 1, 32, device=slow, links=LINKS).computing_seconds == 1.0
    assert project(STEP, 1, 32, device=DEVICE, links=LINKS, pair_seconds=0.5).computing_seconds == 16


def test_a_measured_step_is_read_from_the_gpu_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    rows = [{"check": "machine", "matrix_tflops": 1}, {"check": "ViT-B/16", "pairs_per_s": 2000.0}, {"seconds": 3.0}]
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert scaling_plan.timed_pair_seconds(path, "ViT-B/16") == pytest.approx(5e-4)
    with pytest.raises(SystemExit, match="no measurement 'machine'; choose from ViT-B/16"):
        scaling_plan.timed_pair_seconds(path, "machine")


def test_the_table_is_relative_to_one_device() -> None:
    lines = scaling_plan.plan_table(scaling_plan.projections(STEP)).splitlines()
    assert len(lines) == 2 + 5
    assert lines[2].split("|")[9].strip() == "100%"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun on Windows are not tried")
def test_processes_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "BATCH_SIZE", 4)
    monkeypatch.setattr(scaling, "RUNS", ((2, 1),))
    [row] = scaling.measured("cskt", 1, quick=True)
    assert row.step_seconds > 0 and 0 < row.exchange_share < 1
    assert row.gathered_bytes == 2 * 2 * 64 * 4, "two towers, two rows of the other process, 64 numbers of 4 bytes"
    assert row.added_up_bytes > 4 * 64
    assert "| cskt | 2 x 1 |" in scaling.table([row])
