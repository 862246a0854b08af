"""A folder of crops and a thin model: what galleries are made of here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import cskt
from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from tiny_run import write_backbone


@pytest.fixture(scope="session")
def encoder(tiny_backbone: Path) -> Encoder:
    return cskt.load(tiny_backbone, device="cpu", batch_size=4, num_workers=2)


@pytest.fixture(scope="session")
def clip_tiny() -> Encoder:
    """The model of the package, which commands in other processes can name."""
    return cskt.load("clip-tiny", device="cpu")


@pytest.fixture
def crops(dolls: Path, tmp_path: Path) -> Path:
    """Twelve crops in three folders, to be changed at will."""
    images = sorted(dolls.rglob("*.jpg"))[:12]
    for number, image in enumerate(images):
        target = tmp_path / "crops" / f"cam{number % 3}" / f"{number:02}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, target)
    return tmp_path / "crops"


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Return another model than `encoder`."""
    path = write_backbone(tmp_path_factory.mktemp("backbone") / "other.safetensors", seed=1)
    return cskt.load(path, device="cpu", num_workers=0)


@pytest.fixture
def gallery(tmp_path: Path, encoder: Encoder, tiny_backbone: Path, crops: Path) -> Iterator[Gallery]:
    """A gallery of those crops."""
    with Gallery.create(tmp_path / "gallery", encoder) as made:
        made.index(crops)
        yield made
