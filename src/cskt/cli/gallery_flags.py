"""Flags and reports that the commands of a gallery share."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from cskt import embed
from cskt.cli.model_flags import FAST_PRECISION, add_encoder_flags, encode_options, source_flags
from cskt.cli.parsing import Parser, given
from cskt.embed import EncodeOptions, Encoder, ModelSource
from cskt.embed.model_paths import check_arguments, check_exists, needed_backbone
from cskt.gallery.indexing.commits import IndexReport
from cskt.gallery.indexing.scanning import READ_WITH
from cskt.gallery.manifest import exists
from cskt.gallery.opening import load_gallery_model
from cskt.gallery.stores.base import MAX_ID_CHARACTERS
from cskt.model.io.cache import CLIP_TINY, PUBLISHED, is_repository_name
from cskt.utils.paths import expanded
from cskt.utils.terminal import json_text

logger = logging.getLogger(__name__)

MAX_LISTED = 10
"""Unreadable images, and folders, that are logged; `--json` lists all."""


def add_source_flags(parser: Parser, default: str) -> None:
    """Add `--model`, with the default that its help names, and how it is loaded and computes."""
    parser.renamed = {"--run": "--model"}
    parser.add_argument(
        "--model", metavar="MODEL",
        help="run folder, released folder, CLIP weight file, or published name such as ViT-B/16"
        f" (default: {default})",
    )  # fmt: skip
    add_encoder_flags(parser, FAST_PRECISION)


def source_from_flags(
    flags: argparse.Namespace, known: ModelSource | None = None, *, same_model: bool = False
) -> ModelSource:
    """Return the model that the flags of `add_source_flags` name.

    Args:
        flags: as parsed.
        known: the gallery's model, used without `--model`; clip-tiny, with a warning, if there is neither.
        same_model: whether `--model` can only be another place of `known`, so that its image size holds.
    """
    if flags.model is None and known is None:
        logger.warning(
            "no --model given: clip-tiny fills the gallery, which knows paper dolls and not people; for people give"
            " --model with a run folder, a released folder, or CLIP weights such as ViT-B/16"
        )
    if flags.model is not None:
        check_exists(flags.model)
    if flags.model is not None or known is None:
        check_arguments(ModelSource(flags.model or CLIP_TINY, **source_flags(flags)))
    base = known or ModelSource(flags.model or CLIP_TINY)
    if flags.model is not None and known is not None:
        sizes = known if same_model else ModelSource(flags.model)
        base = dataclasses.replace(sizes, path=flags.model, backbone=_inherited_backbone(Path(flags.model), known))
    asked = source_flags(flags) | given(flags, ["precision"])
    if "settings" in asked:
        asked["settings"] = (base.settings or {}) | asked["settings"]
    return dataclasses.replace(base, **asked)


def _inherited_backbone(run: Path, known: ModelSource) -> str | None:
    """Return the gallery's backbone for a run whose config names a file that is gone; its SHA-256 is checked later."""
    name = needed_backbone(expanded(run))
    is_lost = name is not None and name not in PUBLISHED and not is_repository_name(name) and not exists(name)
    return known.backbone if is_lost else None


def load_from_flags(source: ModelSource, flags: argparse.Namespace, gallery: Path | None = None) -> Encoder:
    """Load the encoder of a source, computing as the flags say; on Ray, whose workers do so, on the CPU.

    `gallery` is its folder, for messages, if the source may be that of its manifest.
    """
    on_ray = getattr(flags, "engine", "local") == "ray"
    options = EncodeOptions("cpu") if on_ray else encode_options(flags)
    if gallery is None or flags.model is not None:
        return embed.load_source(source, options)
    return load_gallery_model(gallery, source, options)


def report_indexing(report: IndexReport, gallery: Path, num_crops: int, *, as_json: bool) -> None:
    """Print numbers of indexing on stdout, and unreadable images on stderr."""
    encoded = report.added + report.replaced
    rate = encoded / report.seconds if report.seconds else 0.0
    if as_json:
        unreadable = [{"image_id": name, "reason": reason} for name, reason in report.unreadable]
        folders = [{"folder": path, "reason": reason} for path, reason in report.unreadable_folders]
        figures = dataclasses.asdict(report) | {"unreadable": unreadable, "unreadable_folders": folders}
        print(json_text({"gallery": str(gallery), "crops": num_crops, **figures, "images_per_second": rate}))
        return
    if report.model_moved:
        print(f"{gallery}: the same model; its path was updated")
    outdated = set(report.outdated)
    older = "; the old version still answers (--prune removes it)"
    _warn("folder cannot be read, its crops stay", report.unreadable_folders)
    _warn("unreadable", [(name, reason + (older if name in outdated else "")) for name, reason in report.unreadable])
    vanished = f"vanished {report.vanished:,} (--prune removes them)" if report.vanished else "vanished 0"
    print(
        f"{gallery}: {num_crops:,} crops; added {report.added:,}, replaced {report.replaced:,}, updated"
        f" {report.updated:,}, unchanged {report.unchanged:,}, {vanished}, removed {report.removed:,}, unreadable"
        f" {len(report.unreadable):,}; {report.seconds:.1f} s" + (f", {rate:,.0f} images/s" if encoded else "")
    )
    if report.turned:
        print(f"encoded again, now as their EXIF orientation says: {report.turned:,}")
    if report.passed_over:
        most_first = sorted(report.passed_over.items(), key=lambda item: (-item[1], item[0]))
        hints = {kind: f" (to read them: {needed})" for kind, needed in READ_WITH.items()}
        print("passed over: " + ", ".join(f"{kind} {count:,}{hints.get(kind, '')}" for kind, count in most_first))
    if report.unchecked:
        print(f"not checked: {report.unchecked:,} crops in folders or files that cannot be read; --prune keeps them")


def _warn(what: str, listed: Sequence[tuple[str, str]]) -> None:
    for name, reason in listed[:MAX_LISTED]:
        logger.warning("%s: %s: %s", what, name[:MAX_ID_CHARACTERS], reason)
    if len(listed) > MAX_LISTED:
        logger.warning("... and %d more (--json lists all)", len(listed) - MAX_LISTED)
