"""Crops from the files that large collections come in: lists of paths, Parquet tables, WebDataset archives."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cskt.gallery.files import MOST_BYTES, SUFFIXES

LIST_SUFFIXES = (".txt", ".lst")
SHARD_SUFFIXES = (".parquet", ".tar")
NAME_COLUMNS = ("image_id", "name", "key", "__key__", "path", "file", "file_name", "filename")
"""Of a Parquet table; the first of them that is there holds the names."""
ROWS_AT_ONCE = 256
MOST_TEXT_BYTES = 1_000_000
"""Of a text or JSON member of an archive; a larger one is no metadata."""


@dataclass(frozen=True)
class ShardCrop:
    """A crop of a shard."""

    image_id: str
    data: bytes
    metadata: Mapping[str, object]


def listed(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(name, state) of the files that a list names, one path a line; names are relative to the list's folder.

    Raises:
        ValueError: a line names nothing, or something outside the list's folder; says which.
    """
    folder = path.parent.resolve()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a list of paths: {error}") from None
    seen = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = Path(os.path.normpath(folder / line.strip()))
        if not place.is_relative_to(folder):
            raise ValueError(
                f"{path}: line {number}: {line.strip()[:200]} is not below the list's folder; move the list"
            )
        try:
            state = place.stat()
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: line {number}: {line.strip()[:200]}: {error}") from None
        name = place.relative_to(folder).as_posix()
        if name not in seen:
            seen.add(name)
            yield name, state


def crops_of(shard: Path) -> Iterator[ShardCrop]:
    """The crops of a Parquet file or a tar archive, in order; few are held at a time.

    Raises:
        ValueError: the file is damaged, or holds no images; names it.
    """
    return _of_parquet(shard) if shard.suffix == ".parquet" else _of_archive(shard)


def _of_parquet(shard: Path) -> Iterator[ShardCrop]:
    import pyarrow  # noqa: PLC0415  (comes with the extra)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        with pyarrow.parquet.ParquetFile(shard) as table:
            schema = table.schema_arrow
            image = next((field for field in schema if _holds_bytes(field.type)), None)
            name = next((column for column in NAME_COLUMNS if column in schema.names), None)
            if image is None or (name is None and not pyarrow.types.is_struct(image.type)):
                raise ValueError(
                    f"{shard}: needs a column of bytes with the images, and one with their names"
                    f" ({', '.join(NAME_COLUMNS)}); it has {', '.join(schema.names)}"
                )
            for rows in table.iter_batches(batch_size=ROWS_AT_ONCE):
                for row in rows.to_pylist():
                    content = row.pop(image.name)
                    inside = content if isinstance(content, dict) else {"bytes": content}
                    image_id = row.pop(name) if name else inside.get("path")
                    yield ShardCrop(str(image_id or ""), inside.get("bytes") or b"", row)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{shard}: cannot be read: {' '.join(str(error).split())[:300]}") from None


def _holds_bytes(kind: Any) -> bool:
    import pyarrow  # noqa: PLC0415

    if pyarrow.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _of_archive(shard: Path) -> Iterator[ShardCrop]:
    """Members with one key, the path up to the first dot of its last part, belong together (WebDataset)."""
    try:
        with tarfile.open(shard, "r|*") as archive:
            key, image_id, data = "", "", b""
            metadata: dict[str, object] = {}
            for member in archive:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                of = str(path.with_name(stem)) if stem else member.name
                if of != key:
                    if image_id:
                        yield ShardCrop(image_id, data, metadata)
                    key, image_id, data, metadata = of, "", b"", {}
                if f".{ending.lower()}" in SUFFIXES:
                    image_id, data = member.name, _content(archive, member, MOST_BYTES)
                elif ending == "json":
                    metadata |= _row(shard, member.name, _content(archive, member, MOST_TEXT_BYTES))
                elif ending in ("txt", "cls"):
                    metadata[ending] = _content(archive, member, MOST_TEXT_BYTES).decode("utf-8", "replace").strip()
            if image_id:
                yield ShardCrop(image_id, data, metadata)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: cannot be read: {' '.join(str(error).split())[:300]}") from None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """Its bytes; nothing of one that is too large, which then is no image."""
    stream = archive.extractfile(member) if member.size <= most else None
    return stream.read() if stream is not None else b""


def _row(shard: Path, name: str, content: bytes) -> dict[str, object]:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shard}: {name}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{shard}: {name}: expected an object with columns and values")
    return row
