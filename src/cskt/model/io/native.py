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
from typing import Any, TypeVar

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cskt.config import ClipArchitecture, to_dict
from cskt.errors import SHORT, CsktError
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, load_json, parse_json
from cskt.utils.messages import one_line

FORMAT_VERSION = 1
METADATA_KEY = "cskt"
NOTE = "note"
"""Fact of a `MethodFile`: a condition that a reader of its model's scores must know."""
TOKEN_EMBEDDING = "text.token_embedding.weight"
TOKEN_ROWS = "text.token_embedding.rows"
HALF = (torch.float16, torch.bfloat16)
MAX_HEADER_BYTES = 100_000_000
"""Bytes of a header that safetensors reads."""
MAX_TOKEN_TABLE = 300_000_000
"""Numbers in the embeddings of all tokens, which a file may hold as few rows; the largest CLIP has a fifth of them."""
REMEDY = "not a file of cskt's own format, or a corrupt one: restore it, or make it again"
CONTENT: ConfigDict = {**JSON, "extra": "ignore", "arbitrary_types_allowed": True}
"""Configuration of the dataclasses below, as which metadata is read."""


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
    architecture: ClipArchitecture | None = None
    """In a merged file, which needs no backbone file."""
    known_token_ids: frozenset[int] | None = None
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
    tensors: dict[str, Tensor] = field(default_factory=dict)
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


def save_weights(path: Path, file: MethodFile | HeadsFile) -> None:
    """Write a `MethodFile` or a `HeadsFile`; a merged one must hold both towers."""
    kind = next(kind for kind, (schema, _) in KINDS.items() if isinstance(file, schema))
    fields = {item.name: getattr(file, item.name) for item in dataclasses.fields(file) if item.name != "tensors"}
    _write(path, file.tensors, {"kind": kind, **fields})


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
        state, architecture, facts: content of the file.
        half: store float16, at half the size.
        known_token_ids: write only these rows of the token embedding (a small file for a small vocabulary).
    """
    state = dict(state)
    if known_token_ids is not None:
        rows = torch.tensor(sorted(known_token_ids), dtype=torch.int32)
        state[TOKEN_ROWS] = rows
        state[TOKEN_EMBEDDING] = state[TOKEN_EMBEDDING][rows.long()]
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    _write(path, state, {"kind": "backbone", "architecture": architecture, "facts": dict(facts)})


def read_method(path: Path, *, only_metadata: bool = False) -> MethodFile:
    """Read the weights of a run, on request without their tensors."""
    return _read(path, MethodFile, only_metadata=only_metadata)


def read_heads(path: Path) -> HeadsFile:
    """Read the training heads of a run."""
    return _read(path, HeadsFile)


def read_backbone(path: Path) -> BackboneFile:
    """Read a file that `save_backbone` wrote, as float32.

    Rows of the token embedding that the file does not hold are drawn from the mean and deviation of those that it
    holds, the same at every reading: unknown words stay different from each other, so that a method can learn them.
    """
    file = _read(path, BackboneFile)
    state, known = dict(file.tensors), None
    if (rows := state.pop(TOKEN_ROWS, None)) is not None:
        known = frozenset(rows.tolist())
        state[TOKEN_EMBEDDING] = _all_rows(state.get(TOKEN_EMBEDDING), rows, file.architecture.vocab_size, path)
    # Tensors of another kind are in corrupt or forged files only; `weights.gather` refuses them.
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return dataclasses.replace(file, tensors=state, known_token_ids=known)


def _read(path: Path, schema: type[File], *, only_metadata: bool = False) -> File:
    tensors, metadata = read_safetensors(path, only_metadata=only_metadata)
    content = _content(path, metadata)
    if not isinstance(content, schema):
        names = dict(KINDS.values())
        found = names.get(type(content)) or f"a {SHORT.repr(content.kind)}"
        raise CsktError(f"{path}: holds {found}, expected {names[schema]}")
    return dataclasses.replace(content, tensors=tensors)


def kind_of(path: Path) -> str | None:
    """Return the kind of a safetensors file of our own, None for any other safetensors file."""
    metadata = read_safetensors(path, only_metadata=True)[1]
    if METADATA_KEY not in metadata:
        return None
    content = _content(path, metadata)
    return next((kind for kind, (schema, _) in KINDS.items() if isinstance(content, schema)), None) or content.kind


def read_safetensors(path: Path, *, only_metadata: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors (copies in memory, half precision as float32) and text metadata of a file."""
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
                return length <= MAX_HEADER_BYTES
            header = json.loads(stream.read(length))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        return bool(8 + length + end > num_bytes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _write(path: Path, tensors: Mapping[str, Tensor], content: dict[str, Any]) -> None:
    # One metadata entry with sorted keys: safetensors writes several in random order, so files would never be equal.
    text = json.dumps({"version": FORMAT_VERSION, **content}, sort_keys=True, default=_plain)
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(ready, temporary, metadata={METADATA_KEY: text})
        except SafetensorError as error:  # raised for a full disk
            raise OSError(one_line(error)) from error

    write_atomically(path, write)


def _plain(value: Any) -> Any:
    """Return a field of a file as JSON has it."""
    return sorted(value) if isinstance(value, frozenset) else to_dict(value)


def _content(path: Path, metadata: Mapping[str, str]) -> Any:
    """Return the metadata of a file as the dataclass of its kind, without tensors; `_AnyFile` for an unknown kind."""
    text = metadata.get(METADATA_KEY, "null")
    content = load_json(text, where=str(path), remedy=REMEDY)
    kind = content.get("kind") if isinstance(content, dict) else None
    schema, _ = KINDS.get(kind, (_AnyFile, "")) if isinstance(kind, str) else (_AnyFile, "")
    return parse_json(text, schema, where=str(path), remedy=REMEDY, version=("version", FORMAT_VERSION))


def _all_rows(known: Tensor | None, rows: Tensor, vocab_size: int, path: Path) -> Tensor:
    """Return the token table [vocab_size, width], made of the rows of some tokens."""
    if known is None or known.ndim != 2 or rows.ndim != 1 or len(rows) != len(known) or not len(rows):
        raise CsktError(f"{path}: '{TOKEN_ROWS}' does not fit '{TOKEN_EMBEDDING}'")
    if rows.is_floating_point() or rows.min() < 0 or rows.max() >= vocab_size:
        raise CsktError(f"{path}: '{TOKEN_ROWS}' holds ids outside 0 to {vocab_size - 1}")
    if vocab_size * known.shape[1] > MAX_TOKEN_TABLE:
        raise CsktError(f"{path}: '{TOKEN_EMBEDDING}' would unfold to {vocab_size:,} x {known.shape[1]:,} numbers")
    mean, deviation = known.float().mean(dim=0), known.float().std(dim=0, correction=0)
    table = torch.randn(vocab_size, known.shape[1], generator=torch.Generator().manual_seed(0))
    table.mul_(deviation).add_(mean)
    table[rows.long()] = known.float()
    return table
