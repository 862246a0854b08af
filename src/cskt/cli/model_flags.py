"""Flags that name a model and a split, shared by the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cskt.cli.parsing import Parser, given
from cskt.config import CLIP_SETTINGS, CROP_SIZE, DataConfig
from cskt.config.types import Activation, Interpolation, WeightsChoice
from cskt.errors import CsktError

if TYPE_CHECKING:  # torch, for which --help need not wait
    from cskt.data.records import Split
    from cskt.embed import EncodeOptions, Encoder

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
OWN_PRECISION, FAST_PRECISION = "the run's own, fp32 for CLIP weights", "auto"
"""Defaults of `--precision`: metrics are exact, searches fast."""
PRECISION_HELP = "arithmetic of the towers; auto is bf16 on a CPU that multiplies it natively (default: {})"


def add_model_flags(
    parser: Parser, precision: str = OWN_PRECISION, *, positional: bool = True, several_roots: bool = False
) -> None:
    """Add the model, positional or as `--model`, its data set (`--dataset`, `--root`, `--split`), and encoder flags.

    With `several_roots`, `--root` may be given several times.
    """
    what = "run folder, released folder, merged file, CLIP weights, or clip-tiny"
    if positional:
        parser.add_argument("model", help=what)
    else:
        parser.add_argument("--model", help=f"{what}; searches a split of a data set")
    add_dataset_flags(parser, several_roots=several_roots)
    add_encoder_flags(parser, precision, caches=True)


def add_dataset_flags(container: Any, split: str = "test", *, several_roots: bool = False) -> None:
    """Add `--dataset`, `--root` (see `add_model_flags`) and `--split` to a parser or an argument group."""
    container.add_argument("--dataset", help="cuhk-pedes, icfg-pedes, rstpreid or jsonl (default: the run's own)")
    root = "folder that holds the data set's folder (default: the run's own)"
    if several_roots:
        container.add_argument("--root", action="append", default=[], help=f"{root}; several times for several")
    else:
        container.add_argument("--root", help=root)
    container.add_argument("--split", help=f"train, val or test (default: {split})")


def add_encoder_flags(parser: Parser, precision: str = OWN_PRECISION, *, caches: bool = False) -> None:
    """Add where the backbone is, how a model computes, and what the file of plain CLIP weights may not state.

    `caches`: the command encodes the images of a split, which may be cached.
    """
    add = parser.add_argument
    # fmt: off
    add("--backbone", help="CLIP weights of an adapter-only run, if they are not where its config says")
    add_weights_flag(parser)
    add_ignore_extra_flag(parser)
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    add("--precision", choices=PRECISIONS, help=PRECISION_HELP.format(precision))
    add("--compile", action="store_true", help="compile the towers first; on a CPU that takes g++")
    add("--batch-size", type=int, default=DataConfig.eval_batch_size,
        help="images or captions at once (default: %(default)s)")
    add("--num-workers", type=int, default=DataConfig.num_workers,
        help="threads that decode images (default: %(default)s)")
    if caches:
        add("--cache-dir", type=Path, metavar="DIR", help="folder that caches resized images, for other runs too")
    add = parser.add_argument_group("for CLIP weights that are no run").add_argument
    add("--image-height", type=int, metavar="PIXELS", help=f"default: {CROP_SIZE[0]}; of our own files, the file's")
    add("--image-width", type=int, metavar="PIXELS", help=f"default: {CROP_SIZE[1]}; of our own files, the file's")
    add("--stride", type=int, metavar="PIXELS", help="between patches (default: the file's)")
    add("--activation", choices=get_args(Activation), help="where the file does not state it")
    add("--vision-heads", type=int, metavar="N", help="attention heads, where the file does not state it")
    add("--text-heads", type=int, metavar="N", help="likewise")
    add("--image-mean", metavar="R,G,B", help="default: the file's, else CLIP's")
    add("--image-std", metavar="R,G,B", help="default: the file's, else CLIP's")
    add("--interpolation", choices=get_args(Interpolation), help="filter that resizes (default: bilinear)")
    # fmt: on


def add_weights_flag(parser: Parser) -> None:
    """Add `--weights`, the choice between two sets of weights in a checkpoint."""
    parser.add_argument(
        "--weights",
        choices=get_args(WeightsChoice),
        help="of a checkpoint that also holds the moving average of its weights (default: model)",
    )


def add_ignore_extra_flag(parser: Parser) -> None:
    """Add `--ignore-extra`, or in test.py `--ignore_extra`, for released folders with unknown tensors."""
    parser.add_argument(
        "--ignore-extra" if parser.separator == "-" else "--ignore_extra",
        action="store_true",
        help="load a released folder without tensors that its method does not have; its score is not the method's",
    )


def load_model_and_split(flags: argparse.Namespace, *, refuse_overlaps: bool = True) -> tuple[Encoder, Split]:
    """Return the encoder and the split that the flags of `add_model_flags` name."""
    from cskt.evaluation.evaluate import split_of  # noqa: PLC0415

    split = split_of(flags.model, flags.dataset, flags.root, flags.split or "test", refuse_overlaps=refuse_overlaps)
    return load_model(flags), split


def load_model(flags: argparse.Namespace, model: str | None = None, *, among: Iterable[str] = ()) -> Encoder:
    """Return the encoder of `model`, else of `flags.model`, that computes as the flags of `add_encoder_flags` say.

    `among` are all models of the command: `--backbone` is for those that contain none, if there are any.
    """
    from cskt.embed import ModelSource  # noqa: PLC0415
    from cskt.embed.model_paths import load_checked, needed_backbone  # noqa: PLC0415

    model, fields = model or flags.model, source_flags(flags)
    contains_backbone = "backbone" in fields and needed_backbone(Path(model)) is None
    if contains_backbone and any(needed_backbone(Path(other)) is not None for other in among):
        del fields["backbone"]
    return load_checked(ModelSource(model, **fields), encode_options(flags, show_progress=True))


def source_flags(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `ModelSource` that the flags of `add_encoder_flags` set, but for its path."""
    settings = given(flags, CLIP_SETTINGS)
    settings |= {name: _channels(name, settings[name]) for name in ("image_mean", "image_std") if name in settings}
    stated = given(flags, ("backbone", "image_height", "image_width", "stride", "weights"))
    stated |= {"ignore_extra": True} if flags.ignore_extra else {}
    return stated | ({"settings": settings} if settings else {})


def _channels(name: str, text: str) -> list[float]:
    """Return `0.5,0.5,0.5` as numbers; their count and range are checked with the other settings."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        flag = f"--{name.replace('_', '-')}"
        raise CsktError(f"{flag} {text}: give a number per channel, as in {flag} 0.5,0.5,0.5") from None


def encode_options(flags: argparse.Namespace, *, show_progress: bool = False) -> EncodeOptions:
    """Return the options that the flags of `add_encoder_flags` set."""
    from cskt.embed import EncodeOptions  # noqa: PLC0415

    return EncodeOptions(
        flags.device,
        flags.precision,
        batch_size=flags.batch_size,
        num_workers=flags.num_workers,
        cache_dir=getattr(flags, "cache_dir", None),
        compile=flags.compile,
        show_progress=show_progress,
    )


def num_hits(asked: int | None, default: int, split: Split) -> int:
    """Return the number of images to show of a ranking: that of `-k`, or the default if the split has so many."""
    num_images = len(split.records)
    k = min(default, num_images) if asked is None else asked
    if not 1 <= k <= num_images:
        raise CsktError(f"-k {k}: the split has {num_images} images; give 1 to {num_images}")
    return k
