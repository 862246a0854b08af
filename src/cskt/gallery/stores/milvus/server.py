"""Reaching a Milvus collection that holds a gallery: addresses, connections, the schema, errors in one line."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from pymilvus import DataType, MilvusClient, MilvusException

from cskt.errors import CsktError, NoAnswerError, StoreError
from cskt.gallery.stores.milvus.filters import partition_field
from cskt.gallery.stores.milvus.options import INDEXES, Options, check_for_lite, read_options

# They report an error to stderr with a traceback, and raise it; it is told once, by whoever catches it. The server that
# milvus-lite runs in this process does so by grpc, also for calls that pymilvus only tries.
for chatty in ("pymilvus", "milvus_lite", "grpc"):
    logging.getLogger(chatty).setLevel(logging.CRITICAL)
logging.getLogger("faiss").setLevel(logging.WARNING)

CONNECT_SECONDS = 5.0
CALL_SECONDS = 120.0
"""Of one request that writes or makes something; pymilvus asks again until then where nobody answers."""
READ_SECONDS = 20.0
"""Of one that reads; of one that reads everything, page by page, as of one that writes."""
GONE = (100, 800)
"""Milvus' codes for a collection and a database that are not there."""
LONGEST_ID = 4096
LONGEST_TEXT = 65_535
"""Bytes; Milvus' own limit."""

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
"""What can be filtered by is DOUBLE where it is a number: Milvus compares an INT64 with no fraction."""
_SERVER = re.compile(
    r"milvus://(?P<host>[^/:@\s]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]+)/(?P<name>[A-Za-z_]\w*)", re.ASCII
)

_files_in_use: Counter[str] = Counter()
"""Collections that this process has open, by file of milvus-lite: they share it, and the last one lets go of it."""
_files_lock = threading.Lock()


class Collection:
    """A collection that is open."""

    def __init__(self, url: str, uri: str, name: str, options: Options) -> None:
        self.url, self.name, self.options = url, name, options
        self._uri = uri
        with _files_lock:
            self.client = MilvusClient(uri, timeout=CONNECT_SECONDS)
            _files_in_use[uri] += 1
        self._is_open = True

    @cached_property
    def keeps_keys(self) -> bool:
        """Whether a replaced row keeps those keys of the dynamic field that the new one lacks.

        A server replaces the row; milvus-lite merges the two.
        """
        with one_line(self.url):
            return str(self.client.get_server_version(timeout=CALL_SECONDS)).startswith("milvus_lite")

    def close(self) -> None:
        """Let go of the connection, and of a file that no other collection of this process needs; once."""
        if not self._is_open:
            return
        self._is_open = False
        self.client.close()
        with _files_lock:
            _files_in_use[self._uri] -= 1
            if self._uri.endswith(".db") and not _files_in_use[self._uri]:
                # pymilvus would keep the file locked until this process ends.
                from milvus_lite.server_manager import server_manager_instance  # noqa: PLC0415  (not with a server)

                server_manager_instance.release_server(self._uri)


def open_collection(url: str, embed_dim: int, generation: str, *, create: bool) -> Collection:
    """A collection that is ready to be searched; see `open_milvus`."""
    uri, name = _address(url, generation)
    options = read_options(url)
    if uri.endswith(".db"):
        check_for_lite(url, options)
        if not create and not Path(uri).exists():  # connecting would make the file
            raise StoreError(f"{url}: no such file; restore it, or index into a new folder")
    with one_line(url):
        collection = Collection(url, uri, name, options)
        try:
            if collection.client.has_collection(name, timeout=CALL_SECONDS):
                _check_fields(collection, embed_dim)
                _check_index(collection)
                collection.client.load_collection(name, timeout=CALL_SECONDS)
            elif create:
                _create(collection, embed_dim)
            else:
                raise StoreError(f"{url}: has no collection '{name}'; restore it, or index into a new folder")
        except BaseException:
            collection.close()
            raise
    return collection


def drop_collection(url: str, generation: str) -> None:
    """Delete a collection, if it is there; see `drop_milvus`."""
    uri, name = _address(url, generation)
    with one_line(url):
        collection = Collection(url, uri, name, read_options(url))
        try:
            collection.client.drop_collection(name, timeout=CALL_SECONDS)
        finally:
            collection.close()


@contextmanager
def one_line(url: str) -> Iterator[None]:
    """Tell in a line what pymilvus tells in pages.

    Raises:
        CsktError: the request asks for something that Milvus does not take.
        NoAnswerError: anything else.
    """
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        reason = error.message if isinstance(error, MilvusException) else error.details()
        if "Open local milvus failed" in str(reason):
            reason = "another process has it open, it is no database of milvus-lite, or it is read-only; name another"
        # Milvus takes it for the client's mistake, too, that a collection is gone.
        is_ours = getattr(error, "is_input_error", False) and getattr(error, "code", 0) not in GONE
        raise (ValueError if is_ours else NoAnswerError)(f"{url}: {' '.join(str(reason).split())[:300]}") from error


def _address(url: str, generation: str) -> tuple[str, str]:
    """Where pymilvus connects, and the collection there."""
    suffix = f"_{generation}" if generation else ""
    place = url.partition("?")[0]
    if server := _SERVER.fullmatch(place):
        return f"http://{server['host']}:{server['port']}", server["name"] + suffix
    path = Path(place.removeprefix("milvus:"))
    if place.startswith("milvus://") or not place.startswith("milvus:") or path.suffix != ".db":
        raise CsktError(f"store '{url}' is not understood; expected milvus:FILE.db or milvus://HOST:PORT/COLLECTION")
    if not path.parent.is_dir():
        raise CsktError(f"{url}: no folder {path.parent}; make it first")
    return str(path.resolve()), f"crops{suffix}"


def _fields(options: Options) -> dict[str, DataType]:
    """What a collection of these options is made of."""
    return FIELDS if options.partition is None else {**FIELDS, partition_field(options.partition): DataType.VARCHAR}


def _create(collection: Collection, embed_dim: int) -> None:
    options = collection.options
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    settings: dict[str, dict[str, Any]] = {
        "image_id": {"is_primary": True, "max_length": LONGEST_ID},
        "vector": {"dim": embed_dim},
        # Twice the size of the vector and seldom read: it need not lie in the memory of the query nodes.
        "thumbnail": {"max_length": LONGEST_TEXT, "mmap_enabled": True},
        "sha256": {"max_length": 64},
    }
    if options.partition is not None:
        settings[partition_field(options.partition)] = {"is_partition_key": True, "max_length": LONGEST_TEXT}
    for name, kind in _fields(options).items():
        schema.add_field(name, kind, **settings.get(name, {}))
    index = MilvusClient.prepare_index_params()
    numbers = options.build_numbers()
    # Doubly wrapped: pymilvus takes the outer `params` apart, and milvus-lite reads the inner one; a server does both.
    index.add_index(
        "vector", index_type=INDEXES[options.index].milvus_type, metric_type="IP", params={"params": numbers}
    )
    spread = {} if options.partition is None else {"num_partitions": options.partitions}
    # Strong: a request that names no level sees everything that was written before it began.
    collection.client.create_collection(
        collection.name,
        schema=schema,
        index_params=index,
        consistency_level="Strong",
        num_shards=options.shards,
        timeout=CALL_SECONDS,
        **spread,
    )


def _check_fields(collection: Collection, embed_dim: int) -> None:
    described = collection.client.describe_collection(collection.name, timeout=CALL_SECONDS)
    fields = {field["name"]: field for field in described["fields"]}
    kinds = {name: field["type"] for name, field in fields.items()}
    what = f"{collection.url}: collection '{collection.name}'"
    if not described["enable_dynamic_field"] or {name: kinds.get(name) for name in FIELDS} != FIELDS:
        raise CsktError(f"{what} holds no gallery; name another one")
    if kinds != _fields(collection.options):
        raise CsktError(
            f"{what} has other partitions ({', '.join(kinds.keys() - FIELDS.keys()) or 'none'}); a collection keeps"
            " those it was made with: name another one"
        )
    dim = int(fields["vector"]["params"]["dim"])
    if dim != embed_dim:
        raise CsktError(
            f"{what} holds vectors of {dim} numbers, the model makes {embed_dim}; name another collection, or use the"
            " model that filled this one"
        )


def _check_index(collection: Collection) -> None:
    described = collection.client.describe_index(collection.name, "vector", timeout=CALL_SECONDS) or {}
    # A server lays the numbers out flat, as texts; milvus-lite hands them back in one.
    numbers = {**described, **described.get("params", {})}
    wanted = {"index_type": INDEXES[collection.options.index].milvus_type, **collection.options.build_numbers()}
    found = {name: numbers.get(name) for name in wanted}
    if any(str(found[name]) != str(value) for name, value in wanted.items()):
        shown = ", ".join(f"{name} {value}" for name, value in found.items())
        raise CsktError(
            f"{collection.url}: collection '{collection.name}' has another index ({shown}); a collection keeps the one"
            " it was made with: name another one, or give these numbers"
        )
