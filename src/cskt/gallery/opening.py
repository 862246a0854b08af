"""Store, model and images that a manifest names, found at their place; and the creation of a gallery.

Errors name the command that states another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.errors import CsktError, MissingBackboneError, file_system_errors
from cskt.gallery.calibration import CALIBRATION_FILE, load_calibration, save_calibration
from cskt.gallery.indexing.scanning import ImageSource, is_list
from cskt.gallery.manifest import GALLERY_LOCK, MANIFEST, Manifest, exists, is_gallery, write_manifest
from cskt.gallery.stores import StoreLocation, VectorStore
from cskt.gallery.stores.registry import backend_of, split_store
from cskt.utils.arguments import listed
from cskt.utils.messages import command_text
from cskt.utils.paths import check_path, expanded, inside

VECTORS = "vectors"
"""Folder of the store's files, within a gallery."""


def create_gallery(folder: Path, manifest: Manifest) -> None:
    """Create an empty gallery; nothing is left of it if that fails."""
    check_path(folder)
    with file_system_errors(folder):
        existed = folder.is_dir()
        # A creation that was killed leaves vectors and a lock without a manifest; the next one continues with them.
        if existed and any(entry.name not in (VECTORS, GALLERY_LOCK) for entry in folder.iterdir()):
            reason = "a gallery already" if is_gallery(folder) else "not empty, and no gallery"
            raise CsktError(f"{folder}: {reason}; name another folder")
    try:
        store = open_store(folder, manifest, create=True)
        try:
            num_crops = store.count()
        finally:
            store.close()
        if num_crops:
            place = folder / VECTORS if manifest.store_in_folder else manifest.store
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
    try:
        backend = backend_of(manifest.store, manifest.plugins)
    except CsktError as error:
        raise CsktError(f"{folder / MANIFEST}: {error}") from error
    return backend.open(_location(folder, manifest), create=create)


def drop_store(folder: Path, manifest: Manifest) -> None:
    """Delete the vectors of a model; a file that this program does not write is an error."""
    backend_of(manifest.store, manifest.plugins).drop(_location(folder, manifest))


def _location(folder: Path, manifest: Manifest) -> StoreLocation:
    _, address = split_store(manifest.store)
    vectors = vectors_folder(folder, manifest)
    return StoreLocation(vectors, address, manifest.embed_dim, manifest.columns, manifest.generation)


def vectors_folder(folder: Path, manifest: Manifest) -> Path:
    """Return the folder of a model's vectors within a gallery; those of another model are beside it."""
    return inside(folder, VECTORS, manifest.generation, follow_links=False)


def other_vectors(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the folders with vectors of other models, which an interrupted reindex has left."""
    vectors = folder / VECTORS
    with file_system_errors(vectors):
        found = sorted(vectors.iterdir()) if vectors.is_dir() else []
    return [path for path in found if path.name != manifest.generation]


def load_gallery_model(gallery: Path, source: ModelSource, options: EncodeOptions | None = None) -> Encoder:
    """Load the model that a manifest names."""
    check_place(gallery, source)
    try:
        return load_source(source, options)
    except MissingBackboneError as error:
        raise CsktError(f"{gallery}: {error}; type: {_remedy(gallery, '--backbone', 'FILE')}") from None
    except CsktError as error:
        raise CsktError(f"{gallery}: its model cannot be loaded: {error}") from None


def check_place(gallery: Path, source: ModelSource) -> None:
    """Check that the files of a model exist; a name such as `ViT-B/16` is not looked up."""
    for name, path, flag, value in (
        ("model", source.path, "--model", "PATH"),
        ("model's backbone", source.backbone, "--backbone", "FILE"),
    ):
        if path is not None and Path(path).is_absolute() and not exists(path):
            raise CsktError(
                f"{gallery}: its {name} is no longer at {path}; put it back, or say where it is now:"
                f" {_remedy(gallery, flag, value)}"
            )


def check_model(gallery: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Check that vectors of an encoder can be compared with those of a gallery."""
    if encoder.fingerprint != manifest.fingerprint:
        name, instead = manifest.model.path, ""
        if encoder.source is None or encoder.source.path != name:
            model = "MODEL"
        else:
            model, former = name, command_text("index", gallery, "--model", "OLD_FILE")
            instead = (
                f"; or, if the file of {name} was replaced, as clip-tiny was after 0.1.0, name the former one: {former}"
            )
        raise CsktError(
            f"{gallery}: was filled by another model ({name}, fingerprint {manifest.generation}; this one is"
            f" {encoder.fingerprint[:12]}); encode its crops anew: {_remedy(gallery, '--model', model)}{instead}"
        )


@file_system_errors()
def source_to_index(
    gallery: Path,
    manifest: Manifest | None,
    images: str | Path | None = None,
    ignore: str | Sequence[str] | None = None,
) -> ImageSource:
    """Return the source to index; `GalleryState.remember_source` stores it for the next indexing.

    Args:
        gallery: its folder, for messages.
        manifest: None for a gallery that does not exist yet.
        images: a folder, or a list of paths; None: the source of the last indexing.
        ignore: a pattern or several, see `ignoring`; None: those of the last indexing.
    """
    known = None if manifest is None or manifest.images is None else Path(manifest.images)
    if ignore is None:
        ignore = () if manifest is None else manifest.ignore
    if images is not None:
        place = expanded(images)
        list_file = place.parent.resolve() / place.name if is_list(place) else None
        folder = place.resolve() if list_file is None else list_file.parent
        remedy = "name what to index: --images PATH"
    elif manifest is None or known is None:
        raise CsktError(f"{gallery}: has no folder of crops yet; name it: --images FOLDER")
    else:
        folder, name = known, manifest.image_list
        list_file = None if name is None else inside(folder, name)
        remedy = f"put it back, or say where it is now: {command_text('index', gallery, '--images', 'PATH')}"
    if not folder.is_dir():
        raise CsktError(f"{folder}: no such folder of crops; {remedy}")
    if list_file is not None and not list_file.is_file():
        raise CsktError(f"{list_file}: no such list of paths; {remedy}")
    if manifest is not None:
        check_folder(gallery, manifest, folder)
    return ImageSource(folder, list_file, listed(ignore, str, "ignore"))


def check_folder(gallery: Path, manifest: Manifest, folder: Path) -> None:
    """Check that a gallery's own folder of crops, if it still exists, is this one."""
    before = None if manifest.images is None else Path(manifest.images)
    if before is not None and before.is_dir() and before.resolve() != folder.resolve():
        raise CsktError(
            f"{gallery}: contains the crops of {before}; make another gallery for {folder}, or index a folder that"
            " contains both"
        )


def _undo_creation(folder: Path, manifest: Manifest) -> None:
    """Delete the files of an unfinished creation in a new folder, and the folder unless it contains other files."""
    with suppress(CsktError, OSError):  # the error that stopped the creation is the one to report
        if manifest.store_in_folder:
            drop_store(folder, manifest)
            (folder / VECTORS).rmdir()
    with suppress(OSError):
        for name in (MANIFEST, CALIBRATION_FILE, GALLERY_LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _remedy(gallery: Path, flag: str, value: str) -> str:
    return command_text("reindex", gallery, flag, value)
