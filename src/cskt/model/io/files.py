"""Our own safetensors files: what a run learned, a whole merged model, a backbone.

The tensors carry our names. One metadata entry, `cskt`, holds everything else as JSON: format version, kind, run
configuration, backbone name and SHA-256, architecture, facts. Every file is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cskt.config import ClipArchitecture, to_dict, validate
from cskt.errors import SHORT, CsktError
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, load_json, parse_json
from cskt.utils.messages import one_line

RUN_WEIGHTS = "best.safetensors"
"""Weight file of a run folder."""
FORMAT_VERSION = 1
METADATA_KEY = "cskt"
TOKEN_EMBEDDING = "text.token_embedding.weight"
HALF = (torch.float16, torch.bfloat16)
LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors reads."""
TOKEN_ROWS = "text.token_embedding.rows"
LARGEST_TOKEN_TABLE = 300_000_000
"""Numbers in the embeddings of all tokens; the largest CLIP has a fifth. Few rows in a file stand for all of them."""

REMEDY = "not a file of cskt's own format, or a damaged one: restore it, or make it again"
OPEN: ConfigDict = {**JSON, "extra": "ignore"}


@with_config(OPEN)
@dataclass(frozen=True)
class _AnyContent:
    """Metadata that every file holds."""

    kind: str


@with_config(OPEN)
@dataclass(frozen=True)
class _MethodContent:
    kind: str
    config: dict[str, Any]
    backbone_name: str
    backbone_sha256: str
    facts: dict[str, str]
    architecture: dict[str, Any] | None
    known_token_ids: list[Annotated[int, Ge(0), Lt(2**31)]] | None


@with_config(OPEN)
@dataclass(frozen=True)
class _BackboneContent:
    kind: str
    architecture: dict[str, Any]
    facts: dict[str, str]


@with_config(OPEN)
@dataclass(frozen=True)
class _HeadsContent:
    kind: str
    weights_sha256: str
    data_sha256: str
    facts: dict[str, str]


CONTENTS: dict[str, type[Any]] = {
    "method": _MethodContent, "backbone": _BackboneContent, "heads": _HeadsContent,
}  # fmt: skip
"""Schema of the metadata by kind of file."""


@dataclass(frozen=True)
class MethodFile:
    """What a training run left for inference."""

    tensors: dict[str, Tensor]
    """Our names; the trained tensors alone, or every tensor of the model in a merged file."""
    config: dict[str, Any]
    """The whole run configuration as `config.to_dict` gives it."""
    backbone_name: str
    backbone_sha256: str
    """Digest of the backbone file the tensors were trained over; they mean nothing over another."""
    facts: dict[str, str]
    """Whatever else the writer wanted known (epoch, scores, versions)."""
    architecture: ClipArchitecture | None
    """Present in a merged file, which needs no backbone file."""
    known_token_ids: frozenset[int] | None
    """In a merged file, the only tokens its backbone knows; none if it knows all."""


@dataclass(frozen=True)
class BackboneFile:
    """A CLIP in our own naming."""

    state: dict[str, Tensor]
    """`vision.*` and `text.*`, float32."""
    architecture: ClipArchitecture
    facts: dict[str, str]
    """Provenance: how the weights came about."""
    known_token_ids: frozenset[int] | None
    """Tokens whose embedding the file really holds; none if it holds all."""


@dataclass(frozen=True)
class HeadsFile:
    """Heads that only the losses of a training need, beside the weights of the same moment."""

    tensors: dict[str, Tensor]
    """Names of `train.Objective`, float32."""
    weights_sha256: str
    """Digest of the method file that they belong to."""
    data_sha256: str
    """Digest of the training pairs, whose identities the rows of a classifier stand for."""
    facts: dict[str, str]
    """Whatever else the writer wanted known (epoch)."""


KINDS = {"method": "a method", "backbone": "a backbone", "heads": "training heads"}
"""Kind of a file, as its metadata has it -> in words."""


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
    """Write the trained tensors of a run, or with `architecture` the whole model merged into one file.

    Args:
        tensors: our names; only what inference needs.
        config: the run configuration (`config.to_dict`).
        facts: text by name.
        architecture: given for a merged file, whose `tensors` then include both towers.
        known_token_ids: for a merged file, as its backbone file has them.

    Raises:
        CsktError: the file cannot be written.
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
    tensors, content = _read(path, "method")
    return MethodFile(
        tensors=tensors,
        config=content["config"],
        backbone_name=content["backbone_name"],
        backbone_sha256=content["backbone_sha256"],
        facts=content["facts"],
        architecture=None if content["architecture"] is None else _architecture(content, path),
        known_token_ids=None if content["known_token_ids"] is None else frozenset(content["known_token_ids"]),
    )


def save_backbone(
    path: Path,
    state: Mapping[str, Tensor],
    architecture: ClipArchitecture,
    *,
    facts: Mapping[str, str],
    half: bool = False,
    known_token_ids: frozenset[int] | None = None,
) -> None:
    """Write a backbone in our naming.

    Args:
        state: `vision.*` and `text.*`.
        architecture: sizes of that state, image size and stride included.
        facts: provenance, text by name.
        half: store float16, at half the size.
        known_token_ids: keep only these rows of the token embedding (a small file for a small vocabulary).

    Raises:
        CsktError: the file cannot be written.
    """
    kept = dict(state)
    if known_token_ids is not None:
        rows = torch.tensor(sorted(known_token_ids), dtype=torch.int32)
        kept[TOKEN_ROWS] = rows
        kept[TOKEN_EMBEDDING] = kept[TOKEN_EMBEDDING][rows.long()]
    if half:
        kept = {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}
    content = {"kind": "backbone", "architecture": to_dict(architecture), "facts": dict(facts)}
    _write(path, kept, content)


def read_backbone(path: Path) -> BackboneFile:
    """Read a file that `save_backbone` wrote, as float32.

    Rows of the token embedding that the file leaves out are drawn from the mean and spread of those it holds, the
    same at every reading: noise, but a noise that tells unseen words apart, so that a method can learn them.

    Raises:
        CsktError: missing, damaged, of another kind, or written by a newer version.
    """
    state, content = _read(path, "backbone")
    architecture, facts = _architecture(content, path), content["facts"]
    known: frozenset[int] | None = None
    if (rows := state.pop(TOKEN_ROWS, None)) is not None:
        known = frozenset(rows.tolist())
        state[TOKEN_EMBEDDING] = _spread_rows(state.get(TOKEN_EMBEDDING), rows, architecture.vocab_size, path)
    # Of any other kind only a damaged or forged file has tensors; whoever takes the state refuses them.
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return BackboneFile(state, architecture, facts, known)


def save_heads(
    path: Path, tensors: Mapping[str, Tensor], *, weights_sha256: str, data_sha256: str, facts: Mapping[str, str]
) -> None:
    """Write the training heads that belong to a method file; see `HeadsFile`.

    Raises:
        CsktError: the file cannot be written.
    """
    content = {"kind": "heads", "weights_sha256": weights_sha256, "data_sha256": data_sha256, "facts": dict(facts)}
    _write(path, tensors, content)


def read_heads(path: Path) -> HeadsFile:
    """Read a file that `save_heads` wrote.

    Raises:
        CsktError: missing, damaged, of another kind, or written by a newer version.
    """
    tensors, content = _read(path, "heads")
    return HeadsFile(tensors, content["weights_sha256"], content["data_sha256"], content["facts"])


def kind_of(path: Path) -> str | None:
    """`method`, `backbone` or `heads` for a file that this module wrote; none for any other safetensors file.

    Raises:
        CsktError: not a whole safetensors file.
    """
    metadata = read_safetensors(path, only_metadata=True)[1]
    return str(_content(path, metadata)["kind"]) if METADATA_KEY in metadata else None


def backbone_name_of(path: Path) -> str | None:
    """Return the backbone that a run's weight file needs beside it, as the run's config named it.

    Returns:
        None for a file that needs none, and for any other kind of file.

    Raises:
        CsktError: not a whole safetensors file.
    """
    metadata = read_safetensors(path, only_metadata=True)[1]
    content = _content(path, metadata) if METADATA_KEY in metadata else {}
    is_adapter_only = content.get("kind") == "method" and content.get("architecture") is None
    return str(content["backbone_name"]) if is_adapter_only and "backbone_name" in content else None


def read_safetensors(path: Path, *, only_metadata: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (copies in memory, independent of the file; half precision as float32) and text metadata of a file.

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
        reason = " ".join(str(error).split())
        remedy = "; it ends too early, fetch it again" if _is_cut_short(path) else ""
        raise CsktError(f"{path}: cannot be read as safetensors: {reason}{remedy}") from None


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


def _read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_safetensors(path)
    content = _content(path, metadata)
    if content["kind"] != kind:
        found = KINDS.get(str(content["kind"]), f"a {SHORT.repr(content['kind'])}")
        raise CsktError(f"{path}: holds {found}, expected {KINDS[kind]}")
    return tensors, content


def _content(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    where, text = str(path), metadata.get(METADATA_KEY, "null")
    content = load_json(text, where=where, remedy=REMEDY)
    kind = content.get("kind") if isinstance(content, dict) else None
    schema = CONTENTS.get(kind, _AnyContent) if isinstance(kind, str) else _AnyContent
    parse_json(text, schema, where=where, remedy=REMEDY, version=("version", FORMAT_VERSION))
    return dict(content)


def _architecture(content: Mapping[str, Any], path: Path) -> ClipArchitecture:
    return validate(ClipArchitecture, {**content["architecture"]}, f"{path}: architecture")


def _spread_rows(known: Tensor | None, rows: Tensor, vocab_size: int, path: Path) -> Tensor:
    """The whole token table [vocab_size, width] from the rows of some tokens."""
    if known is None or known.ndim != 2 or rows.ndim != 1 or len(rows) != len(known) or not len(rows):
        raise CsktError(f"{path}: '{TOKEN_ROWS}' does not fit '{TOKEN_EMBEDDING}'")
    if rows.is_floating_point() or rows.min() < 0 or rows.max() >= vocab_size:
        raise CsktError(f"{path}: '{TOKEN_ROWS}' holds ids outside 0 to {vocab_size - 1}")
    if vocab_size * known.shape[1] > LARGEST_TOKEN_TABLE:
        raise CsktError(f"{path}: '{TOKEN_EMBEDDING}' would unfold to {vocab_size:,} x {known.shape[1]:,} numbers")
    mean, spread = known.float().mean(dim=0), known.float().std(dim=0, correction=0)
    noise = torch.randn(vocab_size, known.shape[1], generator=torch.Generator().manual_seed(0))
    table = mean + spread * noise
    table[rows.long()] = known.float()
    return table
