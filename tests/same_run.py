"""Comparison of two runs, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cskt.model.io.tensors import load_plain
from cskt.training.events import read_events

TIMINGS = ("seconds", "pairs_per_second", "waiting_share", "exchange_share", "peak_memory_bytes")
"""Values of events that depend on the machine."""


def story(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run without times and memory."""
    return [{key: value for key, value in event.items() if key not in TIMINGS} for event in read_events(folder)]


def assert_equal(found: Any, expected: Any, place: str = "last.pt") -> None:
    """Check that nested values are equal, tensors bit by bit."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}: {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{place}: {index}")
    else:
        assert found == expected, place


def assert_same_run(found: Path, expected: Path) -> None:
    assert story(found) == story(expected)
    assert (found / "best.safetensors").read_bytes() == (expected / "best.safetensors").read_bytes()
    ours, theirs = load_plain(found / "last.pt"), load_plain(expected / "last.pt")
    assert ours["progress"].pop("seconds") > 0 and theirs["progress"].pop("seconds") > 0
    assert_equal(ours, theirs)
