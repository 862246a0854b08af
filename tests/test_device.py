"""Precision `auto`, and the memory of process and machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from cskt import device as device_room
from cskt.device import free_memory_bytes, held_memory_bytes, native_bf16, pick_device, pick_precision
from cskt.errors import CsktError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def capabilities(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Capabilities of the processor as torch reports them; empty at first."""
    found: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    return found


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({}, False),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_bf16_counts_where_the_processor_multiplies_it(
    capabilities: dict[str, bool], says: Mapping[str, bool], expected: bool
) -> None:
    capabilities.update(says)
    assert native_bf16() is expected


def test_a_torch_that_does_not_tell_computes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not native_bf16()
    assert pick_precision("auto", CPU) == "fp32"


def test_auto_is_bf16_on_such_a_cpu_alone(capabilities: dict[str, bool]) -> None:
    assert pick_precision("auto", CPU, exact="fp16") == "fp32", "others are slower with half precision"
    capabilities["avx512_bf16"] = True
    assert pick_precision("auto", CPU) == "bf16"
    assert pick_precision("auto", CUDA) == "fp32"
    assert pick_precision("auto", CUDA, exact="fp16") == "fp16"
    assert [pick_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    with pytest.raises(ValueError, match="unknown precision 'bf61': did you mean 'bf16'"):
        pick_precision("bf61", CPU)


def test_a_device_that_is_not_here_is_refused_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", CUDA, torch.device("cuda", 1), torch.device("mps")):
        with pytest.raises(CsktError, match=f"device '{device}' is not available here; use --device auto"):
            pick_device(device)
    assert pick_device(CPU) == pick_device("cpu") == CPU


def test_memory_is_read_from_the_systems_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, machine, container = tmp_path / "status", tmp_path / "meminfo", tmp_path / "cgroup"
    process.write_text("Name:\tpython\nVmHWM:\t  3000 kB\nVmRSS:\t  2000 kB\n", encoding="ascii")
    machine.write_text("MemTotal:  9000 kB\nMemAvailable:  7000 kB\n", encoding="ascii")
    container.mkdir()
    for name, path in (("PROCESS_MEMORY", process), ("MACHINE_MEMORY", machine), ("CONTAINER", container)):
        monkeypatch.setattr(device_room, name, path)
    assert held_memory_bytes(CPU) == 2000 * 1024
    assert free_memory_bytes(CPU) == 7000 * 1024
    (container / "memory.current").write_text("1300000\n", encoding="ascii")
    (container / "memory.stat").write_text("anon 900000\ninactive_file 300000\n", encoding="ascii")
    (container / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory_bytes(CPU) == 7000 * 1024
    (container / "memory.max").write_text("1500000\n", encoding="ascii")
    assert free_memory_bytes(CPU) == 500_000
    assert free_memory_bytes(torch.device("mps")) == 0
    monkeypatch.setattr(device_room, "MACHINE_MEMORY", tmp_path / "nowhere")
    assert free_memory_bytes(CPU) == 0
