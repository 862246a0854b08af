"""Inexact options: their cost in R1 and mAP on a trained run, and the speed of int8 at ViT-B/16.

    python -m benchmarks.inexact                   # trains what `cskt demo` trains, then measures; minutes
    python -m benchmarks.inexact --run demo/cuhk-pedes/...

Every option ranks the same captions and images as float32, so differences are paired; p is that of a permutation test
over people (`cskt.evaluation.statistics.paired_p_value`). Speed is measured with random weights.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.naive import NaiveEncoder
from benchmarks.towers import (
    BASELINE,
    NUM_IMAGES,
    NUM_SENTENCES,
    THIN,
    VIT_B_16,
    cskt_model,
    draw_sentences,
    encode_naively,
    encoder_of,
)
from cskt import load, metrics
from cskt.config import load_config
from cskt.config.file_names import CONFIG
from cskt.data.datasets import read_dataset
from cskt.data.images import normalise
from cskt.data.paperdoll import make_dataset
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.embed.exported import ExportedEncoder, load_exported
from cskt.evaluation.evaluate import SplitFeatures, encode_split
from cskt.evaluation.statistics import paired_p_value
from cskt.export.folder import NUM_CALIBRATION, calibration_pixels, spread, write_folder
from cskt.training.loop import train
from cskt.types import RetrievalMetrics

NUM_RESCORED = 100
"""Number of best images per query that are re-scored with their exact vectors."""
REPEATS = 5
IMAGE_TARGET = 3.5
"""Required ratio of int8 images, on a CPU with VNNI."""


@dataclass(frozen=True)
class Cost:
    """One option compared with float32, text to image; fractions in [0, 1], differences in percentage points."""

    option: str
    r1: float
    mean_ap: float
    r1_points: float
    r1_p: float
    mean_ap_points: float
    mean_ap_p: float
    smallest_cosine: float
    """Smallest cosine between a vector and its exact one; for a rounded gallery, over its images."""

    @property
    def summary(self) -> str:
        """All figures in one line."""
        return (
            f"demo run: R1 {100 * self.r1:.2f} ({self.r1_points:+.2f}, p {self.r1_p:.3f}), mAP"
            f" {100 * self.mean_ap:.2f} ({self.mean_ap_points:+.2f}, p {self.mean_ap_p:.3f}), smallest cosine"
            f" {self.smallest_cosine:.6f}"
        )


def costs_of(run: Path, folder: Path) -> list[Cost]:
    """Measure every option on the test split of a run.

    Args:
        run: a run folder.
        folder: an empty folder for the int8 exports.
    """
    config = load_config(run / CONFIG)
    splits = read_dataset(config.data.dataset, Path(config.data.root))
    test = splits["test"]
    source = load(run, device="cpu", precision="fp32")
    exact = encode_split(source, test)
    options: dict[str, Callable[[], Encoder]] = {
        "bf16 towers": lambda: load(run, device="cpu", precision="bf16"),
        "int8 image tower (OpenVINO)": lambda: int8_of(source, folder / "image", splits["train"]),
        "int8 towers, both (OpenVINO)": lambda: int8_of(source, folder / "both", splits["train"], text=True),
    }
    if shutil.which("g++"):
        options["torch.compile"] = lambda: load(run, device="cpu", precision="fp32", compile=True)
    rankings = {"float32": (ranked(exact, exact.image_features), exact)}
    for name, make in options.items():
        features = encode_split(make(), test)
        rankings[name] = ranked(features, features.image_features), features
    for name, rounded in rounded_vectors(exact.image_features).items():
        features = SplitFeatures(rounded, exact.text_features, exact.image_pids, exact.caption_pids)
        rankings[f"{name} gallery"] = ranked(features, rounded), features
        rankings[f"{name} gallery, best {NUM_RESCORED} exact"] = rescored(exact, rounded), features
    return [cost(name, found, rankings["float32"][0], features, exact) for name, (found, features) in rankings.items()]


def int8_of(source: Encoder, folder: Path, split: Split, *, text: bool = False) -> ExportedEncoder:
    """Return the encoder with its image tower, or both towers, in int8, calibrated on a split."""
    folder.mkdir()
    write_folder(
        source, folder, "openvino",
        calibration_images=calibration_pixels(split.image_paths, source),
        calibration_captions=spread(split.captions, NUM_CALIBRATION) if text else (),
    )  # fmt: skip
    return load_exported(folder)


def rounded_vectors(vectors: Tensor) -> dict[str, Tensor]:
    """Return vectors [G, D] float32 rounded as a smaller gallery would store them; int8 has a scale per vector."""
    scale = vectors.abs().amax(dim=1, keepdim=True) / 127
    return {
        "bfloat16": vectors.bfloat16().float(),
        "float16": vectors.half().float(),
        "int8": (vectors / scale).round() * scale,
    }


def ranked(features: SplitFeatures, gallery: Tensor) -> RetrievalMetrics:
    """Return the metrics of captions against a gallery."""
    return metrics.from_features(features.text_features, gallery, features.caption_pids, features.image_pids)


def rescored(exact: SplitFeatures, rounded: Tensor) -> RetrievalMetrics:
    """Rank by rounded vectors, then re-rank the best of each query by exact ones."""
    similarity = exact.text_features @ rounded.T
    best = similarity.topk(min(NUM_RESCORED, len(rounded))).indices
    again = (exact.text_features @ exact.image_features.T).gather(1, best)
    above_all = 4.0  # cosines span 2
    return metrics.from_similarity(similarity.scatter(1, best, again + above_all), exact.caption_pids, exact.image_pids)


def cost(
    name: str, found: RetrievalMetrics, reference: RetrievalMetrics, features: SplitFeatures, exact: SplitFeatures
) -> Cost:
    """Compare the results of an option with those of float32."""
    ours, theirs = found.per_query, reference.per_query
    people = theirs.query_ids.numpy()
    at_first = [(of.first_right_rank == 1).double().numpy() for of in (ours, theirs)]
    precision = [of.average_precision.numpy() for of in (ours, theirs)]
    cosines = [
        float(F.cosine_similarity(one, other).min())
        for one, other in (
            (features.image_features, exact.image_features), (features.text_features, exact.text_features),
        )
    ]  # fmt: skip
    return Cost(
        option=name,
        r1=found.r1,
        mean_ap=found.mean_ap,
        r1_points=100 * (found.r1 - reference.r1),
        r1_p=paired_p_value(*at_first, people),
        mean_ap_points=100 * (found.mean_ap - reference.mean_ap),
        mean_ap_p=paired_p_value(*precision, people),
        smallest_cosine=min(cosines),
    )


def demo_run(folder: Path, quick: bool) -> Path:
    """Train a run as `cskt demo` does; with `quick`, on fewer people and for one epoch."""
    ids = {"train": 40, "val": 10, "test": 10} if quick else {"train": 500, "val": 50, "test": 100}
    make_dataset(folder / "data", domain="target", ids=ids, seed=1)
    overrides = {"data.root": str(folder / "data"), "output_dir": str(folder), "device": "cpu"}
    return train(load_config("demo", overrides | ({"loop.num_epochs": 1} if quick else {}))).folder


def speed_rows(quick: bool, folder: Path, costs: Mapping[str, str]) -> list[Row]:
    """Measure int8 compared with the released code in float32; the last row has the costs of all options."""
    model = cskt_model(THIN if quick else VIT_B_16).requires_grad_(False)
    height, width = model.architecture.image_height, model.architecture.image_width
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randint(0, 256, (NUM_IMAGES + 32, 3, height // 16, width // 16), generator=generator)
    pixels = F.interpolate(coarse.float(), (height, width), mode="bilinear").to(torch.uint8)
    exact, sentences = encoder_of(model, "fp32"), draw_sentences(NUM_SENTENCES[-1] + 32)
    write_folder(
        exact, folder, "openvino",
        calibration_images=list(pixels[NUM_IMAGES:]), calibration_captions=sentences[NUM_SENTENCES[-1]:],
    )  # fmt: skip
    int8, naive = load_exported(folder), NaiveEncoder.of(model)
    pixels, sentences = pixels[:NUM_IMAGES], sentences[: NUM_SENTENCES[-1]]
    ids = exact.tokenizer(sentences)
    runs: dict[str, tuple[str, Callable[[], Tensor], Callable[[], Tensor], float | None]] = {
        "image": (
            f"image encode, batch {NUM_IMAGES}, {height} x {width}",
            lambda: encode_naively(naive.encode_image, normalise(pixels)),
            lambda: int8.encode_image(pixels),
            IMAGE_TARGET,
        ),
        "text": (
            f"text encode, {len(sentences)} sentences",
            lambda: encode_naively(naive.encode_text, ids),
            lambda: int8.encode_text(sentences),
            None,
        ),
    }

    found = []
    for tower, (work, naively, ours, target) in runs.items():
        seconds = measure.medians({"naive": naively, "int8": ours}, REPEATS)
        cosine = float(F.cosine_similarity(ours(), naively()).min())
        found.append(
            Row(
                work, "int8 (OpenVINO)", BASELINE, seconds["naive"], seconds["int8"], target,
                {"smallest cosine, random weights": cosine, **(costs if tower == "text" else {})},
            )
        )  # fmt: skip
    return found


def rows(quick: bool = False) -> list[Row]:
    """Return the speed of int8 and its cost on a run trained for this."""
    return measured(quick, None)[1]


def measured(quick: bool, run: Path | None) -> tuple[list[Cost], list[Row]]:
    """Return the costs on a run (a new one if None) and the rows of the table of targets."""
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch) / name for name in ("costs", "speed")]
        for place in places:
            place.mkdir()
        costs = costs_of(run or demo_run(Path(scratch) / "demo", quick), places[0])
        return costs, speed_rows(quick, places[1], {cost.option: cost.summary for cost in costs})


def cost_table(costs: list[Cost]) -> str:
    """Format the costs as aligned text."""
    head = f"{'option':<36}{'R1':>7}{'diff':>7}{'p':>7}{'mAP':>8}{'diff':>7}{'p':>7}{'smallest cosine':>17}"
    return "\n".join(
        [head]
        + [
            f"{of.option:<36}{100 * of.r1:>7.2f}{of.r1_points:>+7.2f}{of.r1_p:>7.3f}{100 * of.mean_ap:>8.2f}"
            f"{of.mean_ap_points:>+7.2f}{of.mean_ap_p:>7.3f}{of.smallest_cosine:>17.6f}"
            for of in costs
        ]
    )


def main() -> None:
    """Print both tables and write them as JSON."""
    parser = measure.parser(__doc__)
    parser.add_argument("--run", type=Path, help="run folder (default: one is trained as `cskt demo` does)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(args.threads)
    before = measure.machine()
    costs, speed = measured(args.quick, args.run)
    print(cost_table(costs), end="\n\n")
    measure.show(speed, args, before)
    if args.json:
        content = json.loads(args.json.read_text(encoding="utf-8")) | {"costs": [asdict(of) for of in costs]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
