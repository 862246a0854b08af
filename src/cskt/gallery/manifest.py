"""`gallery.json`, the manifest of a gallery: its model, store, columns and image source.

A gallery may come from somebody else, so every value is checked against the types of `Manifest` when it is read.

On disk, paths below the folder that contains the gallery are relative to the gallery (`../crops`), so that both can be
moved together, and all others are absolute. In memory all paths are absolute. `home` is the gallery's folder when the
paths were written: a relative path that does not exist is tried from there, for a gallery that was moved alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, with_config

from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.embed.model_paths import absolute_source
from cskt.embed.options import PathText, ShortText, check_path_text
from cskt.errors import CsktError, MissingFileError
from cskt.gallery.columns import Kind, column_name
from cskt.gallery.stores.base import check_sha256, operator_errors
from cskt.gallery.stores.registry import backend_of, plugins_of, split_store
from cskt.plugins import Requirement
from cskt.utils.arguments import expect
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, read_json
from cskt.utils.messages import command_text, warn_deprecated
from cskt.utils.paths import check_path, expanded

PAPER_DOLLS = (
    "this model knows paper dolls, not people: fill the gallery with a trained run or CLIP weights before you trust it"
)
"""Warning about clip-tiny and models trained over it, which their small vocabulary shows."""
MANIFEST = "gallery.json"
GALLERY_LOCK = "gallery.lock"
"""Locked during every change of a gallery."""
AUDIT_FILE = "audit.jsonl"
"""Log of the requests to a service, within a gallery; see `cskt.service.audit`."""
LITE = "milvus:"
"""Prefix of the file of a milvus-lite; the address of a server continues with `//`."""
_STORE = re.compile(r"[a-z][a-z0-9_-]{0,62}(?![^:])")
FORMAT_VERSION = 2
"""2 added relative paths, `home`, `image_list`, `ignore` and `shards`; files of format 1 are read."""
REMEDY = "no manifest of a gallery, or a corrupt one: restore it, or index into a new folder"
MAX_PLUGIN_NAME_CHARACTERS = 200
"""Characters of the name of a plug-in."""
MAX_WIDTH = 65_536
"""Largest width of a vector."""


def check_store(text: str) -> str:
    """Return `NAME` or `NAME:ADDRESS` of a store unchanged; opening checks that the store exists."""
    if not _STORE.match(text):
        raise CsktError("must be the name of a store, or NAME:ADDRESS: lance, milvus://HOST:PORT/COLLECTION")
    return check_path_text(text)


def _check_columns(columns: Mapping[str, Kind]) -> Mapping[str, Kind]:
    for name in columns:
        with suppress(CsktError):
            if column_name(name) == name:
                continue
        raise CsktError(f"must hold names of metadata columns as filters write them, which {name[:80]!r} is not")
    return columns


def _check_plugins(plugins: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    for plugin in plugins:
        check_path_text(plugin.name)
        if not 0 < len(plugin.name) <= MAX_PLUGIN_NAME_CHARACTERS or len(plugin.provides) != 1:
            raise CsktError("must name a plug-in, and the one store that it provides")
        if plugin.sha256:
            check_sha256(plugin.sha256)
    return plugins


def _check_file_name(text: str) -> str:
    if text in (".", "..") or "/" in text or "\\" in text:
        raise CsktError("must be the name of a file, without a folder")
    return text


@with_config(JSON)
@dataclass(frozen=True)
class Manifest:
    """Content of `gallery.json`."""

    model: ModelSource
    fingerprint: Annotated[str, AfterValidator(check_sha256)]
    """`Encoder.fingerprint` of the model that filled the gallery."""
    embed_dim: Annotated[int, Ge(1), Le(MAX_WIDTH)]
    warning: ShortText | None = None
    """Warning for users of the model."""
    store: Annotated[str, Len(1, 4096), AfterValidator(check_store)] = "lance"
    """`NAME` or `NAME:ADDRESS`, see `cskt.gallery.stores`: `lance`, or the address of a Milvus collection."""
    columns: Annotated[Mapping[str, Kind], AfterValidator(_check_columns)] = field(default_factory=dict)
    """Metadata columns, in the order in which they came."""
    images: PathText | None = None
    """The indexed folder; None before the first indexing."""
    image_list: Annotated[PathText, AfterValidator(_check_file_name)] | None = None
    """Name of a list of files within the folder; None if all files are indexed."""
    ignore: Annotated[tuple[ShortText, ...], Len(0, 1000)] = ()
    """Patterns of files and folders that are not indexed; see `ignoring`."""
    shards: tuple[PathText, ...] = ()
    """Paths or patterns of the shards of the last indexing."""
    home: PathText | None = None
    """Folder of the gallery when its paths were written."""
    upright: bool = False
    """True if every crop is encoded as its EXIF orientation says; see `cskt.gallery.indexing.reencoding`."""
    created: ShortText = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    plugins: Annotated[tuple[Requirement, ...], Len(0, 1), AfterValidator(_check_plugins)] = ()
    """The plug-in that the store comes from; none for a store of the package."""

    @classmethod
    def of(cls, encoder: Encoder, model: ModelSource, store: str) -> Manifest:
        """Return the manifest of a new gallery; the file of a milvus-lite becomes an absolute path."""
        backend_of(store)  # before its plug-in is looked up
        return cls(store=absolute_store(store), upright=True, plugins=plugins_of(store), **_facts_of(encoder, model))

    def with_model(self, encoder: Encoder, model: ModelSource) -> Manifest:
        """Return the manifest of the same gallery filled by another model."""
        return replace(self, **_facts_of(encoder, model))

    @property
    def model_name(self) -> str:
        """Short name of the model."""
        path = Path(self.model.path)
        return path.name if path.is_absolute() else self.model.path

    @property
    def store_in_folder(self) -> bool:
        """Return whether the store's files are in the gallery's folder."""
        return not split_store(self.store)[1]

    @property
    def generation(self) -> str:
        """Name of the vectors of this model."""
        return self.fingerprint[:12]


def _facts_of(encoder: Encoder, model: ModelSource) -> dict[str, Any]:
    return {
        "model": absolute_source(model),
        "fingerprint": encoder.fingerprint,
        "embed_dim": encoder.embed_dim,
        "warning": PAPER_DOLLS if encoder.tokenizer.knows_few_words else None,
    }


def source_of(encoder: Encoder, model: str | Path | ModelSource | None) -> ModelSource:
    """Return what an encoder was loaded from; a stated source counts only for an encoder without one.

    Raises:
        CsktError: neither is known, or the stated source is another model.
    """
    expect(encoder, Encoder, "encoder", "cskt.load makes one")
    if encoder.source is not None:
        if model is not None:
            warn_deprecated("the argument 'model'", "the encoder alone, which knows what it was loaded from")
        return encoder.source
    if model is None:
        raise CsktError("the encoder was not made by cskt.load; state what to load it from: model=PATH")
    source = as_source(model)
    stated = load_source(source, EncodeOptions(encoder.device))
    if stated.fingerprint != encoder.fingerprint:
        raise CsktError(
            f"{source.path}: another model (fingerprint {stated.fingerprint[:12]}) than the encoder"
            f" ({encoder.fingerprint[:12]}); write the encoder to a file of its own with encoder.save(PATH)"
        )
    return source


def as_source(model: str | Path | ModelSource) -> ModelSource:
    """Return the source that a path names; a source stays as it is."""
    expect(model, (str, Path, ModelSource), "model")
    return model if isinstance(model, ModelSource) else ModelSource(str(model))


def is_gallery(folder: Path) -> bool:
    """Return whether a folder is a gallery."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a gallery; its paths become absolute."""
    check_path(folder)
    try:
        manifest = read_json(folder / MANIFEST, Manifest, remedy=REMEDY, version=("format_version", FORMAT_VERSION))
    except MissingFileError:
        make = command_text("index", folder, "--images", "FOLDER")
        raise CsktError(f"{folder}: no gallery there; make one: {make}") from None
    folders = [folder.resolve()]
    if manifest.home is not None and Path(manifest.home).is_absolute():
        folders.append(Path(manifest.home))
    placed = _with_paths(manifest, lambda path: _absolute(path, folders) if _is_relative(path) else path)
    if placed.images is None or Path(placed.images).is_absolute():
        return placed
    return replace(placed, images=_absolute(placed.images, folders))  # `crops`, as format 1 has it


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest completely or not at all, with relative paths where gallery and files can move together."""
    home = folder.resolve()
    placed = replace(_with_paths(manifest, lambda path: _relative(path, home)), home=str(home))
    content = {"format_version": FORMAT_VERSION, **asdict(placed)}
    if not placed.plugins:
        del content["plugins"]  # so that older programs, which do not know the field, read the gallery
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with operator_errors():
        write_atomically(folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def exists(path: str | Path) -> bool:
    """Return whether a path exists; False for text that cannot be a path."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def absolute_store(store: str) -> str:
    """Return the address of a store with an absolute file, so that it is valid in any working directory."""
    file = store.removeprefix(LITE)
    if not store.startswith(LITE) or not file or file.startswith("//"):
        return store
    return f"{LITE}{expanded(file).resolve()}"


def _with_paths(manifest: Manifest, change: Callable[[str], str]) -> Manifest:
    """Return a manifest with all of its paths changed; names (`ViT-B/16`, a server) stay."""
    model, store = manifest.model, manifest.store
    if store.startswith(LITE) and not store.startswith(f"{LITE}//"):
        file, mark, options = store.removeprefix(LITE).partition("?")
        store = f"{LITE}{change(file)}{mark}{options}"
    backbone = None if model.backbone is None else change(model.backbone)
    return replace(
        manifest,
        model=replace(model, path=change(model.path), backbone=backbone),
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
    """Return a path from the first folder where it exists; of a pattern of shards, where its folder exists."""
    places = [os.path.normpath(folder / path) for folder in folders]
    is_pattern = any(letter in path for letter in "*?[")
    return next((place for place in places if exists(Path(place).parent if is_pattern else place)), places[0])
