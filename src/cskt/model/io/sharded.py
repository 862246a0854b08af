"""Weights in several files with an index, as Hugging Face writes large models: `model.safetensors.index.json`.

The index is somebody else's file: a shard is named by a file name alone, and lies beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Len
from pydantic.dataclasses import dataclass

from cskt.errors import CsktError
from cskt.model.io.preprocessing import FOREIGN
from cskt.utils.json_files import read_json

INDEX = ".index.json"
MOST_SHARDS = 1000


@dataclass(config=FOREIGN, frozen=True)
class _Index:
    weight_map: Annotated[dict[str, str], Len(min_length=1, max_length=1_000_000)]
    """Name of a tensor -> name of the shard that holds it."""


def is_index(path: Path) -> bool:
    """Return whether a file is, by its name, an index of shards."""
    return path.name.endswith(INDEX)


def shard_names(index: Path) -> list[str]:
    """Return the names of the shards of an index, in order, each once.

    Raises:
        CsktError: the index cannot be read, or a name is not that of a file beside it.
    """
    names = sorted(set(weight_map(index).values()))
    for name in names:
        # Not `paths.inside`: in the cache of huggingface_hub every file is a link to elsewhere.
        if Path(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise CsktError(f"{index}: 'weight_map' names the shard {name[:80]!r}; a shard is a file beside its index")
    if len(names) > MOST_SHARDS:
        raise CsktError(f"{index}: 'weight_map' names {len(names):,} shards, at most {MOST_SHARDS:,} are read")
    return names


def shard_paths(index: Path) -> list[Path]:
    """Return the files of the shards of an index.

    Raises:
        CsktError: see `shard_names`; or a shard is missing.
    """
    paths = [index.with_name(name) for name in shard_names(index)]
    if missing := [path.name for path in paths if not path.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CsktError(f"{index}: the shard {missing[0]}{more} is missing; put it beside the index")
    return paths


def weight_map(index: Path) -> dict[str, str]:
    """Return which shard holds which tensor.

    Raises:
        CsktError: the index cannot be read, or has another form.
    """
    return read_json(index, _Index, remedy="copy the index of the model's repository anew").weight_map
