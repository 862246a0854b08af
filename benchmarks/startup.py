"""Processor time of commands: help, and a search in a gallery, with files in the system's cache.

    python -m benchmarks.startup

Every run is a new process, with compiled modules, as an installation has them. The baseline of a search is importing
torch and LanceDB.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.measure import Row
from cskt.cli.demo_gallery import build_demo_gallery
from cskt.config import ClipArchitecture
from cskt.embed import load
from cskt.gallery.gallery import Gallery
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import save_backbone

COMMAND = (sys.executable, "-m", "cskt")
NOTHING, PARTS, TORCH = "pass", "import torch, lancedb", "import torch"
"""Programs that do the minimum of a command."""
SENTENCE = "a woman in a red coat"
HELP_SECONDS, ABOVE_SECONDS = 0.3, 0.6
"""Most processor seconds of a help, and of a search above those of its baseline."""
REPEATS = 5
NUM_CROPS = 20
"""Crops in the gallery of ViT-B/16; loading the model dominates the time of a search."""
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
    """Return one row per command; with `quick`, a small gallery, one run per command, and no ViT-B/16."""
    people, repeats = (4, 1) if quick else (120, REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        galleries = {"clip-tiny": build_demo_gallery(Path(folder), num_people=people)}
        if not quick:
            crops = sorted(Path(folder).glob("people/**/*.jpg"))[:NUM_CROPS]
            galleries["ViT-B/16"] = vit_b_16_gallery(Path(folder), crops)
        helps = [("--help",), ("search", "--help"), ("train", "--help")]
        compiled = Path(folder) / "compiled"
        return [
            *(help_row(words, compiled, repeats) for words in helps),
            *(search_row(model, gallery, compiled, repeats) for model, gallery in galleries.items()),
        ]


if __name__ == "__main__":
    measure.main(rows, __doc__)
