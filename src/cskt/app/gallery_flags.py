"""What the commands of a gallery share: which model fills it, how it is loaded, and what a run has said."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from cskt.app.model_flags import FAST_PRECISION, add_encoder_flags, add_image_size_flags, check_exists
from cskt.app.parsing import Parser
from cskt.embed import Encoder
from cskt.gallery.indexing import IndexReport
from cskt.gallery.manifest import MANIFEST, ModelSource
from cskt.model.cache import CLIP_TINY
from cskt.terminal import json_text

logger = logging.getLogger(__name__)

MOST_LISTED = 10
"""Unreadable images told on stderr; `--json` lists all."""


def add_source_flags(parser: Parser, default: str) -> None:
    """`--run`, and how that model is loaded and computes.

    Args:
        parser: of the command.
        default: what the help says of leaving `--run` out.
    """
    parser.add_argument(
        "--run", "--model", metavar="MODEL",
        help="run folder, released CSKT or IRRA folder, CLIP weight file, or published name such as ViT-B/16"
        f" (default: {default})",
    )  # fmt: skip
    add_encoder_flags(parser, FAST_PRECISION)
    add_image_size_flags(parser)


def is_gallery(folder: Path) -> bool:
    """Whether a gallery lies there."""
    return (folder / MANIFEST).is_file()


def source_of(flags: argparse.Namespace, known: ModelSource | None = None) -> ModelSource:
    """The model that the flags of `add_source_flags` name.

    Args:
        flags: as parsed.
        known: a gallery's own model, which counts where `--run` is left out; clip-tiny, with a warning, if neither is
            given.

    Raises:
        ValueError: there is no such model.
    """
    if flags.run is None and known is None:
        logger.warning(
            "no --run given: clip-tiny fills the gallery, which knows paper dolls and not people; for people give"
            " --run with a run folder, a released CSKT or IRRA folder, or CLIP weights such as ViT-B/16"
        )
    if flags.run is not None:
        check_exists(flags.run)
    base = ModelSource(flags.run or CLIP_TINY) if flags.run is not None or known is None else known
    asked = {name: getattr(flags, name) for name in ("backbone", "precision", "image_height", "image_width", "stride")}
    return dataclasses.replace(base, **{name: value for name, value in asked.items() if value is not None})


def load_source(source: ModelSource, flags: argparse.Namespace) -> Encoder:
    """The encoder of a source, computing as the flags say.

    Raises:
        ValueError: see `cskt.load`.
    """
    return source.load(
        flags.device,
        batch_size=flags.batch_size,
        num_workers=flags.num_workers,
        compile=flags.compile,
    )


def report_indexing(report: IndexReport, gallery: Path, num_crops: int, *, as_json: bool) -> None:
    """Print what indexing did: on stdout the figures, on stderr what could not be read."""
    encoded = report.added + report.replaced
    rate = encoded / report.seconds if report.seconds else 0.0
    if as_json:
        unreadable = [{"image_id": name, "reason": reason} for name, reason in report.unreadable]
        figures = dataclasses.asdict(report) | {"unreadable": unreadable}
        print(json_text({"gallery": str(gallery), "crops": num_crops, **figures, "images_per_second": rate}))
        return
    for name, reason in report.unreadable[:MOST_LISTED]:
        logger.warning("unreadable: %s: %s", name, reason)
    if len(report.unreadable) > MOST_LISTED:
        logger.warning("... and %d more (--json lists all)", len(report.unreadable) - MOST_LISTED)
    vanished = f"vanished {report.vanished:,} (--prune removes them)" if report.vanished else "vanished 0"
    print(
        f"{gallery}: {num_crops:,} crops; added {report.added:,}, replaced {report.replaced:,}, updated"
        f" {report.updated:,}, unchanged {report.unchanged:,}, {vanished}, removed {report.removed:,}, unreadable"
        f" {len(report.unreadable):,}; {report.seconds:.1f} s" + (f", {rate:,.0f} images/s" if encoded else "")
    )
