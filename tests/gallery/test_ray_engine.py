"""Encoding on a Ray cluster of this machine: the local engine's gallery, and nothing lost when workers are killed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from cskt.embed import Encoder
from cskt.gallery import indexing
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import ModelSource
from cskt.gallery.ray_engine import ClusterOptions, RayEngine, connected
from fault_tries import chance, record, tries

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Ray on Windows is in beta"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

OPTIONS = ClusterOptions(num_workers=2)
NUM_CROPS = 300


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with connected(OPTIONS):
        yield


@pytest.fixture
def model(tiny_backbone: Path) -> ModelSource:
    return ModelSource(str(tiny_backbone), precision="fp32")


def engine_for(model: ModelSource, encoder: Encoder, folder: Path | None, batch_size: int = 4) -> RayEngine:
    return RayEngine(
        model, encoder.fingerprint, folder, OPTIONS, device="cpu", batch_size=batch_size, num_workers=1
    )  # fmt: skip


def contents(gallery: Gallery) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> digest of the file, vector."""
    store = gallery._contents.store
    files = store.files()
    found = store.vectors(list(files))
    return {name: (state.sha256, found[name]) for name, state in files.items()}


def test_the_gallery_is_that_of_the_local_engine(
    gallery: Gallery, crops: Path, encoder: Encoder, model: ModelSource, tmp_path: Path
) -> None:
    (crops / "bad.jpg").write_bytes(b"no image")
    with Gallery.create(tmp_path / "ray", encoder, model) as other:
        report = other.index(crops, engine=engine_for(model, encoder, crops))
        assert (report.added, [name for name, _ in report.unreadable]) == (12, ["bad.jpg"])
        expected, found = contents(gallery), contents(other)
        assert found.keys() == expected.keys()
        for name, (digest, vector) in found.items():
            assert digest == expected[name][0] and np.allclose(vector, expected[name][1], atol=1e-6)
        again = other.index(crops, engine=engine_for(model, encoder, crops))
        assert (again.added, again.unchanged) == (0, 12)


def test_workers_with_another_model_or_without_the_folder_are_refused(
    encoder: Encoder, model: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="a worker loads another model than the gallery's"):
        RayEngine(model, "another", None, OPTIONS, device="cpu", num_workers=1)
    with pytest.raises(ValueError, match=r"node \S+ does not see .*/none; every node needs it at that path"):
        engine_for(model, encoder, tmp_path / "none")


def test_no_cluster_at_an_address_is_one_line() -> None:
    with pytest.raises(ValueError, match="no Ray cluster at 127.0.0.1:1: "), connected(ClusterOptions("127.0.0.1:1")):
        pass


def workers() -> list[psutil.Process]:
    """The processes of the actors."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ray::_Worker" in " ".join(child.cmdline() or [child.name()])]


@pytest.mark.timeout(300)
def test_killed_workers_lose_and_double_nothing(
    crops: Path, encoder: Encoder, model: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", 0.05)
    random, num_tries, many = chance("ray"), tries(2, 10), tmp_path / "many"
    many.mkdir()
    drawn = [Image.open(path).resize((24, 56)) for path in sorted(crops.rglob("*.jpg"))]
    for number in range(NUM_CROPS):
        image = drawn[number % len(drawn)].copy()
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(many / f"{number:03}.png")
    num_killed = 0
    for attempt in range(num_tries):
        over = threading.Event()

        def kill(over: threading.Event = over) -> None:
            nonlocal num_killed
            while not over.wait(random.uniform(0.05, 0.3)):
                for victim in workers()[:1]:
                    victim.send_signal(signal.SIGKILL)
                    num_killed += 1
                    over.wait(3)  # until Ray has started another

        with Gallery.create(tmp_path / f"gallery-{attempt}", encoder, model) as gallery:
            engine = engine_for(model, encoder, many, batch_size=2)
            killer = threading.Thread(target=kill)
            killer.start()
            try:
                report = gallery.index(many, engine=engine)
            finally:
                over.set()
                killer.join()
            assert (report.added, report.replaced, report.unreadable) == (NUM_CROPS, 0, [])
            assert len(contents(gallery)) == gallery.count() == NUM_CROPS
            if attempt == 0:
                with Gallery.create(tmp_path / "local", encoder, model) as local:
                    local.index(many)
                    for name, (digest, vector) in contents(local).items():
                        found = contents(gallery)[name] if name == "000.png" else None
                        assert found is None or (found[0] == digest and np.allclose(found[1], vector, atol=1e-6))
    assert num_killed >= num_tries
    record("Ray worker killed while indexing", tried=num_killed, lost=0, test="tests/gallery/test_ray_engine.py")
