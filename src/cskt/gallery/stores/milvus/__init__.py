"""The store `milvus`: a collection of a Milvus server, or a file of milvus-lite."""

from cskt.errors import CsktError
from cskt.gallery.stores.base import VectorStore
from cskt.gallery.stores.registry import StoreBackend, StoreLocation, register
from cskt.utils.messages import require


@register("milvus")
class MilvusBackend(StoreBackend):
    """Milvus, for large galleries; pymilvus is an extra, and slow to import."""

    def check(self, address: str) -> None:
        """Check that there is an address; opening checks its parts."""
        if not address:
            raise CsktError("needs an address: milvus:FILE.db or milvus://HOST:PORT/COLLECTION")

    def open(self, location: StoreLocation, *, create: bool) -> VectorStore:
        """See `open_milvus`."""
        require("milvus", "pymilvus")
        from cskt.gallery.stores.milvus.milvus_store import open_milvus  # noqa: PLC0415

        url = f"milvus:{location.address}"
        return open_milvus(url, location.embed_dim, location.columns, location.generation, create=create)

    def drop(self, location: StoreLocation) -> None:
        """See `drop_milvus`."""
        from cskt.gallery.stores.milvus.milvus_store import drop_milvus  # noqa: PLC0415

        drop_milvus(f"milvus:{location.address}", location.generation)
