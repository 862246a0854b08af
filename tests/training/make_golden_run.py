"""Writes `golden_run.json`: the losses of three training steps, and the size of what they learned.

    python tests/training/make_golden_run.py

They prove that a refactor moved no number. Run this again only for a change that is meant to move them (another
initialisation, augmentation, order of the batches, optimiser rule), and say so in that change. The images are random
pixels and the captions fixed words, so that the generator of pedestrians can be improved without a new golden run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from cskt.config import RunConfig
from cskt.model.io.native import read_method
from cskt.training.events import read_events
from cskt.training.loop import train
from tiny_run import HEIGHT, WIDTH, quick_config, write_backbone

GOLDEN = Path(__file__).parent / "golden_run.json"
GARMENTS = ("red coat", "blue jeans and a grey cap", "striped dress", "black suit", "yellow raincoat", "green hoodie")
RECIPES: dict[str, dict[str, Any]] = {
    "cskt": {},
    "cskt-reference": {"loss.weights": {"sdm": 1.0, "id": 0.5, "cmpm": 0.1, "triplet": 0.5}},
    "finetune": {"loss.weights": {"itc": 1.0}, "optim.lr": 1e-3, "optim.eps": 1e-3, "optim.clip_grad_norm": 1.0},
}
"""Golden recipe -> what is changed in it. In `finetune` eps is large because some of CLIP's gradients are zero but for
rounding (the bias of an attention's keys), and Adam would magnify that rounding to whole steps."""


def write_data(root: Path) -> Path:
    """Six people with two images of random pixels each to train on, and two as val."""
    random = np.random.default_rng(7)
    for split, first_pid, num_people in (("train", 0, 6), ("val", 6, 2)):
        lines = []
        for index in range(2 * num_people):
            name = f"{split}_{index}.png"
            Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(root / name)
            pid = first_pid + index // 2
            caption = f"A person in a {GARMENTS[index // 2]}, seen from {'the front' if index % 2 else 'behind'}."
            lines.append(json.dumps({"image": name, "pid": pid, "captions": [caption]}))
        (root / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def golden_config(recipe: str, folder: Path) -> RunConfig:
    """A golden recipe over data and backbone written into `folder`."""
    changes = RECIPES[recipe] | {"data.dataset": "jsonl", "data.batch_size": 4}
    return quick_config(write_data(folder), write_backbone(folder / "backbone.safetensors"), recipe, changes)


def golden_run(recipe: str, folder: Path) -> dict[str, Any]:
    """Train for three steps in `folder`; losses by step and the norm of the trained tensors."""
    result = train(golden_config(recipe, folder), folder / "run")
    steps = [event["losses"] for event in read_events(result.folder) if event["event"] == "step"]
    learned = read_method(result.folder / "best.safetensors").tensors.values()
    return {"losses": steps, "norm": sum(float(value.double().square().sum()) for value in learned) ** 0.5}


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    runs = {}
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            runs[recipe] = golden_run(recipe, Path(folder))
    GOLDEN.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
