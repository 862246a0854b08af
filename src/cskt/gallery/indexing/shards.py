"""Crops of shards, the files of large collections: Parquet tables and WebDataset archives."""

from __future__ import annotations

import glob
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import Any, BinaryIO, cast

from cskt.errors import CsktError
from cskt.gallery.indexing.scanning import LINKS, SPECIAL, SUFFIXES, Scan
from cskt.image_files.limits import MAX_FILE_BYTES as MOST_BYTES
from cskt.utils.json_files import load_json
from cskt.utils.paths import check_path

SHARD_SUFFIXES = (".parquet", ".tar")
NAME_COLUMNS = ("image_id", "name", "key", "__key__", "path", "file", "file_name", "filename")
"""Columns with the names of crops in a Parquet table; the first one that exists is used."""
ROWS_AT_ONCE = 32
"""Rows of a Parquet table that are in memory together."""
BUFFER_BYTES = 1_000_000
"""Read from a Parquet file at a time; without a buffer pyarrow reads all of a row group."""
MAX_TEXT_BYTES = 1_000_000
"""Size of a text, JSON or header member of an archive; a larger one is no metadata."""
MAX_EMPTY_READS = 3
"""Reads at the end of an archive."""
NAMING = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
"""Members of an archive with the name of the next one."""


@dataclass(frozen=True)
class ShardCrop:
    """A crop of a shard."""

    image_id: str
    data: bytes
    metadata: Mapping[str, object]
    wrong: str = ""
    """Reason why it cannot be stored; `data` is then empty."""


def find_shards(pattern: str) -> list[Path]:
    """Return the shards that a path or a glob pattern names, in order."""
    check_path(Path(pattern))
    named = [Path(pattern)] if Path(pattern).exists() else [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207  (takes absolute patterns, too)
    if not named:
        raise CsktError(f"{pattern}: no such shard; put it back, or name what to index: --images PATH")
    for path in named:
        if not path.is_file():
            raise CsktError(f"{path}: not a file; give a pattern that leaves it out")
    return named


def crops_of(shard: Path, scan: Scan | None = None, *, with_images: bool = True) -> Iterator[ShardCrop]:
    """Yield the crops of a Parquet file or a tar archive, in order; few are in memory at a time.

    Nothing is unpacked to the disk, and no code in a shard is run. A corrupt file is an error after its last good crop.

    Args:
        shard: `.parquet` or `.tar`.
        scan: receives the skipped members of an archive.
        with_images: False yields names and metadata only, and reads no images from Parquet files.
    """
    if shard.suffix == ".parquet":
        return _of_parquet(shard, with_images)
    return _of_archive(shard, Scan() if scan is None else scan, with_images)


def _crop(image_id: str, data: bytes, num_bytes: int, metadata: Mapping[str, object]) -> ShardCrop:
    """Return a crop, without its data if it is too large."""
    if num_bytes > MOST_BYTES:
        wrong = f"{num_bytes / 1e9:.1f} GB; a crop has at most {MOST_BYTES / 1e6:.0f} MB"
        return ShardCrop(image_id, b"", metadata, wrong)
    return ShardCrop(image_id, data, metadata)


def _of_parquet(shard: Path, with_images: bool) -> Iterator[ShardCrop]:
    import pyarrow  # noqa: PLC0415  (comes with the extra)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        with pyarrow.parquet.ParquetFile(shard, buffer_size=BUFFER_BYTES) as table:
            image, name = _columns(shard, table.schema_arrow)
            others = [column for column in table.schema_arrow.names if column != image]
            read = None if with_images else [*others, *([] if name else [f"{image}.path"])]
            for rows in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=read):
                for row in rows.to_pylist():
                    content = row.pop(image, None)
                    inside = content if isinstance(content, dict) else {"bytes": content}
                    image_id = row.pop(name) if name else inside.get("path")
                    data = inside.get("bytes") or b""
                    yield _crop("" if image_id is None else str(image_id), data, len(data), row)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _corrupt(shard, error) from None


def _columns(shard: Path, schema: Any) -> tuple[str, str | None]:
    """Return the columns of the images and of their names; None if the names are inside the images' column."""
    import pyarrow  # noqa: PLC0415  (as above)

    image = next((field for field in schema if _holds_bytes(field.type)), None)
    others = [column for column in schema.names if image is not None and column != image.name]
    name = next((column for column in NAME_COLUMNS if column in others), None)
    if image is None or (name is None and not pyarrow.types.is_struct(image.type)):
        raise CsktError(
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
    """A file that raises at its end: `tarfile` reads for hours if a member claims to have terabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._num_empty = file, 0

    def read(self, size: int) -> bytes:
        """Read at most so many bytes, or raise EOFError after several empty reads."""
        data = self._file.read(size)
        self._num_empty = 0 if data else self._num_empty + 1
        if self._num_empty > MAX_EMPTY_READS:
            raise EOFError("ends within a member")
        return data


class _Member(tarfile.TarInfo):
    """A member of an archive whose corrupt header is an error: `tarfile` takes it for the end, without a message."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        """Return the next member, or raise ReadError if its header is corrupt or missing."""
        try:
            return super().fromtarfile(archive)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"after {archive.offset} bytes: {error}") from None

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        """Return a member of a header; names of gigabytes, which would be read at once, are refused."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in NAMING and member.size > MAX_TEXT_BYTES:
            raise ReadError(f"a name of {member.size} bytes")
        return member


def _of_archive(shard: Path, scan: Scan, with_images: bool) -> Iterator[ShardCrop]:
    """Yield crops; members with one key, the path up to the first dot of its last part, are a crop (WebDataset)."""
    try:
        with (
            shard.open("rb") as file,
            tarfile.open(fileobj=cast(Any, _Ending(file)), mode="r|*", tarinfo=_Member) as archive,
        ):
            key, crop = "", None
            metadata: dict[str, object] = {}
            for member in iter(archive.next, None):
                archive.members.clear()  # type: ignore[attr-defined]  # it would store all members
                if not member.isfile():
                    if not member.isdir():
                        scan.passed_over[LINKS if member.issym() or member.islnk() else SPECIAL] += 1
                    continue
                name = member.name.removeprefix("./")  # as `tar -C folder .` writes them
                path = PurePosixPath(name)
                stem, _, ending = path.name.partition(".")
                of = str(path.with_name(stem)) if stem else name
                if of != key:
                    if crop is not None:
                        yield crop
                    key, crop, metadata = of, None, {}
                if f".{ending.lower()}" in SUFFIXES:
                    if crop is not None:
                        yield crop
                    content = _content(archive, member, MOST_BYTES) if with_images else b""
                    crop = _crop(name, content, member.size, metadata)
                elif ending == "json":
                    metadata |= _row(shard, name, _content(archive, member, MAX_TEXT_BYTES))
                elif ending in ("txt", "cls"):
                    metadata[ending] = _content(archive, member, MAX_TEXT_BYTES).decode("utf-8", "replace").strip()
                else:
                    scan.pass_over_file(name, f".{ending.lower()}" if ending else "")
            if crop is not None:
                yield crop
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _corrupt(shard, error) from None


def _corrupt(shard: Path, error: Exception) -> CsktError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return CsktError(f"{shard}: cannot be read: {reason}; fetch it again, or leave it out")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """Return the bytes of a member; none of one that is too large."""
    stream = archive.extractfile(member) if member.size <= most else None
    return stream.read() if stream is not None else b""


def _row(shard: Path, name: str, content: bytes) -> dict[str, object]:
    remedy = f"write an object with columns and values, of at most {MAX_TEXT_BYTES / 1e6:.0f} MB"
    row = load_json(content, where=f"{shard}: {name}", remedy=remedy)
    if not isinstance(row, dict):
        raise CsktError(f"{shard}: {name}: expected an object with columns and values")
    return row
