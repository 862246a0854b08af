"""Tables to import: CSV, TSV and JSON lines, Parquet files, and folders that Hugging Face `datasets` has saved.

A table gives its headings at once and its rows one by one, because Parquet and Arrow files may hold the images.
"""

from __future__ import annotations

import json
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


def read_tables(source: Path) -> list[Table]:
    """Return the tables of a file, or of a folder of `save_to_disk`: one for each of its splits.

    Raises:
        CsktError: a file is missing or corrupt, has no row, or pyarrow is not installed; names the remedy.
    """
    if source.is_dir():
        return _saved_tables(source)
    if source.suffix.lower() == ".parquet":
        return [_parquet_table(source)]
    rows = read_table(source)
    return [Table(source, list(dict.fromkeys(name for row in rows for name in row.cells)), lambda _: iter(rows))]


def _parquet_table(path: Path) -> Table:
    require("parquet", "pyarrow")
    import pyarrow.parquet as pq  # noqa: PLC0415  (an extra)

    with _arrow_errors(path):
        schema = pq.read_schema(path)

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with _arrow_errors(path), pq.ParquetFile(path) as file:
            yield from _numbered(path, file.iter_batches(ROWS_AT_ONCE, columns=list(columns)))

    return Table(path, schema.names, rows, class_names=_class_names(schema))


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CsktError(f"{path}: cannot be read: {reason}; copy or save the file again") from None


def plain_cell(value: Any) -> Any:
    """Return the value of a cell: text without spaces around it, None for an empty one."""
    if isinstance(value, str):
        return value.strip() or None
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124  (NaN)
