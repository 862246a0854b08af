"""Writer of exported folders, complete or not at all: graphs, tokenizer and facts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import Regex, normalizers, processors
from torch import Tensor

from cskt.config import RunConfig, to_dict
from cskt.data.tokenizer import MAX_CLEAN_WORDS, PUNCTUATION, clip_bpe
from cskt.embed import EXPORTED, Encoder, is_exported
from cskt.embed.exported import (
    EXPORT_FILES,
    FORMAT_VERSION,
    SHORTEST_CAPTION,
    TOKENIZER,
    ExportedFacts,
    Form,
    read_facts,
)
from cskt.errors import CsktError, file_system_errors
from cskt.export.graphs import write_graphs
from cskt.model.io.cache import sha256_of
from cskt.utils.files import write_errors
from cskt.utils.messages import require
from cskt.utils.paths import check_path

logger = logging.getLogger(__name__)

T = TypeVar("T")

NUM_CALIBRATION = 300
"""Images, and captions; as many as NNCF reads by default."""
NEEDED: dict[Form, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
"""Packages of the extra that is named like the format."""


def check_possible(form: Form, target: Path, *, int8: bool) -> None:
    """Check that an export is possible and its folder usable, before anything is loaded."""
    if int8 and form != "openvino":
        raise CsktError(f"--int8 is made by OpenVINO and not with --format {form}; give --format openvino")
    check_replaceable(target)
    require(form, *NEEDED[form])
    if target.is_symlink() or target.is_file() or (target.is_dir() and _others(target)):
        raise CsktError(f"{target}: holds something else than an exported model; name another folder with --output")


def _others(folder: Path) -> list[Path]:
    """Return the files of a folder that no export wrote."""
    entries = sorted(folder.iterdir())
    if not is_exported(folder):
        return entries
    return [path for path in entries if path.name not in EXPORT_FILES or path.is_symlink() or not path.is_file()]


def check_replaceable(folder: Path) -> None:
    """Check that a folder can be replaced: neither the working directory nor one that contains it."""
    check_path(folder)
    with file_system_errors(folder):
        place, here = folder.resolve(), Path.cwd()
    if place == here or place in here.parents:
        raise CsktError(f"{folder}: is or contains the working directory; name a new folder with --output")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target`, which may be an older export, if nothing is raised."""
    check_replaceable(target)
    fresh, older = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        with write_errors(target):
            fresh.mkdir(parents=True)
            yield fresh
            if target.exists():
                target.rename(older)
            fresh.rename(target)
    finally:
        if older.exists() and not target.exists():
            older.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
    if older.is_dir():
        _delete_export(older)


def _delete_export(folder: Path) -> None:
    """Delete the files of an export, and their folder unless it holds something else."""
    others = _others(folder)
    try:
        for path in folder.iterdir():
            if path not in others:
                path.unlink()
        folder.rmdir()
    except OSError as error:
        logger.warning("%s: the previous export could not be deleted: %s", folder, error.strerror or error)


def write_folder(
    encoder: Encoder,
    folder: Path,
    form: Form,
    *,
    config: RunConfig | None = None,
    calibration_images: Sequence[Tensor] = (),
    calibration_captions: Sequence[str] = (),
) -> None:
    """Write the graphs of an encoder and the files beside them into an empty folder; see `cskt.embed.exported`.

    Args:
        encoder: the source, in float32.
        folder: an empty folder.
        form: the runtime.
        config: the run's config; None if the source is no run.
        calibration_images: pixels [3, H, W] uint8 of a few hundred typical images. With them, the image graph computes
            in int8 (OpenVINO only).
        calibration_captions: a few hundred typical captions. With them, the text graph computes in int8.
    """
    architecture, known_ids = encoder.model.architecture, encoder.tokenizer.known_ids
    longest = encoder.tokenizer.context_length
    write_graphs(encoder, folder, form, calibration_images, calibration_captions)
    portable_tokenizer(longest, architecture.vocab_size).save(str(folder / TOKENIZER))
    digests = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    of_int8 = hashlib.sha256(json.dumps([encoder.fingerprint, digests]).encode()).hexdigest()
    punctuation = f"each of {PUNCTUATION} to a space, lower case, the first {MAX_CLEAN_WORDS} words, "
    punctuation = punctuation if encoder.tokenizer.clean_captions else ""
    facts = ExportedFacts(
        form=form,
        precision="int8" if calibration_images else "fp32",
        text_precision="int8" if calibration_captions else "fp32",
        fingerprint=of_int8 if calibration_images or calibration_captions else encoder.fingerprint,
        architecture=architecture,
        longest_caption=longest,
        known_token_ids=None if known_ids is None else tuple(sorted(known_ids)),
        templates=encoder.templates,
        interpolation=encoder.interpolation,
        embed_dim=encoder.embed_dim,
        apply_orientation=encoder.apply_orientation,
        clean_captions=encoder.tokenizer.clean_captions,
        note=encoder.note,
        num_parameters=encoder.model.num_parameters(),
        config=None if config is None else to_dict(config),
        sha256=digests,
        usage={
            "images": f"RGB, resized to {architecture.image_height} x {architecture.image_width} (height x width,"
            f" {encoder.interpolation} with antialiasing, aspect ratio not kept), uint8 [B, 3, H, W], not normalised:"
            f" the graph subtracts {list(architecture.image_mean)} and divides by {list(architecture.image_std)}, of"
            " pixels in [0, 1]",
            "captions": f"each template around it, {punctuation}ftfy.fix_text, html.unescape twice, {TOKENIZER}; int64"
            f" [B, L], L from {SHORTEST_CAPTION} to {longest}, zeros after the end token",
            "features": "rows of length 1, whose scalar products are cosines; those of several templates are averaged"
            " and brought back to length 1",
        },
        versions={name: version(name) for name in ("cskt", "torch", *NEEDED[form])},
    )
    write_facts(folder, facts)


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` values, spread evenly over those given."""
    step = max(1.0, len(values) / count)
    return [values[int(step * number)] for number in range(min(len(values), count))]


def calibration_pixels(paths: Sequence[Path], encoder: Encoder) -> list[Tensor]:
    """Read some hundred images, spread evenly over those given, as [3, H, W] uint8; unreadable ones are skipped."""
    pixels = []
    for path in spread(paths, NUM_CALIBRATION):
        try:
            pixels.append(encoder.read_image(path))
        except CsktError as error:
            logger.warning("skipped in calibration: %s", error)
    if not pixels:
        raise CsktError("none of the images to calibrate on can be read; give others with --calibrate-on")
    return pixels


def write_parity(folder: Path, parity: dict[str, Any]) -> None:
    """Write the result of the check beside the graphs."""
    write_facts(folder, dataclasses.replace(read_facts(folder), parity=parity))


def write_facts(folder: Path, facts: ExportedFacts) -> None:
    """Write `exported.json`."""
    content = {"format_version": FORMAT_VERSION, **to_dict(facts)}
    with file_system_errors(folder / EXPORTED):
        (folder / EXPORTED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def portable_tokenizer(longest: int, vocab_size: int) -> tokenizers.Tokenizer:
    """Return CLIP's tokenizer for other programs, which gives our ids for text without mojibake and HTML entities."""
    tokenizer = tokenizers.Tokenizer.from_str(clip_bpe(vocab_size).to_str())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab_size - 2), (end, vocab_size - 1)]
    )
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=0, pad_token="!")
    return tokenizer
