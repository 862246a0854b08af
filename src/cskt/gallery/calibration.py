"""Threshold of the score of a hit, calibrated on labelled pairs so that few wrong crops reach it.

Cosines of different models cannot be compared, so the threshold is measured for each model, on pairs of a sentence and
a crop that are marked right or wrong. It is stored in `calibration.json`, in the folder of a gallery or of a run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field
from pydantic.dataclasses import dataclass

from cskt.config.types import Fraction, Positive, Range, Real
from cskt.errors import CsktError, MissingFileError
from cskt.gallery.manifest import is_gallery
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, read_json
from cskt.utils.messages import command_text

logger = logging.getLogger(__name__)

Scores = NDArray[np.floating[Any]]
CALIBRATION_FILE = "calibration.json"
CONFIDENCE = 0.95
"""Confidence of the interval of the achieved rate."""


@dataclass(config=JSON, frozen=True)
class Calibration:
    """A threshold and its rates on the pairs of its measurement; a pair matches if it scores at least the threshold."""

    min_score: Annotated[Real, Field(validation_alias=AliasChoices("cut_off", "min_score"))]
    """A cosine. Files and answers call it `cut_off`."""
    asked_rate: Fraction
    """Largest share of wrong pairs that may match."""
    false_match_rate: Fraction
    """Share of wrong pairs that match, at most `asked_rate`."""
    interval: Range
    """Interval of that rate with 95 % confidence for independent pairs (Clopper and Pearson 1934); pairs that share a
    sentence or a crop are not independent, and their interval would be wider."""
    match_rate: Fraction
    """Share of right pairs that match."""
    num_right: Positive
    num_wrong: Positive


def calibrate(
    right_scores: Scores, wrong_scores: Scores, false_match_rate: float, *, num_wrong: int | None = None
) -> Calibration:
    """Return the smallest threshold that at most a share of the wrong pairs reaches.

    Args:
        right_scores: [R] cosines of sentences with crops of the described person.
        wrong_scores: [W] cosines of sentences with crops of others.
        false_match_rate: that share, in (0, 1).
        num_wrong: number of all wrong pairs, if `wrong_scores` are only the largest (see `largest`).

    Returns:
        The threshold is the float32 just above the largest wrong score that must not match: search scores in float32.
    """
    count = len(wrong_scores) if num_wrong is None else num_wrong
    allowed = num_allowed(count, false_match_rate)
    if not len(right_scores):
        raise CsktError("no pair is marked right; mark some, which show how many right crops the threshold hides")
    if len(wrong_scores) <= allowed:
        raise CsktError(f"{len(wrong_scores)} wrong scores are too few; keep the largest {allowed + 1}")
    right, wrong = (np.asarray(scores, dtype=np.float32) for scores in (right_scores, wrong_scores))
    if not (np.isfinite(right).all() and np.isfinite(wrong).all()):
        raise CsktError("a score is not finite; was the model trained to its end?")
    largest_refused = np.partition(wrong, -1 - allowed)[-1 - allowed]
    threshold = np.nextafter(largest_refused, np.float32(np.inf))
    num_matching = int((wrong >= threshold).sum())
    return Calibration(
        min_score=float(threshold),
        asked_rate=false_match_rate,
        false_match_rate=num_matching / count,
        interval=clopper_pearson(num_matching, count),
        match_rate=float((right >= threshold).mean()),
        num_right=len(right),
        num_wrong=count,
    )


def num_allowed(num_wrong: int, false_match_rate: float) -> int:
    """Return the number of wrong pairs that may match, if there are enough pairs to measure the rate."""
    if not 0 < false_match_rate < 1:
        raise CsktError(f"false-match rate {false_match_rate}: give a share between 0 and 1, such as 0.001")
    allowed = math.floor(num_wrong * false_match_rate + 1e-9)  # 0.29 * 100 is 28.999...
    if allowed < 1:
        needed = math.ceil(1 / false_match_rate - 1e-9)
        raise CsktError(
            f"{num_wrong:,} wrong pairs are too few for a false-match rate of {false_match_rate:g}, which needs at"
            f" least {needed:,}; mark more, or ask for a larger rate"
        )
    return allowed


def largest(chunks: Iterable[Scores], count: int) -> NDArray[np.float32]:
    """Return the `count` largest scores, unordered, with at most `2 * count` and one chunk in memory."""
    kept = np.empty(0, dtype=np.float32)
    for chunk in chunks:
        kept = np.concatenate((kept, chunk.astype(np.float32, copy=False)))
        if len(kept) > 2 * count:
            kept = np.partition(kept, -count)[-count:]
    return np.partition(kept, -count)[-count:] if len(kept) > count else kept


def clopper_pearson(num_found: int, num_tried: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact binomial interval of a rate (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv  # noqa: PLC0415  (slow to import, and a search only reads calibrations)

    tail, missed = (1 - confidence) / 2, num_tried - num_found
    low = float(betaincinv(num_found, missed + 1, tail)) if num_found else 0.0
    high = float(betaincinv(num_found + 1, missed, 1 - tail)) if missed else 1.0
    return low, high


@dataclass(config=JSON, frozen=True)
class _File:
    """Content of `calibration.json`."""

    calibration: Calibration
    fingerprint: str
    source: str
    date: str


def as_record(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as files and answers state it, with the threshold under its first name, `cut_off`."""
    fields = dataclasses.asdict(calibration)
    return {"cut_off": fields.pop("min_score"), **fields}


def save_calibration(folder: Path, calibration: Calibration, *, fingerprint: str, source: str) -> Path:
    """Write a calibration into the folder of a gallery or of a run, and return the file.

    Args:
        fingerprint: of the encoder that scored the pairs.
        source: name of the pairs, for readers of the file.
    """
    path, date = folder / CALIBRATION_FILE, datetime.now(UTC).isoformat(timespec="seconds")
    content = {"calibration": as_record(calibration), "fingerprint": fingerprint, "source": source, "date": date}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def load_calibration(folder: Path, fingerprint: str) -> Calibration | None:
    """Read the calibration in a folder; None if there is none or, with a warning, if it is of another model."""
    file = _read_file(folder)
    if file is None:
        return None
    if file.fingerprint != fingerprint:
        logger.warning(
            "%s: measured with another model, so no threshold is set; calibrate again: %s",
            folder / CALIBRATION_FILE, command_text(*_calibrating(folder, file)),
        )  # fmt: skip
        return None
    return file.calibration


def outdated_calibration(folder: Path, fingerprint: str) -> list[str]:
    """Return the words of the command that calibrates a folder again; empty if its calibration is missing or valid."""
    file = _read_file(folder)
    return [] if file is None or file.fingerprint == fingerprint else _calibrating(folder, file)


def _read_file(folder: Path) -> _File | None:
    remedy = f"corrupt: delete it, or calibrate again: {command_text(*_calibrating(folder, None))}"
    try:
        return read_json(folder / CALIBRATION_FILE, _File, remedy=remedy)
    except MissingFileError:
        return None


def _calibrating(folder: Path, file: _File | None) -> list[str]:
    """Return the words of a command with the same pairs and rate as before, where these are known."""
    words = ["calibrate", str(folder)]
    if is_gallery(folder):
        words += ["--labelled", file.source if file is not None and Path(file.source).is_file() else "marks.csv"]
    return words if file is None else [*words, "--false-match-rate", f"{file.calibration.asked_rate:g}"]
