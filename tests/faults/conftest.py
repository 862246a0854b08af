"""Every test of faults computes in one thread, as programs started by it do; a gallery; a service over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from service_process import Served


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order, for comparisons bit by bit."""


@pytest.fixture(scope="session")
def filled_gallery(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, dolls: Path) -> Path:
    """The folder of a gallery. Tests that change it must copy it."""
    from service_process import make_gallery  # takes seconds, which most tests do not need

    return make_gallery(tmp_path_factory.mktemp("filled") / "gallery", tiny_backbone, dolls)


@pytest.fixture(scope="session")
def attacked(filled_gallery: Path) -> Iterator[Served]:
    """A service with short limits, which no test may hurt."""
    from attacked_service import SETTINGS
    from service_process import Served

    with Served(filled_gallery, settings=SETTINGS) as service:
        yield service
        assert service.stop() == 0
