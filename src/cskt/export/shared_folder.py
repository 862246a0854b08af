"""Folders of `cskt push`: a model as `cskt.load` takes it, without paths of the machine that made it.

A run gives `best.safetensors` (what it trained, and the digest of its backbone) and `config.yaml`; a file of
`cskt export --merge` or `Encoder.save` likewise, whole; a folder of `cskt export --format` its own files. Evaluations,
events and checkpoints stay where they are: they name people and folders.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from cskt.config import RunConfig, save_config, to_dict, validate
from cskt.config.architecture import VOCAB_SIZE
from cskt.config.file_names import BEST, CONFIG
from cskt.data.tokenizer import knows_few_words
from cskt.embed import is_exported
from cskt.embed.exported import EXPORTED, load_exported, read_facts
from cskt.embed.hub import is_hub_name
from cskt.errors import CsktError, file_system_errors
from cskt.export.folder import write_facts
from cskt.model.io.cache import CLIP_TINY, PUBLISHED, is_repository_name
from cskt.model.io.native import NOTE, kind_of, read_method, save_weights
from cskt.utils.paths import expanded

STACK_TRACE = b"pkg.torch.onnx.stack_trace"
"""Key in graphs of version 0.1 whose values name folders."""


@dataclass(frozen=True)
class SharedModel:
    """Facts about the model in a folder for others."""

    config: RunConfig | None
    """Config of the run, without paths; None for plain CLIP that was exported."""
    backbone_name: str
    """Name of the backbone, without its folder."""
    backbone_sha256: str
    """Digest of the backbone file that loading needs as well; empty for a whole model."""
    knows_few_words: bool
    """True if the model knows only the words of generated pedestrians."""
    form: str
    """`method`, what a run trained; `whole`; or the format of an export: `onnx`, `openvino`."""
    image_size: tuple[int, int] | None
    """Height and width in pixels; None if the files do not state it."""
    best_epoch: int | None
    """Epoch whose weights these are; None if unknown."""
    note: str = ""
    """A condition that a reader of the model's scores must know."""


def write_shared(model: Path, folder: Path) -> SharedModel:
    """Write the files of a model into an empty folder.

    Args:
        model: run folder, file of `cskt export --merge` or `Encoder.save`, or folder of `cskt export --format`.
        folder: receives the files; created if it is missing.

    Raises:
        CsktError: `model` is of another kind, or cannot be read.
    """
    if is_exported(model):
        return _write_exported(model, folder)
    weights = model / BEST if model.is_dir() else model
    if weights.suffix != ".safetensors" or not weights.is_file() or kind_of(weights) != "method":
        raise CsktError(
            f"{model}: no run with {BEST}, no file of 'cskt export --merge' and no folder of 'cskt export"
            " --format'; write another model with Encoder.save(PATH), and give that path"
        )
    return _write_method(weights, folder)


def _write_method(weights: Path, folder: Path) -> SharedModel:
    file = read_method(weights)
    config = without_places(validate(RunConfig, file.config, f"{weights}: config"))
    backbone = shown_name(file.backbone_name)
    source = {name: shown_name(text) if name == "source" else text for name, text in file.facts.items()}
    shared = dataclasses.replace(file, config=to_dict(config), backbone_name=backbone, facts=source)
    save_weights(folder / BEST, shared)
    with file_system_errors(folder / CONFIG):
        save_config(config, folder / CONFIG)
    form = "method" if file.architecture is None else "whole"
    digest = file.backbone_sha256 if form == "method" else ""
    vocab_size = VOCAB_SIZE if file.architecture is None else file.architecture.vocab_size
    few_words = backbone == CLIP_TINY or knows_few_words(file.known_token_ids, vocab_size)
    sizes = config.backbone if file.architecture is None else file.architecture
    image_size = (sizes.image_height, sizes.image_width) if sizes.image_height and sizes.image_width else None
    epoch = file.facts.get("epoch", "")
    best_epoch = int(epoch) if epoch.isdecimal() else None
    note = file.facts.get(NOTE, "")
    return SharedModel(config, backbone, digest, few_words, form, image_size, best_epoch, note)


def _write_exported(model: Path, folder: Path) -> SharedModel:
    load_exported(model)  # checks the digests
    facts = read_facts(model)
    config = None if facts.config is None else validate(RunConfig, facts.config, f"{model / EXPORTED}: config")
    config = None if config is None else without_places(config)
    with file_system_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in facts.sha256:
            shutil.copyfile(model / name, folder / name)
            if name.endswith(".onnx") and STACK_TRACE in (folder / name).read_bytes():
                raise CsktError(f"{model / name}: names folders of the machine that wrote it; export again")
    write_facts(folder, dataclasses.replace(facts, config=None if config is None else to_dict(config)))
    sizes, backbone = facts.architecture, config.backbone.name if config else ""
    image_size = sizes.image_height, sizes.image_width
    few_words = knows_few_words(facts.known_token_ids, sizes.vocab_size)
    return SharedModel(config, backbone, "", few_words, facts.form, image_size, None, facts.note)


def without_places(config: RunConfig) -> RunConfig:
    """Return a config in which every path of this machine is only its last component.

    Names of published weights and of repositories stay, and so do all other settings. A text in the settings of a
    plug-in is a path if it is absolute, begins with `~`, `./` or `../`, or names a file or folder in another one.
    """
    default = RunConfig()
    data = dataclasses.replace(
        config.data, root=default.data.root, cache_dir=None,
        mix=tuple(dataclasses.replace(each, root=default.data.root) for each in config.data.mix),
    )  # fmt: skip
    return dataclasses.replace(
        config,
        output_dir=default.output_dir,
        device=default.device,
        init_from=None if config.init_from is None else _shown_run(config.init_from),
        backbone=dataclasses.replace(config.backbone, name=shown_name(config.backbone.name)),
        data=data,
        parts=_settings(config.parts),
        hooks=_settings(config.hooks),
        loss=dataclasses.replace(config.loss, constants=_settings(config.loss.constants)),
    )


def shown_name(name: str) -> str:
    """Return the name of a model as others may see it: that of a published one, else the last component of its path."""
    return name if is_public(name) else PureWindowsPath(name).name


def _shown_run(name: str) -> str:
    """Return the name of a run or merged file; `owner/name` without `hf:` is a path of this machine, never the Hub."""
    return name if is_hub_name(name) else PureWindowsPath(name).name


def is_public(name: str) -> bool:
    """Return whether a backbone is found by its name on every machine: no file or folder here has that name."""
    if name in (CLIP_TINY, *PUBLISHED) or is_hub_name(name):
        return True
    return is_repository_name(name) and not expanded(name).exists()


def _settings(by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings of plug-ins, of every path only the last component."""
    return {
        name: {field: _without_folder(value) for field, value in fields.items()} for name, fields in by_name.items()
    }


def _without_folder(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_without_folder(key): _without_folder(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folder(item) for item in value]
    return PureWindowsPath(value).name if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    if text.startswith(("/", "~", "./", "../", ".\\", "..\\")) or PureWindowsPath(text).is_absolute():
        return True
    return PureWindowsPath(text).name != text and os.path.lexists(text)
