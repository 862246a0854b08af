"""Cost of indexing (digests, thumbnails, commits) compared with encoding the same image files.

    python -m benchmarks.indexing                    # clip-tiny, where overheads have the largest share
    python -m benchmarks.indexing --model vit-b-16   # ViT-B/16 at 384 x 128 with random weights
    python -m benchmarks.indexing --ray              # also with one worker of a Ray cluster on this machine

Both decode every file once and alternate; medians are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cskt import load
from cskt.config import ClipArchitecture
from cskt.data.paperdoll import make_dataset
from cskt.data.tokenizer import Tokenizer
from cskt.embed import EncodeOptions, Encoder, ModelSource
from cskt.gallery.engines.ray import RayEngine
from cskt.gallery.engines.ray_cluster import connected
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.encoding import Pending
from cskt.model.dual_encoder import DualEncoder


def main() -> None:
    """Print images per second of both, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("clip-tiny", "vit-b-16"), default="clip-tiny")
    parser.add_argument("--people", type=int, default=500, help="drawn four times each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="clip-tiny only: workers load the model by its name")
    args = parser.parse_args()
    if args.ray and args.model != "clip-tiny":
        parser.error("--ray goes with clip-tiny")
    with connected(None) if args.ray else contextlib.nullcontext():  # before a gallery is opened
        print(json.dumps(measure(args), indent=1))


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Results that `main` prints."""
    torch.set_num_threads(args.threads)
    encoder = load("clip-tiny", device="cpu") if args.model == "clip-tiny" else random_vit()
    with tempfile.TemporaryDirectory() as scratch:
        drawn = make_dataset(
            Path(scratch) / "people", layout="jsonl", domain="target", ids={"test": args.people}, seed=9
        )
        crops = sorted((drawn / "imgs").rglob("*.jpg"))
        encoder.encode_image(crops[:32])
        bare, indexed, on_ray = [], [], []
        engine = None
        if args.ray:
            model = ModelSource("clip-tiny", precision=encoder.precision)
            engine = RayEngine(model, encoder.fingerprint, drawn / "imgs", options=EncodeOptions("cpu"))
            warm_up(engine, crops[0])
        for number in range(args.rounds):
            started = time.perf_counter()
            encoder.encode_image(crops)
            bare.append(time.perf_counter() - started)
            with Gallery.create(Path(scratch) / f"gallery-{number}", encoder) as gallery:
                started = time.perf_counter()
                gallery.index(drawn / "imgs")
                indexed.append(time.perf_counter() - started)
                assert gallery.count() == len(crops)
            if engine is not None:
                with Gallery.create(Path(scratch) / f"ray-{number}", encoder) as gallery:
                    started = time.perf_counter()
                    gallery.index(drawn / "imgs", engine=engine)
                    on_ray.append(time.perf_counter() - started)
                    assert gallery.count() == len(crops)
    result: dict[str, object] = {
        "model": args.model,
        "crops": len(crops),
        "threads": args.threads,
        "encoding_images_per_second": round(len(crops) / statistics.median(bare), 1),
        "indexing_images_per_second": round(len(crops) / statistics.median(indexed), 1),
        "overhead": round(statistics.median(indexed) / statistics.median(bare) - 1, 3),
        "encoding_seconds": [round(seconds, 2) for seconds in bare],
        "indexing_seconds": [round(seconds, 2) for seconds in indexed],
    }
    if on_ray:
        result["ray_images_per_second"] = round(len(crops) / statistics.median(on_ray), 1)
        result["ray_seconds"] = [round(seconds, 2) for seconds in on_ray]
    return result


def warm_up(engine: RayEngine, crop: Path) -> None:
    """Start the workers, whose start is not measured."""
    list(engine.work([Pending(crop.name, crop, 0, False, {}, None)]))


def random_vit() -> Encoder:
    """Return an encoder of the published size with random weights."""
    model = DualEncoder(ClipArchitecture(image_height=384, image_width=128), trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(1))
    return Encoder(model, Tokenizer(77), device=torch.device("cpu"), batch_size=32)


if __name__ == "__main__":
    main()
