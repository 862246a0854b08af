"""`cskt calibrate`: the threshold of scores, measured on pairs that are known to be right or wrong."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.cli.metadata_table import image_name
from cskt.cli.model_flags import FAST_PRECISION, add_dataset_flags, add_encoder_flags, load_model, load_model_and_split
from cskt.cli.parsing import Parser, given
from cskt.embed import Encoder
from cskt.embed.model_paths import check_exists
from cskt.errors import SMALLER_BATCHES, CsktError, out_of_memory_errors
from cskt.evaluation.evaluate import SplitFeatures, encode_split
from cskt.gallery.calibration import Calibration, as_record, calibrate, largest, num_allowed, save_calibration
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import is_gallery
from cskt.gallery.marks import Mark, read_pairs
from cskt.gallery.query import Query
from cskt.utils.paths import check_path
from cskt.utils.terminal import json_text

logger = logging.getLogger(__name__)

DEFAULT_RATE = 0.001
CAPTIONS_AT_ONCE = 512

DESCRIPTION = """\
Set the threshold of a gallery or of a run: the smallest score that at most a given share of wrong pairs reaches. Pairs
are a sentence and a crop, marked right or wrong. The threshold is stored in the folder; `cskt search`, `cskt serve` and
cskt.Gallery use it if --min-score is not given. A gallery that is made with a calibrated run takes it over.
"""
EXAMPLES = """\
examples:
  cskt calibrate my-gallery --labelled marks.csv --false-match-rate 0.01     marks that the page of cskt serve exports
  cskt calibrate logs/cuhk-pedes/...                                         the val split of the run's own data set
  cskt calibrate released-model --dataset rstpreid --root data
pairs (--labelled): CSV or JSON lines with the columns text, image and right (1 or 0); image is a crop's name in the
  gallery, or a path; for a run, a path relative to the file. A rate of 0.001 needs at least 1,000 wrong pairs.
"""


@out_of_memory_errors(SMALLER_BATCHES)
def main(argv: Sequence[str]) -> int:
    """See `cskt calibrate --help`."""
    flags = _flags(argv)
    folder = Path(flags.model)
    if is_gallery(folder):
        calibration, fingerprint, source = _of_gallery(flags)
    elif not folder.is_dir():
        check_exists(flags.model)
        raise CsktError(f"{folder}: a threshold is stored in a folder; calibrate a gallery made with this model")
    else:
        calibration, fingerprint, source = _of_labelled_run(flags) if flags.labelled else _of_split(flags)
    path = save_calibration(folder, calibration, fingerprint=fingerprint, source=source)
    if flags.json:
        print(json_text({**as_record(calibration), "source": source, "file": str(path)}))
        return 0
    low, high = calibration.interval
    print(
        f"threshold {calibration.min_score:.4f}\n"
        f"wrong pairs that match: {calibration.false_match_rate:.4%} of {calibration.num_wrong:,}"
        f" (95 % interval {low:.4%} to {high:.4%}; asked: {calibration.asked_rate:.4%})\n"
        f"right pairs that match: {calibration.match_rate:.1%} of {calibration.num_right:,}\n"
        f"stored in {path}"
    )
    return 0


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="cskt calibrate", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    # fmt: off
    add("model", metavar="GALLERY_OR_RUN", help="folder of a gallery, a run or a released model")
    add("--labelled", type=Path, metavar="PAIRS", help="table of pairs, see below; needed for a gallery")
    add("--false-match-rate", type=float, default=DEFAULT_RATE, metavar="RATE",
        help="share of wrong pairs that may match, between 0 and 1 (default: %(default)s)")
    add("--json", action="store_true", help="JSON on stdout")
    # fmt: on
    pairs = "pairs from a data set, for a run: a sentence with an image of another person is wrong"
    add_dataset_flags(parser.add_argument_group(pairs), "val")
    add_encoder_flags(parser, FAST_PRECISION, caches=True)
    flags = parser.parse(argv)
    check_path(Path(flags.model))
    named = list(given(flags, ("dataset", "root", "split")))
    if is_gallery(Path(flags.model)) and not flags.labelled:
        raise CsktError(f"{flags.model} is a gallery; give pairs of sentences and its crops: --labelled marks.csv")
    if flags.labelled and named:
        raise CsktError(f"--labelled and --{named[0]} name pairs both; leave one out")
    flags.split, flags.precision = flags.split or "val", flags.precision or FAST_PRECISION
    num_allowed(10**9, flags.false_match_rate)  # refuses a rate out of range before anything is encoded
    return flags


def _of_gallery(flags: argparse.Namespace) -> tuple[Calibration, str, str]:
    """Calibrate a gallery on pairs of sentences and its crops; return the model's fingerprint and the source, too."""
    marks = read_pairs(flags.labelled)
    with Gallery.open(flags.model, device=flags.device) as gallery:
        images = Path(flags.model) / (gallery.manifest.images or "")
        named = [dataclasses.replace(mark, image_id=image_name(mark.image_id, images)) for mark in marks]
        present = {image_id for image_id in {mark.image_id for mark in named} if image_id in gallery}
        known = [mark for mark in named if mark.image_id in present]
        if strange := next((mark.image_id for mark in named if mark.image_id not in present), None):
            logger.warning(
                "%s: %d of %d pairs name no crop of the gallery (the first: '%s')",
                flags.labelled, len(named) - len(known), len(named), strange,
            )  # fmt: skip
        texts, image_ids = _distinct(known)
        _warn(gallery.encoder, texts)
        text_features = gallery.encode([Query(text) for text in texts])
        scores = _scores(known, text_features, gallery.encode([Query(like=image_id) for image_id in image_ids]))
        calibration = calibrate(*scores, flags.false_match_rate)
        return calibration, gallery.manifest.fingerprint, str(flags.labelled)


def _of_labelled_run(flags: argparse.Namespace) -> tuple[Calibration, str, str]:
    """Calibrate a run on pairs of sentences and image files; see `_of_gallery`."""
    marks = read_pairs(flags.labelled)
    encoder = load_model(flags)
    texts, image_ids = _distinct(marks)
    _warn(encoder, texts)
    paths = [flags.labelled.parent / image_id.replace("\\", "/") for image_id in image_ids]
    scores = _scores(marks, encoder.encode_text(texts), encoder.encode_image(paths))
    return calibrate(*scores, flags.false_match_rate), encoder.fingerprint, str(flags.labelled)


def _of_split(flags: argparse.Namespace) -> tuple[Calibration, str, str]:
    """Calibrate a run on all pairs of captions and images of a split; see `_of_gallery`."""
    if flags.split != "val":
        why = "metrics on it are then no test any more" if flags.split == "test" else "the model was trained on it"
        logger.warning("--split %s: %s; set the threshold of a model on val", flags.split, why)
    encoder, split = load_model_and_split(flags)
    features = encode_split(encoder, split)
    right = np.concatenate(list(pair_scores(features, right=True)))
    num_wrong = len(split.captions) * len(split.records) - len(right)
    allowed = num_allowed(num_wrong, flags.false_match_rate)
    wrong = largest(pair_scores(features, right=False), allowed + 1)
    calibration = calibrate(right, wrong, flags.false_match_rate, num_wrong=num_wrong)
    return calibration, encoder.fingerprint, f"{split.dataset} {split.name}"


def pair_scores(features: SplitFeatures, *, right: bool) -> Iterator[NDArray[np.float32]]:
    """Yield cosines of captions with images of the same person (`right`), or of others, some captions at a time."""
    for texts, pids in zip(
        torch.split(features.text_features, CAPTIONS_AT_ONCE),
        torch.split(features.caption_pids, CAPTIONS_AT_ONCE),
        strict=True,
    ):
        same = pids[:, None] == features.image_pids[None]
        yield (texts @ features.image_features.T)[same if right else ~same].numpy()


def _distinct(marks: Sequence[Mark]) -> tuple[list[str], list[str]]:
    """Return the sentences and the crops of pairs, each once."""
    return list(dict.fromkeys(mark.text for mark in marks)), list(dict.fromkeys(mark.image_id for mark in marks))


def _warn(encoder: Encoder, texts: Sequence[str]) -> None:
    for line in encoder.text_warnings(texts):
        logger.warning("%s", line)


def _scores(
    marks: Sequence[Mark], text_features: Tensor, image_features: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scores of the right pairs and of the wrong ones; of two marks for one pair the last counts.

    The features are unit vectors of the sentences and crops of `_distinct(marks)`.
    """
    texts, image_ids = ({name: row for row, name in enumerate(names)} for names in _distinct(marks))
    last_mark = {(texts[mark.text], image_ids[mark.image_id]): mark.right for mark in marks}
    rows = torch.tensor(list(last_mark), dtype=torch.int64).reshape(-1, 2)
    scores = (text_features[rows[:, 0]] * image_features[rows[:, 1]]).sum(dim=1).numpy()
    is_right = np.array(list(last_mark.values()), dtype=bool)
    return scores[is_right], scores[~is_right]
