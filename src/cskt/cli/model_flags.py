"""The flags that say which model runs on which split, shared by the commands that evaluate and query."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any, get_args

from cskt.cli.parsing import Parser
from cskt.config import RunConfig, load_config, validate
from cskt.config.types import Activation, Interpolation, WeightsChoice
from cskt.data.annotations import dataset_key
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import Split, find_split, select_splits
from cskt.embed import EXPORTED, Encoder, is_exported, load
from cskt.embed.exported import read_facts
from cskt.embed.models import SETTINGS
from cskt.errors import CsktError
from cskt.model.io.cache import CLIP_TINY, PUBLISHED, SUFFIXES, is_repository_name, locate
from cskt.model.io.files import kind_of, read_method
from cskt.model.io.released.reader import read_released_config
from cskt.training.run_folder import BEST, CONFIG, FLAT_CONFIG

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
    return {name: value for name in SETTINGS if (value := getattr(flags, name)) is not None}


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


def load_model(flags: argparse.Namespace) -> Encoder:
    """The encoder that `flags.model` names, computing as the flags of `add_encoder_flags` say.

    Raises:
        CsktError: it cannot be read.
    """
    return load(
        flags.model,
        flags.backbone,
        flags.device,
        precision=flags.precision,
        image_height=flags.image_height,
        image_width=flags.image_width,
        stride=flags.stride,
        weights=flags.weights or "model",
        settings=clip_settings(flags),
        batch_size=flags.batch_size,
        num_workers=flags.num_workers,
        cache_dir=flags.cache_dir,
        compile=flags.compile,
        show_progress=True,
    )


def split_of(
    model: str,
    dataset: str | None,
    root: str | None,
    split: str,
    *,
    root_flag: str = "--root",
    refuse_overlaps: bool = True,
) -> Split:
    """A split by name and root, where either is left out as the run itself was trained.

    Of its own data set without a val split (ICFG-PEDES), `val` are the people that the run held out to pick its best
    epoch, and `train` the others.

    Args:
        model: as the user named it.
        dataset: the run's own if empty.
        root: the run's own if empty.
        split: train, val or test.
        root_flag: how the command calls the flag of `root`.
        refuse_overlaps: refuse a data set whose splits or people share images or identities, unless it is one of the
            published ones; otherwise log a warning.

    Raises:
        CsktError: there is no such model, neither the caller nor the run says which data set to use, it cannot be
            read, or it is refused.
    """
    check_exists(model)
    own = run_config(Path(model))
    if own and not root and not Path(own.data.root).is_dir():
        raise CsktError(
            f"{own.data.root}: no such folder from here, though {model} had its data there; say where: {root_flag} DIR"
        )
    name, place = dataset or (own.data.dataset if own else None), root or (own.data.root if own else None)
    if not name or not place:
        raise CsktError(f"{model} is no run that names its data; say which to use: --dataset rstpreid --root DIR")
    splits = read_separate_splits(name, Path(place), refuse=refuse_overlaps)
    if own and own.data.select_on == "val" and "val" not in splits and is_own_dataset(own, dataset):
        train, val = select_splits(splits, own.data)
        splits = splits | {"train": train, "val": val}
    return find_split(splits, split)


def is_own_dataset(own: RunConfig, dataset: str | None) -> bool:
    """Whether a data set, as the user named it or not, is the one that the run was trained on, wherever it lies now."""
    # By the name `jsonl`, it may be anybody's.
    return dataset is None or dataset_key(dataset) == dataset_key(own.data.dataset) != "jsonl"


def check_exists(model: str) -> None:
    """See that a model's name means anything, before anything else is asked of the user.

    Raises:
        CsktError: no file, folder or published name; or a folder without a run and without weights.
    """
    path, published = Path(model).expanduser(), [CLIP_TINY, *PUBLISHED]
    if path.is_dir() and not any((path / name).is_file() for name in (CONFIG, FLAT_CONFIG, BEST, EXPORTED)):
        try:
            locate(model)
        except ValueError as error:
            raise CsktError(f"{error}; and it is no run folder, for it has no {CONFIG}") from None
    if path.exists() or model in published or (is_repository_name(model) and not path.parent.is_dir()):
        return
    beside = [str(other) for other in path.parent.glob("*") if (other / CONFIG).is_file() or other.suffix in SUFFIXES]
    close = difflib.get_close_matches(model, [*published, *beside], n=1)
    known = f"did you mean '{close[0]}'?" if close else f"published names: {', '.join(published)}"
    raise CsktError(f"{model}: no such run folder, weight file or published name; {known}")


def run_config(model: Path) -> RunConfig | None:
    """The config of a run folder, of a released CSKT folder, of a run's weight file or of an exported run; none for
    plain CLIP weights."""
    if (model / CONFIG).is_file():
        return load_config(model / CONFIG)
    if (model / FLAT_CONFIG).is_file():
        return read_released_config(model)
    if is_exported(model):
        config = read_facts(model).config
        return None if config is None else validate(RunConfig, config, f"{model / EXPORTED}: config")
    if model.suffix == ".safetensors" and model.is_file() and kind_of(model) == "method":
        return validate(RunConfig, read_method(model).config, f"{model}: config")
    return None
