"""Model and images that a gallery names, found at their place; errors name the command that states another place."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.errors import CsktError, MissingBackboneError, file_system_errors
from cskt.gallery.indexing.scanning import ImageSource, is_list
from cskt.gallery.manifest import Manifest, exists
from cskt.utils.paths import expanded, inside


def load_model(gallery: Path, source: ModelSource, options: EncodeOptions | None = None) -> Encoder:
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
        raise CsktError(
            f"{gallery}: was filled by another model ({manifest.model.path}, fingerprint {manifest.generation}; this"
            f" one is {encoder.fingerprint[:12]}); encode its crops anew: cskt reindex {gallery} --run MODEL"
        )


@file_system_errors()
def source_to_index(
    gallery: Path, manifest: Manifest | None, images: str | Path | None = None, ignore: Sequence[str] | None = None
) -> ImageSource:
    """Return the source to index; `GalleryState.remember_source` stores it for the next indexing.

    Args:
        gallery: its folder, for messages.
        manifest: None for a gallery that does not exist yet.
        images: a folder, or a list of paths; None: the source of the last indexing.
        ignore: patterns, see `ignoring`; None: those of the last indexing.
    """
    known = None if manifest is None or manifest.images is None else Path(manifest.images)
    if ignore is None:
        ignore = () if manifest is None else manifest.ignore
    if images is not None:
        place = expanded(images)
        try:
            list_file = place.parent.resolve() / place.name if is_list(place) else None
            folder = place.resolve() if list_file is None else list_file.parent
        except (RuntimeError, ValueError) as error:  # links in a circle, a null character
            raise CsktError(f"{str(images)[:200]!r}: not a path: {error}; name what to index: --images PATH") from None
        remedy = "name what to index: --images PATH"
    elif manifest is None or known is None:
        raise CsktError(f"{gallery}: has no folder of crops yet; name it: --images FOLDER")
    else:
        folder, name = known, manifest.image_list
        list_file = None if name is None else inside(folder, name)
        remedy = f"put it back, or say where it is now: {shlex.join(['cskt', 'index', str(gallery)])} --images PATH"
    if not folder.is_dir():
        raise CsktError(f"{folder}: no such folder of crops; {remedy}")
    if list_file is not None and not list_file.is_file():
        raise CsktError(f"{list_file}: no such list of paths; {remedy}")
    if manifest is not None:
        check_folder(gallery, manifest, folder)
    return ImageSource(folder, list_file, tuple(ignore))


def check_folder(gallery: Path, manifest: Manifest, folder: Path) -> None:
    """Check that a gallery's own folder of crops, if it still exists, is this one."""
    before = None if manifest.images is None else Path(manifest.images)
    if before is not None and before.is_dir() and before.resolve() != folder.resolve():
        raise CsktError(
            f"{gallery}: contains the crops of {before}; make another gallery for {folder}, or index a folder that"
            " contains both"
        )


def _remedy(gallery: Path, flag: str, value: str) -> str:
    return f"{shlex.join(['cskt', 'reindex', str(gallery)])} {flag} {value}"
