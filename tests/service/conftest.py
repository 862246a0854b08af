"""A gallery of paper dolls, and the service over it, asked in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from doll_service import ADDRESS, PLENTY, Ask, client_of, fill, name_of
from starlette.testclient import TestClient

from cskt.data.paperdoll import make_dataset
from cskt.embed import Encoder, load
from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.settings import ServiceSettings


@pytest.fixture(scope="session")
def encoder(tiny_backbone: Path) -> Encoder:
    return load(tiny_backbone, device="cpu", num_workers=0)


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 crops, `c0/000.jpg` to `c3/039.jpg`."""
    root = tmp_path_factory.mktemp("drawn")
    make_dataset(root, ids={"train": 20}, images_per_id=2, seed=3)
    folder = tmp_path_factory.mktemp("crops")
    for number, path in enumerate(sorted(root.rglob("*.jpg"))[:40]):
        place = folder / name_of(number)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    return folder


@pytest.fixture(scope="session")
def gallery(
    tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, tiny_backbone: Path, crops: Path
) -> Iterator[Gallery]:
    """All 40 crops; no test changes it."""
    with fill(tmp_path_factory.mktemp("galleries") / "dolls", encoder, tiny_backbone, crops) as filled:
        yield filled


@pytest.fixture(scope="session")
def four_crops(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, tiny_backbone: Path, crops: Path) -> Path:
    """A gallery of four crops and, in its folder, `images`; to be copied."""
    folder = tmp_path_factory.mktemp("galleries") / "four"
    drawn = tmp_path_factory.mktemp("drawn")
    for number in range(4):
        (drawn / name_of(number)).parent.mkdir()
        shutil.copyfile(crops / name_of(number), drawn / name_of(number))
    fill(folder, encoder, tiny_backbone, drawn, within=True).close()
    return folder


@pytest.fixture
def own_gallery(tmp_path: Path, encoder: Encoder, four_crops: Path) -> Iterator[Gallery]:
    """Four crops in a gallery, whose folder holds them in `images`, that the test may spoil."""
    shutil.copytree(four_crops, tmp_path / "own")
    with Gallery.open(tmp_path / "own", encoder=encoder) as opened:
        yield opened


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Starts services; their audit log is `audit.jsonl` in the test's folder.

    Their first search is over: it could be in one batch with that of a test, whose scores then end in other digits.
    """
    with ExitStack() as running:

        def start(gallery: Gallery, address: str = ADDRESS, *, is_ready: bool = True, **changes: Any) -> TestClient:
            settings = ServiceSettings(**{"audit_log": tmp_path / "audit.jsonl", **PLENTY, **changes})
            app = create_app(gallery, settings)
            client = running.enter_context(client_of(app, address))
            if is_ready:
                wait([app.state.service.worker.ready])
            return client

        yield start


@pytest.fixture
def noted(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The lines of the audit log so far."""

    def read() -> list[dict[str, Any]]:
        lines = (tmp_path / "audit.jsonl").read_text(encoding="ascii").splitlines()
        return [json.loads(line) for line in lines]

    return read
