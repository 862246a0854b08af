"""Duration of commands: help, and a search in a gallery, with files in the system's cache.

    python -m benchmarks.startup

Every run is a new process. Processor seconds are reported besides elapsed seconds, which depend on other load. The
baseline of a search is importing torch and LanceDB.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
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
NOTHING, PARTS = "pass", "import torch, lancedb"
"""Programs that do the minimum of a command."""
SENTENCE = "a woman in a red coat"
HELP_SECONDS, SEARCH_SECONDS = 0.3, 3.0
"""Time limits."""
REPEATS = 5
NUM_CROPS = 20
"""Crops in the gallery of ViT-B/16; loading the model dominates the time of a search."""
SECONDS, PROCESSOR = "seconds", "processor seconds"


class Timed:
    """Elapsed and processor seconds of the runs of a command."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.command = command
        self.processor_seconds: list[float] = []

    def __call__(self) -> None:
        before = os.times()
        subprocess.run(self.command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        self.processor_seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )


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


def help_row(words: tuple[str, ...], repeats: int) -> Row:
    """Measure the help of a command."""
    return _row(" ".join(("cskt", *words)), Timed((*COMMAND, *words)), NOTHING, HELP_SECONDS, repeats)


def search_row(model: str, gallery: Path, repeats: int) -> Row:
    """Measure a search for one sentence."""
    ours = Timed((*COMMAND, "search", str(gallery), SENTENCE))
    return _row(f"cskt search, model {model}", ours, PARTS, SEARCH_SECONDS, repeats)


def _row(work: str, ours: Timed, least: str, allowed: float, repeats: int) -> Row:
    calls: dict[str, Callable[[], object]] = {"least": Timed((sys.executable, "-c", least)), "ours": ours}
    seconds = measure.medians(calls, repeats)
    return Row(
        work=work,
        variant="warm",
        baseline=f"python -c '{least}'",
        baseline_seconds=seconds["least"],
        seconds=seconds["ours"],
        facts={SECONDS: seconds["ours"], PROCESSOR: statistics.median(ours.processor_seconds[1:])},
        at_most={SECONDS: allowed},
    )


def rows(quick: bool = False) -> list[Row]:
    """Return one row per command; with `quick`, a small gallery, one run per command, and no ViT-B/16."""
    people, repeats = (4, 1) if quick else (120, REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        galleries = {"clip-tiny": build_demo_gallery(Path(folder), num_people=people)}
        if not quick:
            crops = sorted(Path(folder).glob("people/**/*.jpg"))[:NUM_CROPS]
            galleries["ViT-B/16"] = vit_b_16_gallery(Path(folder), crops)
        helps = [("--help",), ("search", "--help"), ("train", "--help")]
        return [
            *(help_row(words, repeats) for words in helps),
            *(search_row(model, gallery, repeats) for model, gallery in galleries.items()),
        ]


if __name__ == "__main__":
    measure.main(rows, __doc__)
