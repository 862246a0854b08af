"""Check of an exported model against its source: features and ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
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
"""Smallest cosine between the vectors of an image, or of a caption, before and after int8."""
REMEDIES = {
    "images": "calibrate on more, and more usual, crops",
    "captions": "leave --int8-text out: the captions are encoded in float32",
}
"""Advice for a tower whose vectors int8 changes too much."""
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

    def check(self, int8: Collection[str], most_points: float) -> None:
        """Check that the export may replace its source.

        Args:
            int8: what is encoded in int8, of `images` and `captions`.
            most_points: percentage points by which R1 may differ; with int8, by which it may be lower.

        Raises:
            CsktError: vectors differ by more than `MAX_DIFFERENCE`, in int8 a cosine is below `MIN_COSINE`, or R1
                differs by more than `most_points`.
        """
        for name, tower in (("captions", self.captions), ("images", self.images)):
            if name in int8:
                if not tower.smallest_cosine >= MIN_COSINE:  # also where it is NaN
                    raise CsktError(
                        f"vectors of {name}: the smallest cosine with the source's is {tower.smallest_cosine:.3f}, less"
                        f" than {MIN_COSINE}: nothing is written; {REMEDIES[name]}"
                    )
            elif not tower.largest_difference <= MAX_DIFFERENCE:
                raise CsktError(
                    f"features of {name} differ by {tower.largest_difference:.1e} from the source's, more than"
                    f" {MAX_DIFFERENCE:.0e}: nothing is written; try the other --format"
                )
        points = self.r1_points
        if points is not None and (-points if int8 else abs(points)) > most_points:
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


def generated_captions(count: int) -> list[str]:
    """Return captions of generated pedestrians."""
    return [_generated_pedestrian(number)[1] for number in range(count)]


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
