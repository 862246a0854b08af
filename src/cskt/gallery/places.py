"""Places of a gallery's model and files, after it or they may have moved.

On disk, `gallery.json` names what lies below the folder that holds the gallery relative to the gallery (`../crops`), so
that they move together, and everything else by its absolute path. In memory all paths are absolute. `home` is where the
gallery was when the paths were written: a relative path that leads nowhere is tried from there, for a gallery that was
moved alone.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.errors import CsktError, MissingBackboneError
from cskt.utils.paths import expanded

if TYPE_CHECKING:
    from cskt.gallery.manifest import Manifest

LITE = "milvus:"
"""Before the file of a milvus-lite; a server's address goes on with `//`."""


def to_disk(manifest: Manifest, gallery: Path) -> Manifest:
    """Return a manifest as it is written: with relative paths where gallery and files can move together."""
    home = gallery.resolve()
    return dataclasses.replace(_with_paths(manifest, lambda path: _relative(path, home)), home=str(home))


def to_memory(manifest: Manifest, gallery: Path) -> Manifest:
    """Return a manifest as it is used: with absolute paths."""
    folders = [gallery.resolve()]
    if manifest.home is not None and Path(manifest.home).is_absolute():
        folders.append(Path(manifest.home))
    placed = _with_paths(manifest, lambda path: _absolute(path, folders) if _is_relative(path) else path)
    if placed.images is None or Path(placed.images).is_absolute():
        return placed
    return dataclasses.replace(placed, images=_absolute(placed.images, folders))  # `crops`, as format 1 has it


def absolute_store(store: str) -> str:
    """Return the address of a store such that it holds from any working directory: with an absolute file."""
    file = store.removeprefix(LITE)
    if not store.startswith(LITE) or not file or file.startswith("//"):
        return store
    return f"{LITE}{expanded(file).resolve()}"


def _with_paths(manifest: Manifest, change: Callable[[str], str]) -> Manifest:
    """Return a manifest with all of its paths changed; what is no path (`ViT-B/16`, a server) stays."""
    model, store = manifest.model, manifest.store
    if store.startswith(LITE) and not store.startswith(f"{LITE}//"):
        file, mark, options = store.removeprefix(LITE).partition("?")
        store = f"{LITE}{change(file)}{mark}{options}"
    backbone = None if model.backbone is None else change(model.backbone)
    return dataclasses.replace(
        manifest,
        model=dataclasses.replace(model, path=change(model.path), backbone=backbone),
        images=None if manifest.images is None else change(manifest.images),
        shards=tuple(map(change, manifest.shards)),
        store=store,
    )


def _relative(path: str, home: Path) -> str:
    """Return an absolute path relative to the gallery if it lies below the folder around the gallery."""
    around = home.parent
    if not Path(path).is_absolute() or around == around.parent or not Path(path).is_relative_to(around):
        return path
    relative = Path(os.path.relpath(path, home)).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def _is_relative(path: str) -> bool:
    """Return whether a path was written by `_relative`; names such as `ViT-B/16` never begin so."""
    return path in (".", "..") or path.startswith(("./", "../"))


def _absolute(path: str, folders: list[Path]) -> str:
    """Return a path from the first folder where it leads somewhere; of a pattern of shards, where its folder is."""
    places = [os.path.normpath(folder / path) for folder in folders]
    return next((place for place in places if exists(place) or exists(_folder_of_pattern(place))), places[0])


def _folder_of_pattern(path: str) -> str:
    return str(Path(path).parent) if any(letter in path for letter in "*?[") else path


def exists(path: str) -> bool:
    """Return whether there is something at a path; False for text that cannot be a path."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def load_model(gallery: Path, source: ModelSource, options: EncodeOptions | None = None) -> Encoder:
    """Load the model that a manifest names.

    Args:
        gallery: folder of the gallery, for messages.
        source: where the model is.
        options: see `cskt.embed.load_source`.

    Raises:
        CsktError: it is not there, or cannot be loaded; names the gallery, and the command that states another place.
    """
    check_place(gallery, source)
    try:
        return load_source(source, options)
    except MissingBackboneError as error:
        raise CsktError(f"{gallery}: {error}; type: {_remedy(gallery, '--backbone', 'FILE')}") from None
    except CsktError as error:
        raise CsktError(f"{gallery}: its model cannot be loaded: {error}") from None


def check_place(gallery: Path, source: ModelSource) -> None:
    """See that the model's files are where a manifest says; a name such as `ViT-B/16` is not looked up.

    Raises:
        CsktError: they are not; names gallery and path, and the command that states another place.
    """
    for what, path, flag, value in (
        ("model", source.path, "--run", "PATH"),
        ("model's backbone", source.backbone, "--backbone", "FILE"),
    ):
        if path is not None and Path(path).is_absolute() and not exists(path):
            raise CsktError(
                f"{gallery}: its {what} is no longer at {path}; put it back, or say where it is now:"
                f" {_remedy(gallery, flag, value)}"
            )


def _remedy(gallery: Path, flag: str, value: str) -> str:
    """Return the command that states another place of the same model."""
    return f"{shlex.join(['cskt', 'reindex', str(gallery)])} {flag} {value}"
