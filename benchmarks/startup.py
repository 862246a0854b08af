"""Processor time of commands: help, and a search in a gallery, with files in the system's cache.

    python -m benchmarks.startup

Every run is a new process, with compiled modules, as an installation has them. The baseline of a search is importing
torch and LanceDB. The last row is the search alone, without model and imports: with the vectors loaded for later
searches, as a service does, and without.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.measure import Row
from cskt.cli.demo_gallery import build_demo_gallery
from cskt.config import ClipArchitecture
from cskt.embed import load
from cskt.gallery.gallery import Gallery
from cskt.gallery.opening import open_store
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import save_backbone
from cskt.types import Hit

COMMAND = (sys.executable, "-m", "cskt")
NOTHING, PARTS, TORCH = "pass", "import torch, lancedb", "import torch"
"""Programs that do the minimum of a command."""
SENTENCE = "a woman in a red coat"
HELP_SECONDS, ABOVE_SECONDS = 0.3, 0.6
"""Most processor seconds of a help, and of a search above those of its baseline."""
REPEATS = 5
NUM_CROPS = 20
"""Crops in the gallery of ViT-B/16; loading the model dominates the time of a search."""
MANY_CROPS, MANY_ADDED = 100_000, 10_000
"""Crops in a gallery of clip-tiny with random vectors, and of one addition to it."""
THUMBNAIL = bytes(3000)
K = 10
PROCESSOR, ABOVE, ELAPSED = "processor seconds", "processor seconds above the baseline", "elapsed seconds"
"""Names of facts."""


class Command:
    """A command, run in a new process, with its elapsed seconds."""

    def __init__(self, words: tuple[str, ...], compiled: Path) -> None:
        self.words = words
        self.elapsed_seconds: list[float] = []
        self.environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def __call__(self) -> None:
        started = time.perf_counter()
        subprocess.run(
            self.words, check=True, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.elapsed_seconds.append(time.perf_counter() - started)


def vit_b_16_gallery(folder: Path, crops: list[Path]) -> Path:
    """Create a gallery of ViT-B/16 at 384 x 128 with random weights in half precision, as published."""
    architecture = ClipArchitecture(image_height=384, image_width=128)
    model = DualEncoder(architecture)
    model.initialise_backbone(torch.Generator().manual_seed(1))
    weights = folder / "vit-b-16.safetensors"
    save_backbone(weights, model.state_dict(), architecture, facts={}, half=True)
    home = folder / "vit-b-16"
    with Gallery.create(home, load(weights)) as gallery:
        gallery.add(crops, [crop.name for crop in crops])
    return home


def large_gallery(folder: Path, num_crops: int) -> Path:
    """Create a gallery of clip-tiny with random vectors."""
    home = folder / "large"
    encoder = load("clip-tiny", device="cpu")
    with Gallery.create(home, encoder) as gallery:
        store = open_store(home, gallery.manifest, create=False)
    for start in range(0, num_crops, MANY_ADDED):
        rows = range(start, min(start + MANY_ADDED, num_crops))
        vectors = random_vectors(len(rows), encoder.embed_dim, seed=start)
        facts = [CropRecord(f"{row:06}.jpg", 64, 128, 3000, 0, f"{row:064x}", False) for row in rows]
        store.add([Crop(*crop, THUMBNAIL) for crop in zip(facts, vectors, strict=True)])
    store.compact()
    store.close()
    return home


def random_vectors(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Return unit vectors [count, dim]."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def first_search_row(gallery: Path, repeats: int) -> Row:
    """Measure the first search of a gallery that was just opened, for one vector."""
    with Gallery.open(gallery, device="cpu") as opened:
        manifest, num_crops = opened.manifest, opened.count()
    query = torch.from_numpy(random_vectors(1, manifest.embed_dim, seed=1))
    found: dict[str, list[Hit]] = {}

    def search(name: str) -> None:
        store = open_store(gallery, manifest, create=False)
        found[name] = store.search(query, K)[0] if name == "loaded" else store.search_once(query[0], K)
        store.close()

    seconds = measure.medians({name: functools.partial(search, name) for name in ("loaded", "once")}, repeats)
    assert found["loaded"] == found["once"]
    return Row(
        work=f"first search, {num_crops:,} crops of {manifest.embed_dim} dimensions", variant="warm",
        baseline="loads the vectors for later searches", baseline_seconds=seconds["loaded"], seconds=seconds["once"],
    )  # fmt: skip


def help_row(words: tuple[str, ...], compiled: Path, repeats: int) -> Row:
    """Measure the help of a command."""
    return _row(" ".join(("cskt", *words)), words, NOTHING, compiled, repeats, limits={PROCESSOR: HELP_SECONDS})


def search_row(model: str, gallery: Path, compiled: Path, repeats: int) -> Row:
    """Measure a search for one sentence; the file of ViT-B/16 alone takes longer to read than all else."""
    limits = {ABOVE: ABOVE_SECONDS} if model == "clip-tiny" else {}
    words = ("search", str(gallery), SENTENCE)
    return _row(f"cskt search, model {model}", words, PARTS, compiled, repeats, limits=limits)


def _row(
    work: str, words: tuple[str, ...], least: str, compiled: Path, repeats: int, *, limits: dict[str, float]
) -> Row:
    ours = Command((*COMMAND, *words), compiled)
    calls: dict[str, Callable[[], object]] = {"least": Command((sys.executable, "-c", least), compiled), "ours": ours}
    if least == PARTS:
        calls[TORCH] = Command((sys.executable, "-c", TORCH), compiled)
    seconds = measure.medians(calls, repeats)
    facts: dict[str, float | int | str] = {
        PROCESSOR: seconds["ours"],
        ABOVE: seconds["ours"] - seconds["least"],
        ELAPSED: statistics.median(ours.elapsed_seconds[1:]),
    }
    if TORCH in seconds:
        facts[f"processor seconds of '{TORCH}'"] = seconds[TORCH]
    return Row(
        work=work, variant="warm", baseline=f"python -c '{least}'", baseline_seconds=seconds["least"],
        seconds=seconds["ours"], facts=facts, at_most=limits,
    )  # fmt: skip


def rows(quick: bool = False) -> list[Row]:
    """Return one row per command; with `quick`, small galleries, one run per command, and no ViT-B/16."""
    people, crops_of_large, repeats = (4, 1000, 1) if quick else (120, MANY_CROPS, REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        galleries = {"clip-tiny": build_demo_gallery(Path(folder), num_people=people)}
        if not quick:
            crops = sorted(Path(folder).glob("people/**/*.jpg"))[:NUM_CROPS]
            galleries["ViT-B/16"] = vit_b_16_gallery(Path(folder), crops)
        large = large_gallery(Path(folder), crops_of_large)
        galleries[f"clip-tiny, {crops_of_large:,} crops"] = large
        helps = [("--help",), ("search", "--help"), ("train", "--help")]
        compiled = Path(folder) / "compiled"
        return [
            *(help_row(words, compiled, repeats) for words in helps),
            *(search_row(model, gallery, compiled, repeats) for model, gallery in galleries.items()),
            first_search_row(large, repeats),
        ]


if __name__ == "__main__":
    measure.main(rows, __doc__)
