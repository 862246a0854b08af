"""Kinds of models that a path names, told apart without loading weights."""

from __future__ import annotations

import difflib
from pathlib import Path

from cskt.config import RunConfig, load_config, validate
from cskt.embed.exported import EXPORTED, is_exported, read_facts
from cskt.embed.models import RUN_WEIGHTS
from cskt.errors import CsktError
from cskt.model.io.cache import CLIP_TINY, PUBLISHED, SUFFIXES, is_repository_name, locate
from cskt.model.io.files import kind_of, read_method
from cskt.model.io.released.reader import read_released_config
from cskt.utils.paths import check_path, expanded

CONFIG, FLAT_CONFIG = "config.yaml", "configs.yaml"
"""Config of one of our runs; of a released CSKT folder."""


def check_exists(model: str) -> None:
    """Check that a model argument is a file, a folder with a run or weights, or a published name.

    Raises:
        CsktError: it is none of these.
    """
    path, published = expanded(model), [CLIP_TINY, *PUBLISHED]
    check_path(path)
    if path.is_dir() and not any((path / name).is_file() for name in (CONFIG, FLAT_CONFIG, RUN_WEIGHTS, EXPORTED)):
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


def run_config(model: Path) -> RunConfig | None:
    """Return the config of a run folder, a run's weight file, an exported run or a released CSKT folder.

    Plain CLIP weights have none: None.
    """
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
