"""`cskt export --format`: a model for ONNX Runtime or OpenVINO, checked against its source."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from torch import Tensor

from cskt.cli.model_flags import add_dataset_flags
from cskt.cli.parsing import Parser
from cskt.config import RunConfig
from cskt.data.records import Split
from cskt.embed import Encoder, load
from cskt.embed.exported import is_exported, load_exported
from cskt.embed.hub import local_path
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import CsktError
from cskt.evaluation.evaluate import split_of
from cskt.export.check import (
    Parity,
    TowerParity,
    first_images,
    generated_captions,
    parity_on_generated,
    parity_on_split,
)
from cskt.export.folder import (
    NUM_CALIBRATION,
    atomic_folder,
    calibration_pixels,
    check_possible,
    spread,
    write_folder,
    write_parity,
)
from cskt.gallery.indexing.scanning import ImageSource
from cskt.gallery.manifest import is_gallery, read_manifest
from cskt.gallery.opening import source_to_index
from cskt.gallery.originals import ORIGINALS
from cskt.utils.terminal import json_text

logger = logging.getLogger(__name__)

NUM_CHECKED_IMAGES = 500
TOLERANCE = {"fp32": 0.1, "int8": 1.0}
"""Points of R1 that an export may differ, for int8 lose, where --tolerance does not say."""


def add_runtime_flags(parser: Parser) -> None:
    """Add the flags that belong to `--format`."""
    group = parser.add_argument_group("with --format, which checks the export on a split")
    add = group.add_argument
    # fmt: off
    add("--output", type=Path, metavar="FOLDER",
        help="folder to write (default: RUN/onnx, RUN/openvino, RUN/int8, RUN/released)")
    add("--int8", action="store_true", default=None, help="image tower in int8, with openvino; its cost is measured")
    add("--int8-text", action="store_true", default=None, help="with --int8: the text tower in int8, too")
    add("--calibrate-on", type=Path, metavar="FOLDER",
        help="gallery or folder of crops whose images set int8's ranges (default: those that the run was trained on)")
    add("--tolerance", type=float, metavar="POINTS", help="R1 that may differ (default: 0.1; that int8 may lose: 1)")
    add_dataset_flags(group, "val")
    add("--check-images", type=int, metavar="N",
        help=f"images of it to check on, with their captions, 0 for all (default: {NUM_CHECKED_IMAGES})")
    add("--json", action="store_true", default=None, help="what the check found as JSON, instead of a table")
    # fmt: on


RUNTIME_FLAGS = (
    "output", "int8", "int8_text", "calibrate_on", "tolerance", "dataset", "root", "split", "check_images", "json",
)  # fmt: skip


def export_runtime(flags: argparse.Namespace) -> None:
    """Write the folder, check it, and only then rename it to its place."""
    precision = "int8" if flags.int8 else "fp32"
    if flags.output is None and not flags.run.is_dir():
        raise CsktError(f"{flags.run} is no folder to put the export into; say where: --output FOLDER")
    target = flags.output or flags.run / ("int8" if flags.int8 else flags.format)
    check_flags(flags)
    check_possible(flags.format, target, int8=bool(flags.int8))
    check_exists(str(flags.run))
    if is_exported(local_path(flags.run)):
        raise CsktError(f"{flags.run}: is an exported model already; export the run that it was made from")
    config = run_config(flags.run)
    split = checked_split(flags, config)
    source = load(
        flags.run, flags.backbone, "cpu", precision="fp32", weights=flags.weights or "model",
        ignore_extra=flags.ignore_extra,
    )  # fmt: skip
    images = calibration_images(flags, config, source) if flags.int8 else []
    captions = calibration_captions(flags, config) if flags.int8_text else []
    with atomic_folder(target) as fresh:
        logger.info("writing %s, %s", flags.format, precision)
        write_folder(
            source, fresh, flags.format, config=config, calibration_images=images, calibration_captions=captions
        )
        exported = load_exported(fresh)
        logger.info("checking it on %s", f"{split.dataset} {split.name}" if split else "generated pedestrians")
        parity = parity_on_split(source, exported, split) if split else parity_on_generated(source, exported)
        int8 = [name for name, inputs in (("images", images), ("captions", captions)) if inputs]
        parity.check(int8, TOLERANCE[precision] if flags.tolerance is None else flags.tolerance)
        write_parity(fresh, parity.summary())
    num_bytes = sum(path.stat().st_size for path in target.iterdir())
    if flags.json:
        facts = {"folder": str(target), "format": flags.format, "precision": precision, "bytes": num_bytes}
        inputs = {"calibration_images": len(images), "calibration_captions": len(captions)}
        print(json_text(facts | inputs | {"parity": parity.summary()}))
    else:
        of_text = ", captions int8" if captions else ""
        print(f"{target}: {flags.format}, {precision}{of_text}, {num_bytes / 1e6:.1f} MB")
        print(parity_table(parity))


def check_flags(flags: argparse.Namespace) -> None:
    """Check that the flags of `add_runtime_flags` belong together."""
    if flags.int8_text and not flags.int8:
        raise CsktError("--int8-text changes nothing without --int8")
    if flags.calibrate_on and not flags.int8:
        raise CsktError("--calibrate-on changes nothing without --int8")
    if flags.tolerance is not None and not 0 <= flags.tolerance <= 100:
        raise CsktError(f"--tolerance {flags.tolerance:g}: give points of R1, from 0 to 100")
    if flags.check_images is not None and flags.check_images < 0:
        raise CsktError(f"--check-images {flags.check_images}: give a number of images, or 0 for all")


def checked_split(flags: argparse.Namespace, config: RunConfig | None) -> Split | None:
    """Return the split to check on; None if the user names no data and that of the model is not here."""
    named = flags.dataset or flags.root or flags.split
    if not named and (config is None or not Path(config.data.root).is_dir()):
        instead = "checked on generated pedestrians, features only; for R1 give --dataset and --root"
        logger.warning("no data set found: %s", instead)
        return None
    default = "val" if config is None else config.data.select_on
    split = split_of(str(flags.run), flags.dataset, flags.root, flags.split or default)
    return first_images(split, NUM_CHECKED_IMAGES if flags.check_images is None else flags.check_images)


def calibration_images(flags: argparse.Namespace, config: RunConfig | None, source: Encoder) -> list[Tensor]:
    """Return uint8 pixels [3, H, W] of some hundred crops, spread over a gallery, a folder or the training split."""
    if flags.calibrate_on:
        paths = crops_of(flags.calibrate_on)
    elif config is not None and Path(flags.root or config.data.root).is_dir():
        paths = split_of(str(flags.run), flags.dataset, flags.root, "train").image_paths
    else:
        raise CsktError("int8 takes its ranges from crops; give a gallery or a folder of them with --calibrate-on")
    return calibration_pixels(paths, source)


def calibration_captions(flags: argparse.Namespace, config: RunConfig | None) -> list[str]:
    """Return some hundred captions, of the training split if it is here, else of generated pedestrians."""
    if flags.root or (config is not None and Path(config.data.root).is_dir()):
        captions = split_of(str(flags.run), flags.dataset, flags.root, "train").captions
        return spread(captions, NUM_CALIBRATION)
    logger.warning("no training captions found: ranges of the text tower are taken from captions of generated people")
    return generated_captions(NUM_CALIBRATION)


def crops_of(folder: Path) -> list[Path]:
    """Return the image files below a folder; for a gallery, those of its indexed folder and uploaded ones."""
    if is_gallery(folder):
        manifest = read_manifest(folder)
        paths = sorted(path for path in (folder / ORIGINALS).rglob("*") if path.is_file())
        if manifest.images is not None:
            source = source_to_index(folder, manifest)
            paths += [source.folder / name for name in source.scan(folder).files]
    else:
        paths = [folder / name for name in ImageSource(folder).scan().files]
    if not paths:
        raise CsktError(f"--calibrate-on {folder}: holds no images")
    return paths


def parity_table(parity: Parity) -> str:
    """Return the result of the check as a table."""

    def line(name: str, tower: TowerParity) -> str:
        return f"  {name:<10}{tower.count:>8}{tower.largest_difference:>22.1e}{tower.smallest_cosine:>18.6f}"

    lines = [
        f"checked on {parity.data}",
        f"  {'':<10}{'number':>8}{'largest difference':>22}{'smallest cosine':>18}",
        line("images", parity.images),
        line("captions", parity.captions),
    ]
    if parity.source is not None and parity.exported is not None:
        lines.append(f"  {'percent':<10}{'source':>8}{'exported':>22}{'difference':>18}")
        for name, key in (("R1", "r1"), ("mAP", "mean_ap")):
            before, after = 100 * parity.source[key], 100 * parity.exported[key]
            lines.append(f"  {name:<10}{before:>8.2f}{after:>22.2f}{after - before:>+18.2f}")
    return "\n".join(lines)
