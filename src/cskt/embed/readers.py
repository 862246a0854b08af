"""Readers of the kinds of models that a path names. `READERS` lists them in the order in which they are tried.

A new kind of model is one subclass of `Reader` and one entry in `READERS`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cskt.config import (
    CLIP_SETTINGS,
    CROP_SIZE,
    NO_METHOD,
    BackboneConfig,
    ClipArchitecture,
    DataConfig,
    RunConfig,
    as_trained,
    evaluation_interpolation,
    load_config,
    validate,
)
from cskt.config.file_names import BEST, CONFIG
from cskt.data.tokenizer import Tokenizer
from cskt.device import pick_device, pick_precision
from cskt.embed.encoder import Encoder
from cskt.embed.exported import EXPORTED, is_exported, load_exported, read_facts
from cskt.embed.hub import local_path
from cskt.embed.models import tokenizer_for
from cskt.embed.options import EncodeOptions, ModelSource
from cskt.errors import CsktError, MissingBackboneError
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.cache import CLIP_TINY, FORMER_CLIP_TINY
from cskt.model.io.native import NOTE, kind_of, read_method
from cskt.model.io.released.reader import is_released, read_released, read_released_config
from cskt.model.io.weights import assume_openai, load_backbone, load_state
from cskt.plugins import of_section, required

WHOLE = ("",)
"""Every tensor of a model, as a prefix of their names."""


class Loaded(NamedTuple):
    """A model as its files hold it."""

    model: DualEncoder
    tokenizer: Tokenizer
    config: RunConfig
    """Precision, templates and preprocessing are read from it."""
    note: str = ""
    """See `Encoder`."""


def _loaded(
    origin: str,
    config: RunConfig,
    architecture: ClipArchitecture,
    state: Mapping[str, Tensor],
    known_token_ids: frozenset[int] | None,
) -> Loaded:
    """Build the model of a config around `state`, which holds every tensor of it."""
    try:
        with required(of_section(config.plugins, "parts")), torch.device("meta"):  # load_state brings the memory
            model = DualEncoder(architecture, config.method, trainable="none")
    except CsktError as error:
        raise CsktError(f"{origin}: {error}") from None
    load_state(model, state, origin=origin, prefixes=WHOLE)
    return Loaded(model, tokenizer_for(model, config.data, known_token_ids), config)


class Reader(ABC):
    """Reads one kind of model."""

    is_clip: ClassVar[bool] = False
    """Plain CLIP weights, with settings of their own and no config."""
    may_hold_ema: ClassVar[bool] = False
    """Its files may also hold the moving average of the weights."""

    may_have_extra: ClassVar[bool] = False
    """Its files may hold tensors of modules that this package does not know."""

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Return whether a path is of this kind."""

    @abstractmethod
    def read(self, source: ModelSource) -> Loaded:
        """Read the model on the CPU."""

    def config(self, path: Path) -> RunConfig | None:
        """Return the config of the run that the model is from, without reading its weights; None if it is none."""
        return None

    def load(self, source: ModelSource, options: EncodeOptions) -> Encoder:
        """Read the model and make an encoder of it."""
        self.check(source)
        model, tokenizer, config, note = self.read(source)
        device = pick_device(options.device)
        precision = pick_precision(options.precision or config.precision, device, exact=config.precision)
        options = dataclasses.replace(
            options, device=device, precision=precision, templates=options.templates or config.data.templates
        )
        return Encoder(
            model, tokenizer, options, interpolation=evaluation_interpolation(config),
            apply_orientation=config.data.apply_orientation, source=source, config=None if self.is_clip else config,
            note=note,
        )  # fmt: skip

    def check(self, source: ModelSource) -> None:
        """Raise CsktError for an unknown value of `weights`, or an argument without effect on this kind of model."""
        if source.weights not in (None, "model", "ema"):
            raise CsktError(f"weights '{source.weights}': must be model or ema")
        if source.weights == "ema" and not self.may_hold_ema:
            raise CsktError(f"{source.path}: a trained run has one set of weights; leave out --weights ema")
        if source.ignore_extra and not self.may_have_extra:
            raise CsktError(
                f"{source.path}: not a released folder, so nothing can be ignored; leave out --ignore-extra"
            )
        if source.settings and not self.is_clip:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in source.settings)
            raise CsktError(f"{source.path}: not plain CLIP weights, so these are fixed; leave out {flags}")


class ExportedReader(Reader):
    """Folders of `cskt export --format`."""

    def matches(self, path: Path) -> bool:
        return is_exported(path)

    def read(self, source: ModelSource) -> Loaded:
        raise NotImplementedError  # `load` needs no tensors

    def config(self, path: Path) -> RunConfig | None:
        config = read_facts(path).config
        return None if config is None else validate(RunConfig, config, f"{path / EXPORTED}: config")

    def load(self, source: ModelSource, options: EncodeOptions) -> Encoder:
        self.check(source)
        if options.compile or source.backbone or source.image_height or source.image_width or source.stride:
            problem = "an exported model is whole; leave out --compile, --backbone and image sizes"
            raise CsktError(f"{source.path}: {problem}")
        encoder = load_exported(Path(source.path), options)
        encoder.source = source
        return encoder


class MethodFileReader(Reader):
    """Weight files of a run, of `cskt export --merge` and of `Encoder.save`."""

    def matches(self, path: Path) -> bool:
        return own_kind(path) == "method"

    def config(self, path: Path) -> RunConfig | None:
        return validate(RunConfig, read_method(path, only_metadata=True).config, f"{path}: config")

    def read(self, source: ModelSource) -> Loaded:
        path = Path(source.path)
        file = read_method(path)
        config = as_trained(validate(RunConfig, file.config, f"{path}: config"))
        if file.architecture is not None:
            loaded = _loaded(str(path), config, file.architecture, file.tensors, file.known_token_ids)
            return loaded._replace(note=file.facts.get(NOTE, ""))
        backbone_config = dataclasses.replace(config.backbone, name=source.backbone or config.backbone.name)
        try:
            if backbone_config.activation is None:  # a run of version 0.1, which did not record it
                backbone_config = assume_openai(backbone_config, sha256=file.backbone_sha256, archives_only=True)
            backbone = load_backbone(backbone_config, sha256=file.backbone_sha256)
        except CsktError as error:
            if version := FORMER_CLIP_TINY.get(file.backbone_sha256):
                raise MissingBackboneError(
                    f"{path}: trained over clip-tiny of version {version}, which a later version replaced; give its"
                    f" file with backbone= (--backbone OLD_FILE), SHA-256 {file.backbone_sha256}"
                ) from None
            raise MissingBackboneError(
                f"{path}: trained over {file.backbone_name} with SHA-256 {file.backbone_sha256}; give that file"
                f" with backbone= (--backbone): {error}"
            ) from None
        state = backbone.state | file.tensors
        return _loaded(str(path), config, backbone.architecture, state, backbone.known_token_ids)


class RunReader(MethodFileReader):
    """Run folders: config.yaml and best.safetensors."""

    def matches(self, path: Path) -> bool:
        return (path / BEST).is_file() or (path / CONFIG).is_file()

    def config(self, path: Path) -> RunConfig | None:
        return load_config(path / CONFIG, fit=False) if (path / CONFIG).is_file() else super().config(path / BEST)

    def read(self, source: ModelSource) -> Loaded:
        weights = Path(source.path) / BEST
        if not weights.is_file():
            raise CsktError(f"{weights}: no such file; the run has not completed an evaluation yet")
        return super().read(dataclasses.replace(source, path=str(weights)))


class ReleasedReader(Reader):
    """Folders that released programs leave, and files of weights in them."""

    may_hold_ema = may_have_extra = True

    def matches(self, path: Path) -> bool:
        return is_released(path)

    def config(self, path: Path) -> RunConfig | None:
        return read_released_config(path)

    def read(self, source: ModelSource) -> Loaded:
        found = read_released(Path(source.path), source.weights or "model", ignore_extra=source.ignore_extra)
        return _loaded(source.path, found.config, found.architecture, found.state, None)._replace(note=found.note)


class ClipReader(Reader):
    """Plain CLIP weights: a file, a folder, a published name, a repository."""

    is_clip = may_hold_ema = True

    def matches(self, path: Path) -> bool:
        return True

    def read(self, source: ModelSource) -> Loaded:
        is_ours = source.path == CLIP_TINY or own_kind(Path(source.path)) is not None
        height, width = (None, None) if is_ours else CROP_SIZE
        settings = source.settings or {}
        if unknown := settings.keys() - set(CLIP_SETTINGS):
            raise CsktError(f"settings: '{str(min(unknown))[:80]}' is not known; known: {', '.join(CLIP_SETTINGS)}")
        asked = {
            **settings, "name": source.path, "weights": source.weights or "model", "stride": source.stride,
            "image_height": source.image_height or height, "image_width": source.image_width or width,
        }  # fmt: skip
        backbone_config = validate(BackboneConfig, asked, source.path)
        backbone = load_backbone(backbone_config)
        data = validate(DataConfig, {"caption_length": backbone.architecture.context_length}, source.path)
        config = RunConfig("clip", backbone=backbone_config, data=data, **NO_METHOD)
        return _loaded(source.path, config, backbone.architecture, backbone.state, backbone.known_token_ids)


READERS: tuple[Reader, ...] = (ExportedReader(), RunReader(), ReleasedReader(), MethodFileReader(), ClipReader())
"""In the order in which they are tried; the last one takes everything."""


def reader_of(path: str | Path) -> Reader:
    """Return the reader of the model at a path."""
    path = local_path(path)
    return next(reader for reader in READERS if reader.matches(path))


def own_kind(path: Path) -> str | None:
    """Return `method` or `backbone` for a file of our own format; None for anything else."""
    return kind_of(path) if path.suffix == ".safetensors" and path.is_file() else None
