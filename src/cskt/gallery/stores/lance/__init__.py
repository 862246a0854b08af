"""The store `lance`: a LanceDB table in the gallery's folder."""

from cskt.errors import file_system_errors
from cskt.gallery.stores.base import VectorStore
from cskt.gallery.stores.registry import StoreBackend, StoreLocation, register


@register("lance")
class LanceBackend(StoreBackend):
    """LanceDB, files in the folder of the gallery; takes a second to import."""

    def open(self, location: StoreLocation, *, create: bool) -> VectorStore:
        """See `open_lance`."""
        from cskt.gallery.stores.lance.lance_store import open_lance  # noqa: PLC0415

        return open_lance(location.folder, location.embed_dim, location.columns, create=create)

    def drop(self, location: StoreLocation) -> None:
        """See `drop_lance`."""
        from cskt.gallery.stores.lance.lance_store import drop_lance  # noqa: PLC0415

        with file_system_errors(location.folder):
            drop_lance(location.folder)
