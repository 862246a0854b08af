"""Stores of a gallery's crops: a `VectorStore` reads and writes, a `StoreBackend` opens it, `register` adds a kind.

Importing this package loads neither LanceDB nor pymilvus.
"""

from cskt.gallery.stores.base import VectorStore
from cskt.gallery.stores.lance import LanceBackend
from cskt.gallery.stores.milvus import MilvusBackend
from cskt.gallery.stores.registry import STORES, StoreBackend, StoreLocation, register
from cskt.gallery.stores.scan import ROW_FIELDS, ScanStore

__all__ = [
    "ROW_FIELDS",
    "STORES",
    "LanceBackend",
    "MilvusBackend",
    "ScanStore",
    "StoreBackend",
    "StoreLocation",
    "VectorStore",
    "register",
]
