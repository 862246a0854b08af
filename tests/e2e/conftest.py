"""One small data set in every layout and one trained run, all made by the commands that a user would type."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import contents, done

from cskt.evaluation.results import EVALUATIONS
from tiny_run import HEIGHT, WIDTH

IDS = "--train-ids 8 --val-ids 4 --test-ids 6 --images-per-id 2"
QUICK = (
    "--device cpu --depth 2 --length 2 --lr 1e-2 --warmup-epochs 0 --data.batch_size 8 --num-workers 2 --num-epochs 2"
    f" --image-height {HEIGHT} --image-width {WIDTH}"
)
"""Flags that make any recipe end within a second."""


@pytest.fixture(scope="session", autouse=True)
def _on_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One arithmetic thread, so that two runs give the same bytes; an empty cache, so that no weights are available."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSKT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds CUHK-PEDES, ICFG-PEDES and RSTPReid, as far as their formats go."""
    folder = tmp_path_factory.mktemp("root")
    for seed, layout in enumerate(("cuhk-pedes", "icfg-pedes", "rstpreid"), start=1):
        done(f"cskt data make {folder} --layout {layout} {IDS} --seed {seed}")
    return folder


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one's own, in JSON lines."""
    folder = tmp_path_factory.mktemp("own")
    done(f"cskt data make {folder} --layout jsonl --domain source {IDS} --seed 4")
    return folder


@pytest.fixture(scope="session")
def train_command(root: Path, tiny_backbone: Path) -> str:
    """A short training on CUHK-PEDES, to be followed by ` --output FOLDER`."""
    return f"cskt train --config cskt --root {root} --backbone.name {tiny_backbone} {QUICK}"


@pytest.fixture(scope="session")
def run(train_command: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that training; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done(f"{train_command} --output {folder}")
    return folder


@pytest.fixture
def nothing_is_lost(run: Path, root: Path) -> Iterator[None]:
    """The trained run and the data sets end the test as they began it, byte for byte, but for results kept anew."""

    def made() -> dict[Path, str]:
        found = contents(run) | contents(root)
        return {path: digest for path, digest in found.items() if EVALUATIONS not in path.parts}

    before = made()
    yield
    assert made() == before
