"""`load`, which makes an `Encoder` of a model of any kind, and questions about a model that a path names."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

import torch

from cskt.config import RunConfig
from cskt.config.file_names import BEST, CONFIG
from cskt.config.types import WeightsChoice
from cskt.embed.encoder import Encoder
from cskt.embed.hub import hub_folder, is_hub_name, local_path, pinned
from cskt.embed.options import ComputeKeywords, EncodeOptions, ModelSource, merged
from cskt.embed.readers import ExportedReader, own_kind, reader_of
from cskt.errors import CsktError, out_of_memory_errors
from cskt.model.io.cache import CLIP_TINY, PUBLISHED, SUFFIXES, is_repository_name, locate
from cskt.model.io.native import read_method
from cskt.plugins import load_plugins
from cskt.utils.arguments import expect
from cskt.utils.messages import one_line
from cskt.utils.paths import expanded
from cskt.utils.terminal import printable

logger = logging.getLogger(__name__)


@out_of_memory_errors()
def load(
    path: str | Path,
    backbone: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str | None = None,
    image_height: int | None = None,
    image_width: int | None = None,
    stride: int | None = None,
    weights: WeightsChoice | None = None,
    settings: Mapping[str, Any] | None = None,
    ignore_extra: bool = False,
    plugins: str | Path | Iterable[str | Path] = (),
    **options: Unpack[ComputeKeywords],
) -> Encoder:
    """Load a model of any kind as an `Encoder`.

    Args:
        path: a run folder or its best.safetensors; a file of `cskt export --merge` or `Encoder.save`, or a folder of
            `cskt export --format`; a released folder of CSKT, IRRA, RDE, UP-Person or DM-Adapter (configs.yaml +
            best.pth or last.pth) or TBPS-CLIP (checkpoint_best.pth), or one of these files; a CLIP weight file or its
            folder, a published name such as "ViT-B/16", a Hugging Face repository, or "clip-tiny"; "hf:owner/name" or
            "hf:owner/name@revision", what `cskt push` has written to a repository.
        backbone: CLIP weights of an adapter-only run, if they are not where its config says.
        device: cpu, cuda, cuda:1 or mps; None: the best one of this machine.
        precision: fp32, bf16, fp16 or auto, see `EncodeOptions`; None: as the run was trained, fp32 for plain CLIP.
        image_height, image_width, stride: of plain CLIP weights, in pixels. None: 384 x 128, as all recipes for person
            crops; for a backbone file of our own, the size that it was made for.
        weights: `model` or `ema`, for a checkpoint that also holds the moving average of its weights.
        settings: what the file of plain CLIP weights does not state: fields of `BackboneConfig` (activation,
            vision_heads, text_heads, image_mean, image_std, interpolation).
        ignore_extra: load a released folder without the tensors that its method does not have, such as the heads of a
            code made from IRRA's. The model then is not that of its authors, nor are its scores.
        plugins: Python files or modules with the method parts that the model consists of; their code is run.
        options: templates, batch_size, num_workers, cache_dir, compile, show_progress; see `EncodeOptions`.

    Raises:
        CsktError: no model at `path`, a file that cannot be read, or weights over another backbone than they were
            trained on.

    Example:
        >>> cskt.load("clip-tiny", device="cpu", batch_size=64).image_size
        (128, 64)
    """
    expect(path, (str, Path), "path")
    expect(backbone, (str, Path, type(None)), "backbone")
    load_plugins(plugins)
    source = ModelSource(
        str(path), None if backbone is None else str(backbone), image_height, image_width, stride, precision, weights,
        None if settings is None else dict(settings), ignore_extra,
    )  # fmt: skip
    return load_checked(source, merged(EncodeOptions(device, precision), options))


def load_checked(source: ModelSource, options: EncodeOptions) -> Encoder:
    """Load the model that a user names; raises CsktError for an argument that has no effect on it."""
    check_arguments(source)
    return _load(source, options)


@out_of_memory_errors()
def load_source(source: ModelSource, options: EncodeOptions | None = None) -> Encoder:
    """Load a model for search: in the precision of `options`, else of its source, else `auto`."""
    options = options or EncodeOptions()
    precision = options.precision or source.precision or "auto"
    return _load(source, dataclasses.replace(options, precision=precision))


def _load(source: ModelSource, options: EncodeOptions) -> Encoder:
    """Load a model; the source of one on the Hub names the commit, so that a gallery finds the same again."""
    local = dataclasses.replace(source, path=str(local_path(source.path)))
    reader = reader_of(local.path)
    encoder = reader.load(local, options)
    if encoder.note and not reader.may_have_extra:  # a reader of such files has logged which tensors it left out
        logger.warning("%s: %s", source.path, printable(one_line(encoder.note)))
    if is_hub_name(source.path):
        encoder.source = dataclasses.replace(source, path=pinned(source.path))
    return encoder


def check_arguments(source: ModelSource) -> None:
    """Raise CsktError for a backbone if the model contains its own, and for an image size unless it is plain CLIP."""
    reader = reader_of(source.path)
    if isinstance(reader, ExportedReader):  # checks by itself
        return
    if source.backbone is not None and needed_backbone(Path(source.path)) is None:
        raise CsktError(f"{source.path}: contains its backbone; leave out --backbone (backbone=)")
    sizes = {name: getattr(source, name) for name in ("image_height", "image_width", "stride")}
    if stated := next((name for name, value in sizes.items() if value is not None and not reader.is_clip), None):
        raise CsktError(
            f"{source.path}: not plain CLIP weights, so {stated} is fixed; leave out --{stated.replace('_', '-')}"
        )


def run_config(path: Path) -> RunConfig | None:
    """Return the config of the run that a model is from; None for plain CLIP weights."""
    path = local_path(path)
    return reader_of(path).config(path)


def check_exists(model: str) -> None:
    """Check that a model argument is a file, a folder with a run or weights, a published name, or one of the Hub."""
    if is_hub_name(model):
        hub_folder(model)
        return
    path, published = expanded(model), [CLIP_TINY, *PUBLISHED]
    if path.is_dir() and reader_of(path).is_clip:
        try:
            locate(model)
        except CsktError as error:
            raise CsktError(f"{error}; and it is no run folder, for it has no {CONFIG}") from None
    if path.exists() or model in published or (is_repository_name(model) and not path.parent.is_dir()):
        return
    beside = [str(other) for other in path.parent.glob("*") if (other / CONFIG).is_file() or other.suffix in SUFFIXES]
    close = difflib.get_close_matches(model, [*published, *beside], n=1)
    known = f"did you mean '{close[0]}'?" if close else f"published names: {', '.join(published)}"
    raise CsktError(f"{model}: no such run folder, weight file or published name; {known}")


def needed_backbone(path: Path) -> str | None:
    """Return the backbone of an adapter-only run as its config names it; None for any other model."""
    path = local_path(path)
    weights = path / BEST if path.is_dir() else path
    if own_kind(weights) != "method":
        return None
    file = read_method(weights, only_metadata=True)
    return file.backbone_name if file.architecture is None else None


def absolute_source(source: ModelSource) -> ModelSource:
    """Return the same source with absolute paths, the backbone of an adapter-only run included.

    Names stay; one of the Hub gets its commit.
    """

    def resolved(name: str) -> str:
        if is_hub_name(name):
            return pinned(name)
        return str(expanded(name).resolve()) if expanded(name).exists() else name

    backbone = source.backbone
    if backbone is None and (needed := needed_backbone(expanded(source.path))) and Path(needed).exists():
        backbone = needed
    return dataclasses.replace(source, path=resolved(source.path), backbone=backbone and resolved(backbone))
