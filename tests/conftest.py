"""Fixtures for all tests: a small random backbone and a small data set of generated pedestrians."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from cskt import plugins
from cskt.data.paperdoll import make_dataset
from fault_tries import record_failure
from tiny_run import write_backbone

# A shell ignores SIGINT for programs that it starts in the background, and processes inherit that. Tests that interrupt
# a process need the default.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines and no random examples, so that a test passes or fails alike on every machine and in every run.
COMMON = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", COMMON)
settings.register_profile("fast", COMMON, max_examples=25)
settings.load_profile("thorough")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record a failed test for the table of faults, once if there are several test processes."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        record_failure(report.nodeid)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the weights of a small random CLIP."""
    return write_backbone(tmp_path_factory.mktemp("backbone") / "tiny.safetensors")


@pytest.fixture(scope="session")
def dolls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a CUHK-PEDES of generated pedestrians: 6 to train on, 3 for val and 3 for test, 2 images each."""
    root = tmp_path_factory.mktemp("dolls")
    make_dataset(root, ids={"train": 6, "val": 3, "test": 3}, images_per_id=2, seed=1)
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that sums are taken in the same order on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def forgets_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without plug-ins; what they register is forgotten afterwards."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    yield
    for plugin in plugins.loaded_plugins():
        for registry in plugins.REGISTRIES.values():
            registry.forget(plugin)
