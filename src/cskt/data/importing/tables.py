"""Tables to import: CSV, TSV and JSON lines, Parquet files, and Hugging Face data sets, saved or downloaded.

A table gives its headings at once and its rows one by one, because Parquet and Arrow files may hold the images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cskt.errors import CsktError, file_system_errors
from cskt.utils.json_files import load_json, read_text
from cskt.utils.messages import require
from cskt.utils.paths import inside
from cskt.utils.user_tables import Row, read_table

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 256
"""Rows of a Parquet file that are in memory together."""
DICT, STATE = "dataset_dict.json", "state.json"
"""Files of `DatasetDict.save_to_disk` and of `Dataset.save_to_disk`."""
REMEDY = "save the data set again with save_to_disk"
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Name of a split in a source, in lower case -> in a data set."""
LFS_POINTER = b"version https://git-lfs"
"""First bytes of the text that Git has in place of a large file."""
_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<total>\d{5})", re.ASCII)


@dataclass(frozen=True)
class Table:
    """Rows of one split, or of all."""

    path: Path
    headings: Sequence[str]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    """Columns that are needed -> the rows, one by one."""
    split: str | None = None
    """Name of the split that all rows belong to, as the source writes it."""
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column -> the names that its integers stand for (`ClassLabel` of Hugging Face)."""


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of Hugging Face `datasets`."""
    return (folder / DICT).is_file() or (folder / STATE).is_file()


def is_snapshot(folder: Path) -> bool:
    """Return whether a folder has Parquet files, as a data set that was downloaded from the Hugging Face Hub."""
    with file_system_errors(folder):
        return bool(_parquet_files(folder))


def read_tables(source: Path) -> list[Table]:
    """Return the tables of a file, or of a folder (`is_saved_dataset`, `is_snapshot`): one for each of its splits.

    Raises:
        CsktError: a file is missing or corrupt, has no row, or pyarrow is not installed; names the remedy.
    """
    if source.is_dir():
        return _saved_tables(source) if is_saved_dataset(source) else _snapshot_tables(source)
    if source.suffix.lower() == ".parquet":
        return [_parquet_table([source])]
    rows = _json_rows(source) if source.suffix.lower() == ".json" else read_table(source)
    return [Table(source, list(dict.fromkeys(name for row in rows for name in row.cells)), lambda _: iter(rows))]


def _json_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON file: a list of objects or of sentences, or an object of images with sentences."""
    remedy = 'write a list of objects, or {"IMAGE": ["SENTENCE", ...], ...}'
    content = load_json(read_text(path, remedy=remedy), where=str(path), remedy=remedy)
    if isinstance(content, dict):
        content = [{"image": image, "caption": captions} for image, captions in content.items()]
    if not isinstance(content, list) or not content:
        raise CsktError(f"{path}: has no row; {remedy}")
    rows = [
        Row(f"{path}: entry {number}", {"caption": entry} if isinstance(entry, str) else entry)
        for number, entry in enumerate(content, start=1)
    ]
    if wrong := next((row for row in rows if not isinstance(row.cells, dict)), None):
        raise CsktError(f"{wrong.where}: neither an object nor a sentence; {remedy}")
    return rows


def _parquet_table(paths: Sequence[Path], split: str | None = None) -> Table:
    """Return the table of one or several Parquet files, which must have the same columns."""
    require("parquet", "pyarrow")
    import pyarrow.parquet as pq  # noqa: PLC0415  (an extra)

    schemas = []
    for path in paths:
        with _arrow_errors(path):
            schemas.append(pq.read_schema(path))
        if schemas[-1].names != schemas[0].names:
            raise CsktError(f"{path}: has other columns than {paths[0]}; import the two by themselves")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for path in paths:
            with _arrow_errors(path), pq.ParquetFile(path) as file:
                yield from _numbered(path, file.iter_batches(ROWS_AT_ONCE, columns=list(columns)))

    return Table(paths[0], schemas[0].names, rows, split, _class_names(schemas[0]))


def _snapshot_tables(folder: Path) -> list[Table]:
    """Return a table for each split that the names of files (`data/train-00000-of-00002`) or of folders state."""
    subsets: dict[Path, dict[str | None, list[Path]]] = {}
    for path in _parquet_files(folder):
        split, place = _split_in(path.stem), path.parent
        if split is None and place != folder and (split := _split_in(place.name)) is not None:
            place = place.parent
        subsets.setdefault(place, {}).setdefault(split, []).append(path)
    if len(subsets) > 1:
        places = ", ".join(str(place) for place in subsets)[:300]
        raise CsktError(f"{folder}: holds several data sets; import one of these folders: {places}")
    [splits] = subsets.values()
    if None in splits and len(splits) > 1:
        raise CsktError(f"{splits[None][0]}: its name states no split as others do; name it train, val or test")
    for paths in splits.values():
        _check_complete(paths)
    return [_parquet_table(paths, split) for split, paths in splits.items()]


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder and of its subfolders, but for hidden ones such as `.cache`."""
    found = (path for path in folder.rglob("*.parquet") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _split_in(name: str) -> str | None:
    """Return the word in a name of a file or folder that is the name of a split."""
    return next((word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)


def _check_complete(paths: Sequence[Path]) -> None:
    """Check that there are as many shards as their names `NAME-00000-of-00002` state."""
    numbers = [match for path in paths if (match := _SHARD.search(path.stem))]
    total = max((int(match["total"]) for match in numbers), default=0)
    if missing := set(range(total)) - {int(match["number"]) for match in numbers}:
        raise CsktError(
            f"{paths[0].parent}: shard {min(missing) + 1} of {total} of {paths[0].name} is missing; download the whole"
            " data set"
        )


def _saved_tables(folder: Path) -> list[Table]:
    if not (folder / DICT).is_file():
        return [_saved_table(folder, None)]
    content = load_json(read_text(folder / DICT, remedy=REMEDY), where=str(folder / DICT), remedy=REMEDY)
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
        raise CsktError(f"{folder / DICT}: 'splits' must be a list of names; {REMEDY}")
    return [_saved_table(inside(folder, name), name) for name in splits]


def _saved_table(folder: Path, split: str | None) -> Table:
    require("parquet", "pyarrow")
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    state = load_json(read_text(folder / STATE, remedy=REMEDY), where=str(folder / STATE), remedy=REMEDY)
    files = state.get("_data_files") if isinstance(state, dict) else None
    files = files if isinstance(files, list) else []
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    if not names or not all(isinstance(name, str) for name in names):
        raise CsktError(f"{folder / STATE}: '_data_files' must list the files of the data set; {REMEDY}")
    paths = [inside(folder, str(name)) for name in names]
    if state.get("_indices_files"):
        raise CsktError(f"{folder}: a selection of rows; call flatten_indices() and {REMEDY}")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for path in paths:
            with _arrow_errors(path), pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                yield from _numbered(path, (batch.select(list(columns)) for batch in stream))

    with _arrow_errors(paths[0]), pa.memory_map(str(paths[0])) as file, pa.ipc.open_stream(file) as stream:
        schema = stream.schema
    return Table(folder, schema.names, rows, split, _class_names(schema))


def _numbered(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for cells in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", cells)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the `ClassLabel` columns, which `datasets` stores in the metadata of a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # other programs may write anything there
        return {}


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow into a CsktError that names the file."""
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    try:
        with file_system_errors(path):
            yield
    except CsktError:
        raise
    except (pa.ArrowException, EOFError) as error:
        with file_system_errors(path), path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CsktError(f"{path}: a pointer of Git LFS instead of the file; fetch it: git lfs pull") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CsktError(f"{path}: cannot be read: {reason}; copy or save the file again") from None


def plain_cell(value: Any) -> Any:
    """Return the value of a cell: text without spaces around it, None for an empty one."""
    if isinstance(value, str):
        return value.strip() or None
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124  (NaN)
