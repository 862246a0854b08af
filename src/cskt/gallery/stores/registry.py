"""Registry of stores, and the interface by which a gallery opens and deletes one.

A gallery names its store as `NAME` or `NAME:ADDRESS`: `lance`, `milvus://HOST:PORT/COLLECTION`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cskt.errors import CsktError
from cskt.gallery.columns import Kind
from cskt.gallery.stores.base import VectorStore
from cskt.plugins import Registry, Requirement, required, requirements


@dataclass(frozen=True)
class StoreLocation:
    """Place of the vectors of one model of a gallery, and what it must be able to hold."""

    folder: Path
    """Folder within the gallery for files of the store; another model has another one. It may not exist."""
    address: str
    """Text after `NAME:`; empty for a store whose files are in `folder`."""
    embed_dim: int
    """D, width of the vectors."""
    columns: Mapping[str, Kind]
    """Metadata columns of the gallery."""
    generation: str = ""
    """Name of the model's vectors, for a store at an address that several models share."""


class StoreBackend:
    """A kind of store, which `register` makes known by its name; import slow libraries within the methods."""

    def check(self, address: str) -> None:
        """Check an address before anything is written; by default there must be none.

        Raises:
            CsktError: what is wrong with the address.
        """
        if address:
            raise CsktError("takes no address; its files are in the gallery's folder")

    def open(self, location: StoreLocation, *, create: bool) -> VectorStore:
        """Open the crops at a location.

        Args:
            location: where they are.
            create: make the store, and the columns that it lacks; if False, nothing is written.

        Raises:
            StoreError: there is no such store, and `create` is not set; or it is corrupt.
        """
        raise NotImplementedError

    def drop(self, location: StoreLocation) -> None:
        """Delete the files of a location that this store has written, and no others; there may be none."""
        raise NotImplementedError


STORES: Registry[StoreBackend] = Registry("store", "cskt.stores")
"""Stores by name; `register` adds one."""
New = TypeVar("New", bound=StoreBackend)


def register(name: str) -> Callable[[type[New]], type[New]]:
    """Return a decorator that makes a `StoreBackend` known as `--store NAME`.

    Raises:
        CsktError: the name is taken.
    """

    def add(backend: type[New]) -> type[New]:
        STORES.register(name, backend())
        return backend

    return add


def split_store(store: str) -> tuple[str, str]:
    """Return the name and the address of `NAME:ADDRESS`."""
    name, _, address = store.partition(":")
    return name, address


def backend_of(store: str, plugins: tuple[Requirement, ...] = ()) -> StoreBackend:
    """Return the kind of a store, after checking its address.

    Args:
        store: `NAME` or `NAME:ADDRESS`.
        plugins: plug-ins that a gallery states it needs, for the message if the store is unknown.

    Raises:
        CsktError: the store is unknown, or its address is wrong.
    """
    name, address = split_store(store)
    with required(plugins):
        backend = STORES[name]
    try:
        backend.check(address)
    except CsktError as error:
        raise CsktError(f"store '{store}': {error}") from None
    return backend


def plugins_of(store: str) -> tuple[Requirement, ...]:
    """Return the plug-in that a store comes from, as a gallery records it; none for those of the package."""
    return requirements([(STORES, split_store(store)[0])])
