"""Crops from the files that large collections come in: lists of paths, Parquet tables, WebDataset archives."""

from __future__ import annotations

import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import Any, BinaryIO, cast

from cskt.gallery.files import MOST_BYTES, SUFFIXES

LIST_SUFFIXES = (".txt", ".lst")
"""Of a list: UTF-8, one path a line."""
SHARD_SUFFIXES = (".parquet", ".tar")
NAME_COLUMNS = ("image_id", "name", "key", "__key__", "path", "file", "file_name", "filename")
"""Of a Parquet table; the first of them that is there holds the names."""
ROWS_AT_ONCE = 32
"""Of a Parquet table: they are in memory together, however large their images are."""
BUFFER_BYTES = 1_000_000
"""Read from a Parquet file at a time; without a buffer pyarrow reads all of a row group."""
MOST_TEXT_BYTES = 1_000_000
"""Of a text, JSON or header member of an archive; a larger one is no metadata."""
MOST_EMPTY_READS = 3
"""Of an archive that is over."""
NAMING = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
"""Members of an archive that say how the next one is called."""


@dataclass(frozen=True)
class ShardCrop:
    """A crop of a shard."""

    image_id: str
    data: bytes
    metadata: Mapping[str, object]
    wrong: str = ""
    """Why it is none after all; `data` is empty then."""


def is_list(path: Path) -> bool:
    """Whether a path is that of a list, and not of a folder."""
    return path.suffix in LIST_SUFFIXES and not path.is_dir()


def listed(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(name, state) of the files that a list names, one path a line; names are relative to the list's folder.

    Raises:
        ValueError: a line names nothing, or something outside the list's folder, be it by a link; says which.
    """
    folder = path.parent.resolve()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
            state, is_here = place.stat(), place.resolve().is_relative_to(folder)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
            raise ValueError(f"{path}: line {number}: {line.strip()[:200]}: {error}") from None
        if not is_here:
            raise ValueError(
                f"{path}: line {number}: {line.strip()[:200]} is a link that leads out of the list's folder; name the"
                " file itself"
            )
        name = place.relative_to(folder).as_posix()
        if name not in seen:
            seen.add(name)
            yield name, state


def crops_of(shard: Path) -> Iterator[ShardCrop]:
    """The crops of a Parquet file or a tar archive, in order; few are held at a time.

    Nothing is unpacked to the disk, no member is named on it, and nothing in a shard is code that would be run.

    Raises:
        ValueError: the file is damaged, or has no column of images; names it. Crops before the damage have come.
    """
    return _of_parquet(shard) if shard.suffix == ".parquet" else _of_archive(shard)


def _crop(image_id: str, data: bytes, num_bytes: int, metadata: Mapping[str, object]) -> ShardCrop:
    """A crop, unless it is too large to be one."""
    if num_bytes > MOST_BYTES:
        wrong = f"{num_bytes / 1e9:.1f} GB; a crop has at most {MOST_BYTES / 1e6:.0f} MB"
        return ShardCrop(image_id, b"", metadata, wrong)
    return ShardCrop(image_id, data, metadata)


def _of_parquet(shard: Path) -> Iterator[ShardCrop]:
    import pyarrow  # noqa: PLC0415  (comes with the extra)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        with pyarrow.parquet.ParquetFile(shard, buffer_size=BUFFER_BYTES) as table:
            image, name = _columns(shard, table.schema_arrow)
            for rows in table.iter_batches(batch_size=ROWS_AT_ONCE):
                for row in rows.to_pylist():
                    content = row.pop(image)
                    inside = content if isinstance(content, dict) else {"bytes": content}
                    image_id = row.pop(name) if name else inside.get("path")
                    data = inside.get("bytes") or b""
                    yield _crop("" if image_id is None else str(image_id), data, len(data), row)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _damaged(shard, error) from None


def _columns(shard: Path, schema: Any) -> tuple[str, str | None]:
    """Which column of a table holds the images, and which their names: none where they come with the images."""
    import pyarrow  # noqa: PLC0415  (as above)

    image = next((field for field in schema if _holds_bytes(field.type)), None)
    others = [column for column in schema.names if image is not None and column != image.name]
    name = next((column for column in NAME_COLUMNS if column in others), None)
    if image is None or (name is None and not pyarrow.types.is_struct(image.type)):
        raise ValueError(
            f"{shard}: needs a column of bytes with the images, and one with their names ({', '.join(NAME_COLUMNS)});"
            f" it has {', '.join(schema.names)[:300] or 'none'}"
        )
    return image.name, name


def _holds_bytes(kind: Any) -> bool:
    import pyarrow  # noqa: PLC0415

    if pyarrow.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


class _Ending:
    """A file that says when it is over: `tarfile` reads on for hours where a member says that it has terabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._num_empty = file, 0

    def read(self, size: int) -> bytes:
        """At most so many bytes.

        Raises:
            EOFError: nothing came the last times either.
        """
        data = self._file.read(size)
        self._num_empty = 0 if data else self._num_empty + 1
        if self._num_empty > MOST_EMPTY_READS:
            raise EOFError("ends within a member")
        return data


class _Member(tarfile.TarInfo):
    """A member of an archive that ends where it says so: `tarfile` takes a damaged header for the end, in silence."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        """The next member.

        Raises:
            ReadError: the header is damaged, or missing.
        """
        try:
            return super().fromtarfile(archive)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"after {archive.offset} bytes: {error}") from None

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        """A header's facts; one that says that names fill gigabytes is not believed, for they would be read at once."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in NAMING and member.size > MOST_TEXT_BYTES:
            raise ReadError(f"a name of {member.size} bytes")
        return member


def _of_archive(shard: Path) -> Iterator[ShardCrop]:
    """Members with one key, the path up to the first dot of its last part, belong together (WebDataset)."""
    try:
        with (
            shard.open("rb") as file,
            tarfile.open(fileobj=cast(Any, _Ending(file)), mode="r|*", tarinfo=_Member) as archive,
        ):
            key, crop = "", None
            metadata: dict[str, object] = {}
            for member in iter(archive.next, None):
                archive.members.clear()  # type: ignore[attr-defined]  # or it remembers every one
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                of = str(path.with_name(stem)) if stem else member.name
                if of != key:
                    if crop is not None:
                        yield crop
                    key, crop, metadata = of, None, {}
                if f".{ending.lower()}" in SUFFIXES:
                    if crop is not None:
                        yield crop
                    crop = _crop(member.name, _content(archive, member, MOST_BYTES), member.size, metadata)
                elif ending == "json":
                    metadata |= _row(shard, member.name, _content(archive, member, MOST_TEXT_BYTES))
                elif ending in ("txt", "cls"):
                    metadata[ending] = _content(archive, member, MOST_TEXT_BYTES).decode("utf-8", "replace").strip()
            if crop is not None:
                yield crop
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(shard, error) from None


def _damaged(shard: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ValueError(f"{shard}: cannot be read: {reason}; fetch it again, or leave it out")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """Its bytes; nothing of one that is too large."""
    stream = archive.extractfile(member) if member.size <= most else None
    return stream.read() if stream is not None else b""


def _row(shard: Path, name: str, content: bytes) -> dict[str, object]:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shard}: {name}: no JSON of at most {MOST_TEXT_BYTES / 1e6:.0f} MB: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{shard}: {name}: expected an object with columns and values")
    return row
