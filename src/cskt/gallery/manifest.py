"""`gallery.json`: what a gallery is made of. The crops themselves are in its store.

A gallery may come from somebody else, so every value is checked against the types of `Manifest` when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, with_config

from cskt.config.types import WeightsChoice
from cskt.embed import Encoder, load
from cskt.embed.models import RUN_WEIGHTS
from cskt.errors import CsktError, MissingFileError
from cskt.gallery.columns import Kind, column_name
from cskt.gallery.places import absolute_store, exists, to_disk, to_memory
from cskt.gallery.stores.base import check_sha256, operator_errors
from cskt.model.io.files import backbone_name_of
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, read_json
from cskt.utils.paths import expanded

PAPER_DOLLS = (
    "this model knows paper dolls, not people: fill the gallery with a trained run or CLIP weights before you trust it"
)
"""Of clip-tiny, and of what was trained over it: its vocabulary is that of generated captions."""
MANIFEST = "gallery.json"
LOCK = "gallery.lock"
"""Held by whoever changes a gallery; ends with its process."""
FORMAT_VERSION = 2
"""2 added relative paths, `home`, `image_list`, `ignore` and `shards`; files of format 1 are read."""
REMEDY = "no manifest of a gallery, or a damaged one: restore it, or index into a new folder"
LARGEST_WIDTH = 65_536
"""Largest width of a vector."""
LARGEST_SIDE = 100_000
"""Largest side of an image, in pixels."""


def _check_path(text: str) -> str:
    if "\0" in text:
        raise CsktError("must be a path or a name, without a null character")
    return text


def _check_store(text: str) -> str:
    if text != "lance" and not text.startswith("milvus:"):
        raise CsktError("must be lance, milvus:FILE.db or milvus://HOST:PORT/COLLECTION")
    return _check_path(text)


def _check_columns(columns: Mapping[str, Kind]) -> Mapping[str, Kind]:
    for name in columns:
        try:
            is_one = column_name(name) == name
        except ValueError:
            is_one = False
        if not is_one:
            raise CsktError(f"must hold names of metadata columns as filters write them, which {name[:80]!r} is not")
    return columns


def _check_file_name(text: str) -> str:
    if text in (".", "..") or "/" in text or "\\" in text:
        raise CsktError("must be the name of a file, without a folder")
    return text


PathText = Annotated[str, Len(1, 4096), AfterValidator(_check_path)]
ShortText = Annotated[str, Len(0, 1000)]
Side = Annotated[int, Ge(1), Le(LARGEST_SIDE)]


@with_config(JSON)
@dataclass(frozen=True)
class ModelSource:
    """Where a gallery's model comes from: what `cskt.load` takes."""

    path: PathText
    """A run, a released folder, a CLIP weight file, a published name, `clip-tiny`."""
    backbone: PathText | None = None
    """CLIP weights of an adapter-only run, where its config does not say."""
    image_height: Side | None = None
    """Of plain CLIP weights, in pixels."""
    image_width: Side | None = None
    stride: Side | None = None
    precision: ShortText | None = None
    """Arithmetic of the towers; `auto` (see `cskt.load`) if empty."""
    weights: WeightsChoice | None = None
    """Choice of weights in a checkpoint that also holds their moving average; those of the model if empty."""
    settings: dict[str, Any] | None = None
    """Settings that the file of plain CLIP weights does not state; see `cskt.load`."""

    def load(
        self,
        device: str | None = None,
        *,
        batch_size: int = 128,
        num_workers: int = 4,
        compile: bool = False,
    ) -> Encoder:
        """The encoder; see `cskt.load` for how it computes.

        Raises:
            CsktError: see `cskt.load`.
        """
        return load(
            self.path,
            self.backbone,
            device,
            precision=self.precision or "auto",
            image_height=self.image_height,
            image_width=self.image_width,
            stride=self.stride,
            weights=self.weights or "model",
            settings=self.settings,
            batch_size=batch_size,
            num_workers=num_workers,
            compile=compile,
        )

    def absolute(self) -> ModelSource:
        """Return the same source with absolute paths, the backbone of an adapter-only run included; names stay."""

        def settled(name: str) -> str:
            return str(expanded(name).resolve()) if expanded(name).exists() else name

        backbone = self.backbone
        if backbone is None and (needed := needed_backbone(expanded(self.path))) and exists(needed):
            backbone = needed
        return replace(self, path=settled(self.path), backbone=backbone and settled(backbone))


def needed_backbone(path: Path) -> str | None:
    """Return the backbone of an adapter-only run as its config names it; None for any other model."""
    weights = path / RUN_WEIGHTS if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.is_file():
        return None
    return backbone_name_of(weights)


@with_config(JSON)
@dataclass(frozen=True)
class Manifest:
    """What `gallery.json` says."""

    model: ModelSource
    fingerprint: Annotated[str, AfterValidator(check_sha256)]
    """`Encoder.fingerprint` of the model that filled the gallery."""
    embed_dim: Annotated[int, Ge(1), Le(LARGEST_WIDTH)]
    warning: ShortText | None = None
    """What users of the model must know, if anything."""
    store: Annotated[str, Len(1, 4096), AfterValidator(_check_store)] = "lance"
    """`lance`, or the address of a Milvus collection."""
    columns: Annotated[Mapping[str, Kind], AfterValidator(_check_columns)] = field(default_factory=dict)
    """Metadata columns, in the order in which they came."""
    images: PathText | None = None
    """The indexed folder; none before the first indexing."""
    image_list: Annotated[PathText, AfterValidator(_check_file_name)] | None = None
    """A list of the files that count, by its name within the folder; none where all of them do."""
    ignore: Annotated[tuple[ShortText, ...], Len(0, 1000)] = ()
    """Patterns of files and folders that are not indexed; see `ignoring`."""
    shards: tuple[PathText, ...] = ()
    """Paths or patterns of the shards that were handed over last."""
    home: PathText | None = None
    """Folder of the gallery when its paths were written; see `places`."""
    upright: bool = False
    """True if every crop is encoded as its EXIF orientation says; galleries of older versions are so once they have
    been indexed again, see `cskt.gallery.indexing.upright`."""
    created: ShortText = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, encoder: Encoder, model: ModelSource, store: str) -> Manifest:
        """The manifest of a new gallery.

        Args:
            encoder: the model that will fill it.
            model: where it was loaded from.
            store: as the user named it; the file of a milvus-lite is settled to hold from any folder.
        """
        return cls(store=absolute_store(store), upright=True, **_facts_of(encoder, model))

    def with_model(self, encoder: Encoder, model: ModelSource) -> Manifest:
        """The manifest of the same gallery once another model has filled it."""
        return replace(self, **_facts_of(encoder, model))

    @property
    def model_name(self) -> str:
        """What people call the model."""
        path = Path(self.model.path)
        return path.name if path.is_absolute() else self.model.path

    @property
    def generation(self) -> str:
        """Name of the vectors of this model; a reindexed gallery has others under another name."""
        return self.fingerprint[:12]


def _facts_of(encoder: Encoder, model: ModelSource) -> dict[str, Any]:
    return {
        "model": model.absolute(),
        "fingerprint": encoder.fingerprint,
        "embed_dim": encoder.model.architecture.embed_dim,
        "warning": None if encoder.tokenizer.known_ids is None else PAPER_DOLLS,
    }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a gallery.

    Raises:
        CsktError: no gallery there, or one that cannot be read; says what to do.
    """
    try:
        manifest = read_json(folder / MANIFEST, Manifest, remedy=REMEDY, version=("format_version", FORMAT_VERSION))
    except MissingFileError:
        raise CsktError(f"{folder}: no gallery there; make one: cskt index {folder} --images FOLDER") from None
    return to_memory(manifest, folder)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all.

    Raises:
        StoreError: the disk is full, the folder is read-only, ...
    """
    content = {"format_version": FORMAT_VERSION, **asdict(to_disk(manifest, folder))}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with operator_errors():
        write_atomically(folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))
