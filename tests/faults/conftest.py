"""Every test of faults computes in one thread, as the programs that it starts do."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order, for comparisons bit by bit."""
