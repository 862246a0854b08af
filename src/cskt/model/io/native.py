"""Our own safetensors files: weights of a run or a whole model (`method`), a backbone, heads of the losses.

The tensors have our names. One metadata entry, `cskt`, holds everything else as JSON: format version, kind, and the
fields of the dataclass of that kind.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Ge, Lt
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cskt.config import ClipArchitecture, to_dict
from cskt.errors import SHORT, CsktError
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, load_json, parse_json
from cskt.utils.messages import one_line

RUN_WEIGHTS = "best.safetensors"
"""Weight file of a run folder."""
FORMAT_VERSION = 1
METADATA_KEY = "cskt"
TOKEN_EMBEDDING = "text.token_embedding.weight"
TOKEN_ROWS = "text.token_embedding.rows"
HALF = (torch.float16, torch.bfloat16)
LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads."""
LARGEST_TOKEN_TABLE = 300_000_000
"""Numbers in the embeddings of all tokens, which a file may hold as few rows; the largest CLIP has a fifth of them."""
REMEDY = "not a file of cskt's own format, or a damaged one: restore it, or make it again"
CONTENT: ConfigDict = {**JSON, "extra": "ignore", "arbitrary_types_allowed": True}
"""Configuration of the dataclasses below, as which metadata is read."""
TokenIds = list[Annotated[int, Ge(0), Lt(2**31)]]


@with_config(CONTENT)
@dataclass(frozen=True)
class MethodFile:
    """Weights of a training run for inference."""

    config: dict[str, Any]
    """The whole run configuration (`config.to_dict`)."""
    backbone_name: str
    backbone_sha256: str
    """Digest of the backbone file that the tensors were trained over; they fit no other."""
    facts: dict[str, str]
    """Text by name: epoch, scores, versions."""
    architecture: ClipArchitecture | None
    """In a merged file, which needs no backbone file."""
    known_token_ids: frozenset[int] | None
    """In a merged file, the only tokens that its backbone knows; None if it knows all."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The trained tensors alone, or in a merged file every tensor of the model."""


@with_config(CONTENT)
@dataclass(frozen=True)
class BackboneFile:
    """A CLIP in our names."""

    architecture: ClipArchitecture
    facts: dict[str, str]
    """Facts about the training of the weights."""
    known_token_ids: frozenset[int] | None = None
    """Tokens whose embedding the file holds; None if it holds all."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """`vision.*` and `text.*`, float32."""


@with_config(CONTENT)
@dataclass(frozen=True)
class HeadsFile:
    """Heads that only the losses of a training need, saved with the weights of the same moment."""

    weights_sha256: str
    """Digest of the method file that they belong to."""
    data_sha256: str
    """Digest of the training pairs, whose identities are the rows of a classifier."""
    facts: dict[str, str]
    """Text by name: epoch."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Names of the training objective, float32."""


@with_config(CONTENT)
@dataclass(frozen=True)
class _AnyFile:
    kind: str


KINDS: dict[str, tuple[type[Any], str]] = {
    "method": (MethodFile, "a method"),
    "backbone": (BackboneFile, "a backbone"),
    "heads": (HeadsFile, "training heads"),
}
"""Kind of a file -> its dataclass, and its name in messages."""
File = TypeVar("File", MethodFile, BackboneFile, HeadsFile)


def save_method(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    backbone_name: str,
    backbone_sha256: str,
    facts: Mapping[str, str],
    architecture: ClipArchitecture | None = None,
    known_token_ids: frozenset[int] | None = None,
) -> None:
    """Write a `MethodFile`; with `architecture` the tensors must include both towers.

    Raises:
        FileSystemError: the file cannot be written.
    """
    content = {
        "kind": "method",
        "config": dict(config),
        "backbone_name": backbone_name,
        "backbone_sha256": backbone_sha256,
        "facts": dict(facts),
        "architecture": None if architecture is None else to_dict(architecture),
        "known_token_ids": None if known_token_ids is None else sorted(known_token_ids),
    }
    _write(path, tensors, content)


def read_method(path: Path) -> MethodFile:
    """Read a file that `save_method` wrote.

    Raises:
        CsktError: missing, damaged, of another kind, or written by a newer version.
    """
    tensors, metadata = read_safetensors(path)
    return dataclasses.replace(_parse(path, metadata, MethodFile), tensors=tensors)


def save_backbone(
    path: Path,
    state: Mapping[str, Tensor],
    architecture: ClipArchitecture,
    *,
    facts: Mapping[str, str],
    half: bool = False,
    known_token_ids: frozenset[int] | None = None,
) -> None:
    """Write a `BackboneFile`.

    Args:
        path: the file.
        state: `vision.*` and `text.*`.
        architecture: sizes of that state, image size and stride included.
        facts: how the weights were made, text by name.
        half: store float16, at half the size.
        known_token_ids: write only these rows of the token embedding (a small file for a small vocabulary).

    Raises:
        FileSystemError: the file cannot be written.
    """
    state = dict(state)
    if known_token_ids is not None:
        rows = torch.tensor(sorted(known_token_ids), dtype=torch.int32)
        state[TOKEN_ROWS] = rows
        state[TOKEN_EMBEDDING] = state[TOKEN_EMBEDDING][rows.long()]
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    _write(path, state, {"kind": "backbone", "architecture": to_dict(architecture), "facts": dict(facts)})


def read_backbone(path: Path) -> BackboneFile:
    """Read a file that `save_backbone` wrote, as float32.

    Rows of the token embedding that the file does not hold are drawn from the mean and deviation of those that it
    holds, the same at every reading: unknown words stay different from each other, so that a method can learn them.

    Raises:
        CsktError: missing, damaged, of another kind, or written by a newer version.
    """
    state, metadata = read_safetensors(path)
    file = _parse(path, metadata, BackboneFile)
    known: frozenset[int] | None = None
    if (rows := state.pop(TOKEN_ROWS, None)) is not None:
        known = frozenset(rows.tolist())
        state[TOKEN_EMBEDDING] = _all_rows(state.get(TOKEN_EMBEDDING), rows, file.architecture.vocab_size, path)
    # Tensors of another kind are in damaged or forged files only; `weights.gather` refuses them.
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return dataclasses.replace(file, state=state, known_token_ids=known)


def save_heads(
    path: Path, tensors: Mapping[str, Tensor], *, weights_sha256: str, data_sha256: str, facts: Mapping[str, str]
) -> None:
    """Write a `HeadsFile`.

    Raises:
        FileSystemError: the file cannot be written.
    """
    content = {"kind": "heads", "weights_sha256": weights_sha256, "data_sha256": data_sha256, "facts": dict(facts)}
    _write(path, tensors, content)


def read_heads(path: Path) -> HeadsFile:
    """Read a file that `save_heads` wrote.

    Raises:
        CsktError: missing, damaged, of another kind, or written by a newer version.
    """
    tensors, metadata = read_safetensors(path)
    return dataclasses.replace(_parse(path, metadata, HeadsFile), tensors=tensors)


def kind_of(path: Path) -> str | None:
    """Return the kind of a safetensors file of our own, None for any other safetensors file.

    Raises:
        CsktError: not a whole safetensors file, or metadata that is damaged or of a newer version.
    """
    metadata = read_safetensors(path, only_metadata=True)[1]
    if METADATA_KEY not in metadata:
        return None
    content = _content(path, metadata)
    return next((kind for kind, (schema, _) in KINDS.items() if isinstance(content, schema)), None) or content.kind


def read_method_metadata(path: Path) -> MethodFile:
    """Read a file that `save_method` wrote, without its tensors; see `read_method`."""
    return _parse(path, read_safetensors(path, only_metadata=True)[1], MethodFile)


def read_safetensors(path: Path, *, only_metadata: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors (copies in memory, half precision as float32) and text metadata of a file.

    Raises:
        CsktError: missing, truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            names = [] if only_metadata else stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
            # One copy, which widening makes by itself.
            copies = {name: each.float() if each.dtype in HALF else each.clone() for name, each in tensors.items()}
            return copies, stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        remedy = "; it ends too early, fetch it again" if _is_cut_short(path) else ""
        raise CsktError(f"{path}: cannot be read as safetensors: {one_line(error)}{remedy}") from None


def _is_cut_short(path: Path) -> bool:
    """Return whether a safetensors file has fewer bytes than its header says."""
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if 8 + length > num_bytes:
                return length <= LONGEST_HEADER
            header = json.loads(stream.read(length))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        return bool(8 + length + end > num_bytes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _write(path: Path, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> None:
    # One metadata entry with sorted keys: safetensors writes several in random order, so files would never be equal.
    metadata = {METADATA_KEY: json.dumps({"version": FORMAT_VERSION, **content}, sort_keys=True)}
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(ready, temporary, metadata=metadata)
        except SafetensorError as error:  # raised for a full disk
            raise OSError(one_line(error)) from error

    write_atomically(path, write)


def _content(path: Path, metadata: Mapping[str, str]) -> Any:
    """Return the metadata of a file as the dataclass of its kind, without tensors; `_AnyFile` for an unknown kind."""
    text = metadata.get(METADATA_KEY, "null")
    content = load_json(text, where=str(path), remedy=REMEDY)
    kind = content.get("kind") if isinstance(content, dict) else None
    schema, _ = KINDS.get(kind, (_AnyFile, "")) if isinstance(kind, str) else (_AnyFile, "")
    return parse_json(text, schema, where=str(path), remedy=REMEDY, version=("version", FORMAT_VERSION))


def _parse(path: Path, metadata: Mapping[str, str], schema: type[File]) -> File:
    content = _content(path, metadata)
    if not isinstance(content, schema):
        names = dict(KINDS.values())
        found = names.get(type(content)) or f"a {SHORT.repr(content.kind)}"
        raise CsktError(f"{path}: holds {found}, expected {names[schema]}")
    return content


def _all_rows(known: Tensor | None, rows: Tensor, vocab_size: int, path: Path) -> Tensor:
    """Return the token table [vocab_size, width], made of the rows of some tokens."""
    if known is None or known.ndim != 2 or rows.ndim != 1 or len(rows) != len(known) or not len(rows):
        raise CsktError(f"{path}: '{TOKEN_ROWS}' does not fit '{TOKEN_EMBEDDING}'")
    if rows.is_floating_point() or rows.min() < 0 or rows.max() >= vocab_size:
        raise CsktError(f"{path}: '{TOKEN_ROWS}' holds ids outside 0 to {vocab_size - 1}")
    if vocab_size * known.shape[1] > LARGEST_TOKEN_TABLE:
        raise CsktError(f"{path}: '{TOKEN_EMBEDDING}' would unfold to {vocab_size:,} x {known.shape[1]:,} numbers")
    mean, deviation = known.float().mean(dim=0), known.float().std(dim=0, correction=0)
    noise = torch.randn(vocab_size, known.shape[1], generator=torch.Generator().manual_seed(0))
    table = mean + deviation * noise
    table[rows.long()] = known.float()
    return table
