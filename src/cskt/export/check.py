"""Check of an exported model against its source: features and ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cskt.data.paperdoll import draw_person, sample_attributes, stable_random, write_caption
from cskt.data.records import Split
from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder
from cskt.embed.exported import TOKENIZER, ExportedEncoder
from cskt.errors import CsktError
from cskt.evaluation.evaluate import SplitFeatures, encode_split, evaluate

MAX_DIFFERENCE = 1e-4
"""Largest difference between entries of unit vectors, for float32 graphs."""
MIN_COSINE = 0.98
"""Smallest cosine between the vectors of an image before and after int8."""
NUM_GENERATED = 24


@dataclass(frozen=True)
class TowerParity:
    """Agreement of the vectors of one tower of the source and of the export."""

    count: int
    largest_difference: float
    """Between two entries."""
    smallest_cosine: float
    """Between two vectors."""


@dataclass(frozen=True)
class Parity:
    """Agreement of a source and its export; fractions in [0, 1]."""

    data: str
    """Data set and split, or generated pedestrians."""
    images: TowerParity
    captions: TowerParity
    source: dict[str, float] | None = None
    """R1 and mAP, text to image; None for generated pedestrians."""
    exported: dict[str, float] | None = None

    @property
    def r1_points(self) -> float | None:
        """R1 of the export minus R1 of the source, in percentage points."""
        return 100 * (self.exported["r1"] - self.source["r1"]) if self.source and self.exported else None

    def summary(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self) | {"r1_points": self.r1_points}

    def check(self, precision: str, most_points: float) -> None:
        """Check that the export may replace its source: R1 differs by at most `most_points` percentage points, for int8
        downwards."""
        exact = [("captions", self.captions), *([("images", self.images)] if precision == "fp32" else [])]
        for name, tower in exact:
            if not tower.largest_difference <= MAX_DIFFERENCE:  # also where it is NaN
                raise CsktError(
                    f"features of {name} differ by {tower.largest_difference:.1e} from the source's, more than"
                    f" {MAX_DIFFERENCE:.0e}: nothing is written; try the other --format"
                )
        if not self.images.smallest_cosine >= MIN_COSINE:
            raise CsktError(
                f"an image's vector has the cosine {self.images.smallest_cosine:.3f} with the source's, less than"
                f" {MIN_COSINE}: nothing is written; calibrate on more, and more usual, crops"
            )
        points = self.r1_points
        if points is not None and (abs(points) if precision == "fp32" else -points) > most_points:
            raise CsktError(
                f"R1 differs by {points:+.2f} points on {self.data}, more than --tolerance {most_points:g}: nothing is"
                " written; allow more, or calibrate on other crops"
            )


def parity_on_split(source: Encoder, exported: ExportedEncoder, split: Split) -> Parity:
    """Compare features and ranking on labelled data."""
    _check_tokenizer(exported, source.tokenizer, split.captions)
    ours, theirs = encode_split(source, split), encode_split(exported, split)
    return Parity(
        f"{split.dataset} {split.name}",
        _tower_parity(ours.image_features, theirs.image_features),
        _tower_parity(ours.text_features, theirs.text_features),
        _ranking(source, split, ours),
        _ranking(exported, split, theirs),
    )


def parity_on_generated(source: Encoder, exported: ExportedEncoder) -> Parity:
    """Compare features on generated pedestrians, for models whose data is not available."""
    images, captions = zip(*(_generated_pedestrian(number) for number in range(NUM_GENERATED)), strict=True)
    _check_tokenizer(exported, source.tokenizer, captions)
    return Parity(
        f"{NUM_GENERATED} generated pedestrians",
        _tower_parity(source.encode_image(images), exported.encode_image(images)),
        _tower_parity(source.encode_text(captions), exported.encode_text(captions)),
    )


def first_images(split: Split, count: int) -> Split:
    """Return the first images of a split; 0: all. Images of one person are neighbours."""
    return dataclasses.replace(split, records=split.records[: count or None])


def _generated_pedestrian(number: int) -> tuple[Image.Image, str]:
    attributes = sample_attributes(stable_random("export", number))
    drawing = draw_person(attributes, stable_random("export", number, "image"), domain="target")
    return drawing.image, write_caption(
        attributes, drawing, stable_random("export", number, "caption"), domain="target"
    )


def _tower_parity(ours: Tensor, theirs: Tensor) -> TowerParity:
    cosines = F.cosine_similarity(ours, theirs, dim=-1)
    return TowerParity(len(ours), float((ours - theirs).abs().max()), float(cosines.min()))


def _ranking(encoder: Encoder, split: Split, features: SplitFeatures) -> dict[str, float]:
    found = evaluate(encoder, split, features).t2i
    return {"r1": found.r1, "mean_ap": found.mean_ap}


def _check_tokenizer(exported: ExportedEncoder, tokenizer: Tokenizer, captions: Sequence[str]) -> None:
    """Check that `tokenizer.json`, after the text is cleaned, gives the ids of our tokenizer."""
    portable = tokenizers.Tokenizer.from_file(str(exported.folder / TOKENIZER))
    ids = [encoding.ids for encoding in portable.encode_batch([tokenizer.clean(caption) for caption in captions])]
    if not torch.equal(torch.tensor(ids), tokenizer(captions)):
        raise CsktError(f"{TOKENIZER} does not give the tokenizer's ids with this version of `tokenizers`; update it")
