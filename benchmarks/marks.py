"""Change of R1 by training on marked hits, on generated pedestrians: the table of docs/marks.md.

    python -m benchmarks.marks             # three seeds
    python -m benchmarks.marks --seeds 1

For each seed a model is trained with the recipe `demo`. It searches a gallery of other people with one sentence each,
and the right ones of the first ten hits are marked. The recipe `adapt` continues the model on the first marks. R1 is
measured on the test split of the first model's data, and on all captions of the gallery, the marked people included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

import cskt
from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import make_dataset
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.evaluation.evaluate import encode_split, evaluate
from cskt.gallery.marks import Mark, training_records

GALLERY_SEED = 100
"""Added to the seed of the first model's people for the people of the gallery."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    first_people: int = 80
    """People of the train split of the first model, and of its test split."""
    val_people: int = 12
    gallery_people: int = 60
    images_per_person: int = 3
    first_epochs: int = 5
    hits: int = 10
    """First hits of each sentence that are marked."""
    marks: tuple[int, ...] = (12, 60)
    """Numbers of right marks that are trained on."""


class Scores(NamedTuple):
    """R1 of one model, a fraction."""

    first_data: float
    gallery: float


def measure_seed(seed: int, folder: Path, sizes: Sizes) -> dict[int, Scores]:
    """Return number of marks -> R1 of the model that was trained on them; 0 is the first model."""
    first, gallery = _make_data(seed, folder, sizes)
    common = {"seed": seed, "device": "cpu", "data.num_workers": 0, "loop.evaluate_before": False}
    demo = common | {"data.root": str(folder / "first"), "data.batch_size": 32, "loop.num_epochs": sizes.first_epochs}
    cskt.train(cskt.load_config("demo", demo), folder / "model")
    encoder = cskt.load(folder / "model", device="cpu")
    marks = mark_hits(encoder, gallery, folder / "gallery", sizes.hits)
    scores = {0: _score(encoder, first, gallery)}
    for num_marks in sizes.marks:
        if num_marks > len(marks):
            raise SystemExit(f"seed {seed}: only {len(marks)} right hits, {num_marks} are needed")
        root = _marked_folder(folder, marks[:num_marks])
        adapt = common | {"init_from": str(folder / "model"), "data.root": str(root)}
        cskt.train(cskt.load_config("adapt", adapt), folder / f"adapted-{num_marks}")
        scores[num_marks] = _score(cskt.load(folder / f"adapted-{num_marks}", device="cpu"), first, gallery)
    return scores


def mark_hits(encoder: Encoder, gallery: Split, folder: Path, num_hits: int) -> list[Mark]:
    """Search with the first caption of each person, and return the right ones of the first hits, in that order."""
    features = encode_split(encoder, gallery)
    similarity = features.text_features @ features.image_features.T  # [captions, images]
    first_caption: dict[int, int] = {}
    for caption, pid in enumerate(gallery.caption_pids):
        first_caption.setdefault(pid, caption)
    marks = []
    for pid, caption in first_caption.items():
        for image in similarity[caption].topk(min(num_hits, len(gallery.records))).indices.tolist():
            if gallery.image_pids[image] == pid:
                name = gallery.image_paths[image].relative_to(folder).as_posix()
                marks.append(Mark(gallery.captions[caption], name, right=True))
    return marks


def table(scores: dict[int, dict[int, Scores]]) -> str:
    """Return seed -> `measure_seed` as a Markdown table in percent."""
    seeds = ", ".join(map(str, scores))
    lines = [f"| marks | first data: seeds {seeds} | mean | gallery: seeds {seeds} | mean |", "|---|---|---|---|---|"]
    for num_marks in next(iter(scores.values())):
        cells = [str(num_marks or "none")]
        for name in Scores._fields:
            values = [100 * getattr(of_seed[num_marks], name) for of_seed in scores.values()]
            cells += [", ".join(f"{value:.2f}" for value in values), f"{statistics.mean(values):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _make_data(seed: int, folder: Path, sizes: Sizes) -> tuple[Split, Split]:
    """Draw the people of the first model and of the gallery; return the test split and the gallery."""
    people, images = sizes.first_people, sizes.images_per_person
    make_dataset(
        folder / "first", layout="cuhk-pedes", domain="target", images_per_id=images, seed=seed,
        ids={"train": people, "val": sizes.val_people, "test": people},
    )  # fmt: skip
    make_dataset(
        folder / "gallery", layout="jsonl", domain="target", images_per_id=images, seed=seed + GALLERY_SEED,
        ids={"test": sizes.gallery_people},
    )  # fmt: skip
    first = read_dataset("cuhk-pedes", folder / "first")["test"]
    return first, read_dataset("jsonl", folder / "gallery")["test"]


def _marked_folder(folder: Path, marks: list[Mark]) -> Path:
    """Return a data set of the marks, as the search page exports them, over the images of the gallery."""
    root = folder / f"marks-{len(marks)}"
    root.mkdir()
    (root / "imgs").symlink_to((folder / "gallery" / "imgs").resolve())
    lines = [json.dumps(record) for record in training_records(marks)]
    (root / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def _score(encoder: Encoder, first: Split, gallery: Split) -> Scores:
    return Scores(evaluate(encoder, first).t2i.r1, evaluate(encoder, gallery).t2i.r1)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scores = {}
    for seed in args.seeds:
        print(f"measuring seed {seed} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            scores[seed] = measure_seed(seed, Path(folder), Sizes())
    print(table(scores))


if __name__ == "__main__":
    main()
