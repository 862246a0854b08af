"""A Milvus collection of crops: its connection, its schema, its rows, its errors.

A metadata column is a key of the collection's dynamic field, because milvus-lite cannot add fields; a crop without a
value has no such key, or a null there. Numbers are floats.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient, MilvusException

from cskt.errors import CorruptRowError, CsktError, NoAnswerError, StoreError
from cskt.gallery.columns import Kind
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.milvus.address import INDEXES, read_address, read_options
from cskt.gallery.stores.milvus.expressions import like_key, like_text, partition_field, partition_of
from cskt.gallery.stores.row_checks import (
    FACT_FIELDS,
    checked_facts,
    column_value,
    corrupt_row_errors,
    corrupt_vectors,
)

# These log an error to stderr with a traceback and raise it as well; the caller reports it. The server that milvus-lite
# runs in this process logs by grpc, also for calls that pymilvus only tries.
for chatty in ("pymilvus", "milvus_lite", "grpc"):
    logging.getLogger(chatty).setLevel(logging.CRITICAL)
logging.getLogger("faiss").setLevel(logging.WARNING)

CONNECT_SECONDS = 5.0
CALL_SECONDS = 120.0
"""Time limit of a request that writes or creates; pymilvus repeats it until then if there is no answer."""
MISSING_CODES = (100, 800)
"""Milvus' codes for a collection and a database that do not exist."""
MAX_NAME_BYTES = 4096
MAX_TEXT_BYTES = 65_535
"""Milvus' own limit."""

FIELDS = {
    "image_id": DataType.VARCHAR,
    "vector": DataType.FLOAT_VECTOR,
    "thumbnail": DataType.VARCHAR,
    "width": DataType.DOUBLE,
    "height": DataType.DOUBLE,
    "num_bytes": DataType.DOUBLE,
    "modified_ns": DataType.INT64,
    "sha256": DataType.VARCHAR,
    "kept": DataType.BOOL,
}
"""Numbers that filters compare are DOUBLE: Milvus compares an INT64 with no fraction."""

_open_files: Counter[str] = Counter()
"""Open collections of this process by file of milvus-lite: they share it, and the last one releases it."""
_open_files_lock = threading.Lock()


@contextmanager
def milvus_errors(url: str) -> Iterator[None]:
    """Turn pymilvus' errors, which fill pages, into one line.

    Raises:
        CsktError: Milvus refuses what the request asks for.
        NoAnswerError: any other error.
    """
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        reason = error.message if isinstance(error, MilvusException) else error.details()
        if "Open local milvus failed" in str(reason):
            reason = "another process has it open, it is no database of milvus-lite, or it is read-only; name another"
        # Milvus takes a missing collection for the client's mistake, too.
        is_request = getattr(error, "is_input_error", False) and getattr(error, "code", 0) not in MISSING_CODES
        kind = CsktError if is_request else NoAnswerError
        raise kind(f"{url}: {' '.join(str(reason).split())[:300]}") from error


class Collection:
    """A connection to a collection; with `must_exist`, a missing file is an error, which connecting would make."""

    def __init__(self, url: str, generation: str, *, must_exist: bool = False) -> None:
        self.url = url
        self._uri, self.name = read_address(url, generation)
        self.options = read_options(url)
        self.is_file = self._uri.endswith(".db")
        if must_exist and self.is_file and not Path(self._uri).exists():
            raise StoreError(f"{url}: no such file; restore it, or index into a new folder")
        with _open_files_lock, milvus_errors(url):
            self.client = MilvusClient(self._uri, timeout=CONNECT_SECONDS)
            _open_files[self._uri] += 1
        self._is_open = True

    @cached_property
    def merges_keys(self) -> bool:
        """True if a replaced row retains those keys of the dynamic field that the new one lacks.

        A server replaces the row; milvus-lite merges the two.
        """
        with milvus_errors(self.url):
            return str(self.client.get_server_version(timeout=CALL_SECONDS)).startswith("milvus_lite")

    @property
    def fields(self) -> dict[str, DataType]:
        """Fields of a collection with these options."""
        partition = self.options.partition
        return FIELDS if partition is None else {**FIELDS, partition_field(partition): DataType.VARCHAR}

    def prepare(self, embed_dim: int, *, create: bool) -> None:
        """Check and load the collection, or create it."""
        with milvus_errors(self.url):
            if self.client.has_collection(self.name, timeout=CALL_SECONDS):
                self._check_fields(embed_dim)
                self._check_index()
                self.client.load_collection(self.name, timeout=CALL_SECONDS)
            elif create:
                self._create(embed_dim)
            else:
                raise StoreError(f"{self.url}: has no collection '{self.name}'; restore it, or index into a new folder")

    def close(self) -> None:
        """Close the connection, and a file that no other collection of this process uses; repeated calls do nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self.client.close()
        with _open_files_lock:
            _open_files[self._uri] -= 1
            if self.is_file and not _open_files[self._uri]:
                # pymilvus would hold the file's lock until this process ends.
                from milvus_lite.server_manager import server_manager_instance  # noqa: PLC0415  (not with a server)

                server_manager_instance.release_server(self._uri)

    def _create(self, embed_dim: int) -> None:
        options = self.options
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        settings: dict[str, dict[str, Any]] = {
            "image_id": {"is_primary": True, "max_length": MAX_NAME_BYTES},
            "vector": {"dim": embed_dim},
            # Twice the size of the vector and seldom read: query nodes need not hold it in memory.
            "thumbnail": {"max_length": MAX_TEXT_BYTES, "mmap_enabled": True},
            "sha256": {"max_length": 64},
        }
        if options.partition is not None:
            settings[partition_field(options.partition)] = {"is_partition_key": True, "max_length": MAX_TEXT_BYTES}
        for name, kind in self.fields.items():
            schema.add_field(name, kind, **settings.get(name, {}))
        index = MilvusClient.prepare_index_params()
        # Nested twice: pymilvus unpacks the outer `params`, and milvus-lite reads the inner one; a server reads both.
        index.add_index(
            "vector",
            index_type=INDEXES[options.index].milvus_type,
            metric_type="IP",
            params={"params": options.build_numbers()},
        )
        # Strong: a request without a level sees every write that was finished before it began.
        self.client.create_collection(
            self.name,
            schema=schema,
            index_params=index,
            consistency_level="Strong",
            num_shards=options.shards,
            timeout=CALL_SECONDS,
            **({} if options.partition is None else {"num_partitions": options.partitions}),
        )

    def _check_fields(self, embed_dim: int) -> None:
        described = self.client.describe_collection(self.name, timeout=CALL_SECONDS)
        fields = {field["name"]: field for field in described["fields"]}
        kinds = {name: field["type"] for name, field in fields.items()}
        what = f"{self.url}: collection '{self.name}'"
        if not described["enable_dynamic_field"] or {name: kinds.get(name) for name in FIELDS} != FIELDS:
            raise CsktError(f"{what} holds no gallery; name another one")
        if kinds != self.fields:
            raise CsktError(
                f"{what} has other partitions ({', '.join(kinds.keys() - FIELDS.keys()) or 'none'}); a collection keeps"
                " those it was made with: name another one"
            )
        dim = int(fields["vector"]["params"]["dim"])
        if dim != embed_dim:
            raise CsktError(
                f"{what} holds vectors of {dim} numbers, the model makes {embed_dim}; name another collection, or use"
                " the model that filled this one"
            )

    def _check_index(self) -> None:
        described = self.client.describe_index(self.name, "vector", timeout=CALL_SECONDS) or {}
        # A server returns the numbers flat, as texts; milvus-lite returns them in `params`.
        numbers = {**described, **described.get("params", {})}
        wanted = {"index_type": INDEXES[self.options.index].milvus_type, **self.options.build_numbers()}
        found = {name: numbers.get(name) for name in wanted}
        if any(str(found[name]) != str(value) for name, value in wanted.items()):
            shown = ", ".join(f"{name} {value}" for name, value in found.items())
            raise CsktError(
                f"{self.url}: collection '{self.name}' has another index ({shown}); a collection keeps the one it was"
                " made with: name another one, or give these numbers"
            )


def to_row(crop: Crop, columns: Mapping[str, Kind], partitioned_by: str | None) -> dict[str, Any]:
    """Return a crop as a row."""
    facts = crop.facts
    thumbnail = base64.b64encode(crop.thumbnail).decode()
    texts = {"its name": facts.image_id, "the thumbnail": thumbnail, **facts.metadata}
    for what, text in texts.items():
        limit = MAX_NAME_BYTES if what == "its name" else MAX_TEXT_BYTES
        if isinstance(text, str) and len(text.encode()) > limit:
            raise CsktError(f"{facts.image_id[:60]}: {what} has more than the {limit:,} bytes that Milvus stores")
    row: dict[str, Any] = {"vector": crop.vector.astype(np.float32), "thumbnail": thumbnail}
    for name in FACT_FIELDS:
        value = getattr(facts, name)
        row[name] = float(value) if FIELDS[name] == DataType.DOUBLE else value
    row[like_key("image_id")] = like_text(facts.image_id)
    for column, value in facts.metadata.items():
        kind = columns[column]
        row[column] = float(value) if kind == "number" else value
        if kind == "text":
            row[like_key(column)] = like_text(str(value))
    if partitioned_by is not None:
        row[partition_field(partitioned_by)] = partition_of(facts.metadata.get(partitioned_by))
    return row


def to_facts(row: Mapping[str, Any], columns: Mapping[str, Kind], url: str) -> CropRecord:
    """Return the facts of a row."""
    metadata = {column: row[column] for column in columns if row.get(column) is not None}
    facts = checked_facts(row, metadata, url)
    with corrupt_row_errors(url, facts.image_id):
        for column, value in facts.metadata.items():
            column_value(value, columns[column], column)
    return facts


def to_vectors(rows: Sequence[Mapping[str, Any]], url: str) -> NDArray[np.float32]:
    """Return the vectors [n, D] of rows."""
    vectors = np.array([row["vector"] for row in rows], np.float32)
    if corrupt := corrupt_vectors(vectors):
        raise CorruptRowError(url, rows[corrupt[0]]["image_id"], "its vector must be finite numbers")
    return vectors


def to_thumbnail(row: Mapping[str, Any], url: str) -> bytes:
    """Return the small JPEG of a row."""
    try:
        return base64.b64decode(row["thumbnail"], validate=True)
    except (ValueError, TypeError):
        raise CorruptRowError(url, row["image_id"], "its thumbnail is not base64") from None
