"""Deletion of everything that removed rows have left in a LanceDB table.

Lance only marks a row as deleted. Its bytes stay in the data file, its name in the index, in the statement that deleted
it (`_transactions`) and in older versions. So all rows are written again, into new files, and all older files are
deleted.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from cskt.errors import StoreError
from cskt.gallery.stores.lance.table import ROW_ID
from cskt.gallery.stores.lance.versions import Version

ROWS_AT_ONCE = 16_384
"""Rows in memory, some 200 MB."""
OVERWRITTEN = frozenset({"latest_version_hint.json"})
"""Files that Lance writes again under the same name; this one holds a number."""


def purge_table(table: Any, version: Version) -> None:
    """Write all rows of a table again and delete its older files; readers see the same rows at every moment.

    Indices are deleted too, and made again by the next compaction.

    Args:
        table: at its latest version, locked against other writers.
        version: the same version, pinned.

    Raises:
        StoreError: a file from before is still there.
    """
    folder = version.folder
    before = _files(folder)
    for index in table.list_indices():
        table.drop_index(index.name)
    ids = version.matching_ids()
    for start in range(0, len(ids), ROWS_AT_ONCE):
        part = ids[start : start + ROWS_AT_ONCE]
        # New rows have higher ids, as after every other write; a table that is overwritten would use old ids again,
        # and readers recognise rows by them.
        rows = version.take(part, version.table.schema.names).drop_columns([ROW_ID])
        table.merge_insert("image_id").when_matched_update_all().execute(rows)
    if not len(ids):
        table.delete("false")  # a version whose statement names no crop
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"optimize\(cleanup_older_than=0\)")  # about readers, see `purge`
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    if left := sorted(path for path in before & _files(folder) if path.name not in OVERWRITTEN):
        raise StoreError(
            f"{left[0]}: is still there after the table was written again, and may hold deleted crops; end all other"
            " programs that use the gallery, and try again",
            without_query=True,
        )


def _files(folder: Path) -> set[Path]:
    """Return the files of the tables in a folder, without the locks beside them."""
    return {path for table in folder.glob("*.lance") for path in table.rglob("*") if path.is_file()}
