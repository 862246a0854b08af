"""Stores that a manifest names: opened, created and deleted; and the creation of a gallery."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cskt.errors import CsktError, file_system_errors
from cskt.gallery.calibration import CALIBRATION_FILE, load_calibration, save_calibration
from cskt.gallery.manifest import LOCK, MANIFEST, Manifest, write_manifest
from cskt.gallery.stores.base import VectorStore
from cskt.utils.messages import require
from cskt.utils.paths import inside

VECTORS = "vectors"
"""Folder of LanceDB's files, within a gallery."""


def create_gallery(folder: Path, manifest: Manifest) -> None:
    """Create an empty gallery; nothing is left of it if that fails."""
    with file_system_errors(folder):
        existed = folder.is_dir()
        # A creation that was killed leaves vectors and a lock without a manifest; the next one continues with them.
        if existed and any(entry.name not in (VECTORS, LOCK) for entry in folder.iterdir()):
            reason = "a gallery already" if (folder / MANIFEST).is_file() else "not empty, and no gallery"
            raise CsktError(f"{folder}: {reason}; name another folder")
    try:
        store = open_store(folder, manifest, create=True)
        try:
            num_crops = store.count()
        finally:
            store.close()
        if num_crops:
            place = folder / VECTORS if manifest.store == "lance" else manifest.store
            raise CsktError(f"{place}: contains {num_crops:,} crops of another gallery; name another place")
        write_manifest(folder, manifest)
        copy_calibration(folder, manifest)
    except BaseException:
        if not existed:
            _undo_creation(folder, manifest)
        raise


def copy_calibration(folder: Path, manifest: Manifest) -> None:
    """Copy the calibration of the run that fills a gallery, if it has one."""
    calibration = load_calibration(Path(manifest.model.path), manifest.fingerprint)
    if calibration is not None:
        save_calibration(folder, calibration, fingerprint=manifest.fingerprint, source=manifest.model.path)


def open_store(folder: Path, manifest: Manifest, *, create: bool) -> VectorStore:
    """Return the store that a manifest names; it is created if `create` is set, otherwise opening writes nothing."""
    if manifest.store == "lance":
        from cskt.gallery.stores.lance.lance_store import open_lance  # noqa: PLC0415  (a second to import)

        return open_lance(vectors_folder(folder, manifest), manifest.embed_dim, manifest.columns, create=create)
    if manifest.store.startswith("milvus:"):
        require("milvus", "pymilvus")
        from cskt.gallery.stores.milvus.milvus_store import open_milvus  # noqa: PLC0415  (slow to import, an extra)

        return open_milvus(manifest.store, manifest.embed_dim, manifest.columns, manifest.generation, create=create)
    raise CsktError(
        f"unknown store '{manifest.store}'; expected lance, milvus:FILE.db or milvus://HOST:PORT/COLLECTION"
    )


def drop_store(folder: Path, manifest: Manifest) -> None:
    """Delete the vectors of a model; a file that this program does not write is an error."""
    if manifest.store == "lance":
        from cskt.gallery.stores.lance.lance_store import drop_lance  # noqa: PLC0415  (as above)

        vectors = vectors_folder(folder, manifest)
        with file_system_errors(vectors):
            drop_lance(vectors)
    else:
        from cskt.gallery.stores.milvus.milvus_store import drop_milvus  # noqa: PLC0415  (as above)

        drop_milvus(manifest.store, manifest.generation)


def vectors_folder(folder: Path, manifest: Manifest) -> Path:
    """Return the folder of a model's vectors within a gallery; those of another model are beside it."""
    return inside(folder, VECTORS, manifest.generation, follow_links=False)


def _undo_creation(folder: Path, manifest: Manifest) -> None:
    """Delete the files of an unfinished creation in a new folder, and the folder unless it contains other files."""
    with suppress(CsktError, OSError):  # the error that stopped the creation is the one to report
        if manifest.store == "lance":
            drop_store(folder, manifest)
            (folder / VECTORS).rmdir()
    with suppress(OSError):
        for name in (MANIFEST, CALIBRATION_FILE, LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
