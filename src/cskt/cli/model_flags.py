"""The flags that say which model runs on which split, shared by the commands that evaluate and query."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from cskt.cli.parsing import Parser
from cskt.config.types import Activation, Interpolation, WeightsChoice
from cskt.data.records import Split
from cskt.embed import Encoder, load
from cskt.embed.model_paths import SETTINGS
from cskt.evaluation.model_data import split_of

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OWN_PRECISION, FAST_PRECISION = "the run's own, fp32 for CLIP weights", "auto"
"""What is meant where `--precision` is left out: figures are exact, searches fast."""
PRECISION_HELP = "arithmetic of the towers; auto is bf16 on a CPU that multiplies it by itself (default: {})"


def add_model_flags(parser: Parser, precision: str = OWN_PRECISION) -> None:
    """`model`, the data set's `--dataset`, `--root`, `--split`, and how to encode it; see `add_encoder_flags`."""
    parser.add_argument("model", help="run folder, released folder, merged file, CLIP weights, or clip-tiny")
    parser.add_argument("--dataset", help="cuhk-pedes, icfg-pedes, rstpreid or jsonl (default: the run's own)")
    parser.add_argument("--root", help="folder that holds the data set's folder (default: the run's own)")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    add_encoder_flags(parser, precision)
    add_cache_flag(parser)
    add_clip_flags(parser)


def add_cache_flag(parser: Parser) -> None:
    """`--cache-dir`, for commands that encode the images of a split."""
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="keep resized images there, for other runs too")


def add_encoder_flags(parser: Parser, precision: str = OWN_PRECISION) -> None:
    """Where the backbone lies, and how a model computes.

    Args:
        parser: of the command.
        precision: what the help says of leaving `--precision` out.
    """
    parser.add_argument("--backbone", help="CLIP weights of an adapter-only run, if they are not where its config says")
    add_weights_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP.format(precision))
    parser.add_argument("--compile", action="store_true", help="compile the towers first; on a CPU that takes g++")
    parser.add_argument("--batch-size", type=int, default=128, help="images or captions at once (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that decode images (default: %(default)s)")


def add_clip_flags(parser: Parser) -> None:
    """Image size of plain CLIP weights, and what their file may not state; a run has all of this in its config."""
    plain = parser.add_argument_group("for CLIP weights that are no run")
    plain.add_argument("--image-height", type=int, metavar="PIXELS", help="default: 384; of our own files, the file's")
    plain.add_argument("--image-width", type=int, metavar="PIXELS", help="default: 128; of our own files, the file's")
    plain.add_argument("--stride", type=int, metavar="PIXELS", help="between patches (default: the file's)")
    plain.add_argument("--activation", choices=get_args(Activation), help="where the file does not state it")
    plain.add_argument(
        "--vision-heads", type=int, metavar="N", help="attention heads, where the file does not state it"
    )
    plain.add_argument("--text-heads", type=int, metavar="N", help="likewise")
    plain.add_argument("--image-mean", type=_numbers, metavar="R,G,B", help="default: the file's, else CLIP's")
    plain.add_argument("--image-std", type=_numbers, metavar="R,G,B", help="default: the file's, else CLIP's")
    plain.add_argument(
        "--interpolation", choices=get_args(Interpolation), help="filter that resizes (default: bilinear)"
    )


def clip_settings(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `cskt.load` that the flags of `add_clip_flags` give."""
    return {name: value for name in SETTINGS if (value := getattr(flags, name, None)) is not None}


def add_weights_flag(parser: Parser) -> None:
    """`--weights`: which of two sets of weights a checkpoint is read for."""
    parser.add_argument(
        "--weights",
        choices=get_args(WeightsChoice),
        help="of a checkpoint that also holds the moving average of its weights (default: model)",
    )


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def load_model_and_split(flags: argparse.Namespace, *, refuse_overlaps: bool = True) -> tuple[Encoder, Split]:
    """The encoder and the split that the flags of `add_model_flags` name.

    Args:
        flags: as parsed.
        refuse_overlaps: see `split_of`.

    Raises:
        CsktError: the data set or the model cannot be read, or the data set is refused.
    """
    split = split_of(flags.model, flags.dataset, flags.root, flags.split, refuse_overlaps=refuse_overlaps)
    return load_model(flags), split


def load_model(flags: argparse.Namespace, model: str | None = None) -> Encoder:
    """Load a model with the flags of `add_encoder_flags`, and those of `add_cache_flag` and `add_clip_flags` if given.

    Args:
        flags: as parsed.
        model: the model; by default `flags.model`.

    Raises:
        CsktError: it cannot be read.
    """
    given = vars(flags)
    return load(
        model or flags.model,
        flags.backbone,
        flags.device,
        precision=flags.precision,
        image_height=given.get("image_height"),
        image_width=given.get("image_width"),
        stride=given.get("stride"),
        weights=flags.weights or "model",
        settings=clip_settings(flags),
        batch_size=flags.batch_size,
        num_workers=flags.num_workers,
        cache_dir=given.get("cache_dir"),
        compile=flags.compile,
        show_progress=True,
    )
