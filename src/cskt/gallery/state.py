"""A gallery's manifest and store together, kept in step with what other processes do to them."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from cskt.embed import Encoder, ModelSource
from cskt.embed.model_paths import absolute_source
from cskt.errors import CsktError, GalleryChangedError
from cskt.gallery.calibration import CALIBRATION_FILE
from cskt.gallery.columns import BUILT_IN, Kind, Value, check_new_columns, convert, infer_kinds, is_empty, named
from cskt.gallery.conditions import Condition
from cskt.gallery.indexing.scanning import ImageSource, is_list
from cskt.gallery.manifest import LOCK, MANIFEST, Manifest, read_manifest, write_manifest
from cskt.gallery.originals import Originals
from cskt.gallery.stores.base import VectorStore, operator_errors
from cskt.utils.extras import require
from cskt.utils.paths import expanded, inside

VECTORS = "vectors"
"""Folder, within a gallery, of LanceDB's files."""


logger = logging.getLogger(__name__)


class Contents:
    """What a gallery holds: the manifest as it was last read, and the store that it names."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.store = open_store(folder, manifest, create=False)
        self._state = self._present_state()
        self._lock = FileLock(folder / LOCK)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whoever changes anything holds this lock while he does, one at a time over all processes.

        Raises:
            GalleryChangedError: see `refresh`; nothing may then be written.
        CsktError: the lock is a link.
        """
        self.refresh()  # before the lock, which would make a deleted folder again
        inside(self.folder, LOCK, follow_links=False)
        with self._lock:
            self.refresh()
            yield

    def refresh(self) -> None:
        """Read the manifest again if another process has changed it.

        Raises:
            GalleryChangedError: the gallery is of another model by now, or gone.
        """
        state = self._present_state()
        if state == self._state:
            return
        with operator_errors():
            manifest = read_manifest(self.folder)
        if manifest.generation != self.manifest.generation:
            raise GalleryChangedError(f"{self.folder}: was reindexed with another model; open it again")
        self.store.add_columns(manifest.columns)
        self.manifest, self._state = manifest, state

    @property
    def images(self) -> Path | None:
        """The indexed folder; none before the first indexing."""
        return None if self.manifest.images is None else Path(self.manifest.images)

    @property
    def originals(self) -> Originals:
        """The files that the gallery keeps itself."""
        return Originals(self.folder, self.store)

    def condition(self, where: str | Condition | None) -> Condition | None:
        """Parse a filter on the columns of the manifest; None for an empty one, and a parsed one stays as it is.

        Raises:
            CsktError: it is not a filter, or names an unknown column.
        """
        if not isinstance(where, str):
            return where
        if not where.strip():
            return None
        from cskt.gallery.filters import parse_filter  # noqa: PLC0415  (sqlglot is slow to import)

        return parse_filter(where, {**self.manifest.columns, **BUILT_IN})

    def source(self, images: str | Path | None = None, ignore: Sequence[str] | None = None) -> ImageSource:
        """Return what is to be indexed; see `source_to_index`."""
        self.refresh()
        return source_to_index(self.folder, self.manifest, images, ignore)

    def remember_source(self, source: ImageSource) -> None:
        """Let the next indexing without `images` bring the same source up to date.

        Raises:
            CsktError: the gallery holds the crops of another folder by now.
        """
        stated: dict[str, Any] = {
            "images": str(source.folder),
            "image_list": None if source.list_file is None else source.list_file.name,
            "ignore": source.ignore,
            "home": str(self.folder.resolve()),
        }
        with self.writing():
            check_folder(self.folder, self.manifest, source.folder)
            self._change_if_needed(**stated)

    def remember_shards(self, shards: Sequence[str], ignore: Sequence[str]) -> None:
        """Let the next indexing without `images` read the same shards, if the gallery has no folder.

        Args:
            shards: paths or patterns.
            ignore: see `ignoring`.
        """
        with self.writing():
            places = tuple(str(Path(shard).absolute()) for shard in shards)
            self._change_if_needed(shards=places, ignore=tuple(ignore), home=str(self.folder.resolve()))

    def remember_model(self, model: ModelSource) -> bool:
        """Let the gallery load its model from another place from now on; how it computes stays.

        Args:
            model: loads an encoder of the gallery's fingerprint.

        Returns:
            Whether the place is another than before.
        """
        with self.writing():
            before = self.manifest.model
            after = replace(absolute_source(model), precision=before.precision)
            self._change_if_needed(model=after)
        is_added = model.backbone is None and before.backbone is None  # from the run's config: it has not moved
        return (replace(after, backbone=None) if is_added else after) != before

    def note_upright(self) -> None:
        """Note that every crop is encoded as its EXIF orientation says; call it with the lock held."""
        self._change_if_needed(upright=True)

    def stated(self, rows: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Value | None]]:
        """Metadata in the form of its columns; columns that are new are made. None takes a value back.

        Args:
            rows: name of a crop -> column as the user calls it -> value.

        Raises:
            CsktError: a name that can be none, or a value that does not fit its column.
        """
        rows = {name: _named(row, name) for name, row in rows.items()}
        with self.writing():
            kinds: dict[str, Kind] = {**infer_kinds(rows.values()), **self.manifest.columns}
            stated = {
                name: {
                    column: _converted(value, kinds[column], column, name)
                    for column, value in row.items()
                    if column in kinds
                }
                for name, row in rows.items()
            }
            new = {column: kind for column, kind in kinds.items() if column not in self.manifest.columns}
            check_new_columns(self.manifest.columns, new)
            if new:
                self.store.add_columns(new)
                self._change(columns={**self.manifest.columns, **new})
        return stated

    def check_stated(self, rows: Iterable[tuple[str, Mapping[str, object]]]) -> None:
        """See that the gallery can hold the columns and values of rows that `stated` will get in several goes.

        Args:
            rows: (name of a crop, column as the user calls it -> value).

        Raises:
            CsktError: more columns than a gallery may have, a name that cannot be one, or a value that is too long.
        """
        self.refresh()
        known = self.manifest.columns
        new = set[str]()
        for image_id, row in rows:
            new.update(
                name for name, value in _named(row, image_id).items() if name not in known and not is_empty(value)
            )
            check_new_columns(known, new)

    def replace_by(self, manifest: Manifest, store: VectorStore) -> None:
        """Go over to the vectors of another model at once, and drop the old ones; call it with the lock held."""
        old, old_store = self.manifest, self.store
        self._change(
            **{name: getattr(manifest, name) for name in ("model", "fingerprint", "embed_dim", "warning", "upright")}
        )
        self.store = store
        old_store.close()
        try:
            drop_store(self.folder, old)
        except (ValueError, OSError) as error:  # no reason to do it all again
            logger.warning("the vectors of the model before are left over: %s", error)

    def _present_state(self) -> tuple[int, int]:
        state = state_of(self.folder / MANIFEST)
        if state is None:
            raise GalleryChangedError(f"{self.folder}: the gallery is gone; open it again where it is now")
        return state

    def _change_if_needed(self, **changes: Any) -> None:
        """Change the manifest where it says otherwise; call it with the lock held."""
        if replace(self.manifest, **changes) != self.manifest:
            self._change(**changes)

    def _change(self, **changes: Any) -> None:
        """Change the manifest, on disk and then here; call it with the lock held."""
        manifest = replace(self.manifest, **changes)
        write_manifest(self.folder, manifest)
        self.manifest = manifest
        self._state = self._present_state()


def _named(row: Mapping[str, object], image_id: str) -> dict[str, object]:
    try:
        return named(row)
    except ValueError as error:
        raise CsktError(f"{image_id}: {error}") from None


def _converted(value: object, kind: Kind, column: str, image_id: str) -> Value | None:
    try:
        return convert(value, kind, column)
    except ValueError as error:
        remedy = "; the column was made for that: write the value so, or give the column another name"
        raise CsktError(f"{image_id}: {error}{'' if kind == 'text' else remedy}") from None


def source_to_index(
    gallery: Path, manifest: Manifest | None, images: str | Path | None = None, ignore: Sequence[str] | None = None
) -> ImageSource:
    """Return what is to be indexed; `Contents.remember_source` lets the next indexing have it, too.

    Args:
        gallery: its folder, for messages.
        manifest: None for a gallery that is to be made.
        images: a folder, or a list of paths; what was indexed last if empty.
        ignore: see `ignoring`; as last time if empty.

    Raises:
        CsktError: nothing was indexed before, it is gone, a pattern is not understood, or the gallery holds the crops
            of another folder.
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
        remedy = f"put it back, or say where it is now: {shlex.join(['cskt', 'index', str(gallery)])} --images PATH"
    if not folder.is_dir():
        raise CsktError(f"{folder}: no such folder of crops; {remedy}")
    if list_file is not None and not list_file.is_file():
        raise CsktError(f"{list_file}: no such list of paths; {remedy}")
    if manifest is not None:
        check_folder(gallery, manifest, folder)
    return ImageSource(folder, list_file, tuple(ignore))


def check_folder(gallery: Path, manifest: Manifest, folder: Path) -> None:
    """See that a folder is the one that the gallery holds the crops of, wherever it is now.

    Raises:
        CsktError: the gallery's own folder of crops is there, and it is another one.
    """
    before = None if manifest.images is None else Path(manifest.images)
    if before is not None and before.is_dir() and before.resolve() != folder.resolve():
        raise CsktError(
            f"{gallery}: holds the crops of {before}; make another gallery for {folder}, or index a folder that holds"
            " both"
        )


def check_model(folder: Path, manifest: Manifest, encoder: Encoder) -> None:
    """See that vectors of this encoder can be compared with those of a gallery.

    Raises:
        CsktError: another model filled it; says what to do.
    """
    if encoder.fingerprint != manifest.fingerprint:
        raise CsktError(
            f"{folder}: was filled by another model ({manifest.model.path}, fingerprint {manifest.generation}; this one"
            f" is {encoder.fingerprint[:12]}); encode its crops anew: cskt reindex {folder} --run MODEL"
        )


def open_store(folder: Path, manifest: Manifest, *, create: bool) -> VectorStore:
    """The store that a manifest names.

    Args:
        folder: of the gallery.
        create: make it where it is missing; if false, opening writes nothing.

    Raises:
        CsktError: it is missing, cannot be opened, does not fit the manifest, or its address is not understood.
    """
    if manifest.store == "lance":
        from cskt.gallery.stores.lance.lance_store import open_lance  # noqa: PLC0415  (a second to import)

        return open_lance(vectors_folder(folder, manifest), manifest.embed_dim, manifest.columns, create=create)
    if manifest.store.startswith("milvus:"):
        require("milvus", "pymilvus")
        from cskt.gallery.stores.milvus.milvus_store import open_milvus  # noqa: PLC0415  (a second to import, and an extra)

        return open_milvus(
            manifest.store, manifest.embed_dim, manifest.columns, manifest.generation, create=create
        )  # fmt: skip
    raise CsktError(
        f"unknown store '{manifest.store}'; expected lance, milvus:FILE.db or milvus://HOST:PORT/COLLECTION"
    )


def drop_store(folder: Path, manifest: Manifest) -> None:
    """Delete the vectors of a model.

    Raises:
        ValueError, OSError: something of them cannot be deleted, or is not what this program makes.
    """
    if manifest.store == "lance":
        from cskt.gallery.stores.lance.lance_store import drop_lance  # noqa: PLC0415  (as above)

        drop_lance(vectors_folder(folder, manifest))
    else:
        from cskt.gallery.stores.milvus.milvus_store import drop_milvus  # noqa: PLC0415  (as above)

        drop_milvus(manifest.store, manifest.generation)


def undo_creation(folder: Path, manifest: Manifest) -> None:
    """Delete what an unfinished creation has made in a new folder, and the folder unless something else is in it."""
    with suppress(ValueError, OSError):  # the error that stopped the creation is the one to report
        if manifest.store == "lance":
            drop_store(folder, manifest)
            (folder / VECTORS).rmdir()
    with suppress(OSError):
        for name in (MANIFEST, CALIBRATION_FILE, LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def vectors_folder(folder: Path, manifest: Manifest) -> Path:
    """Return the folder of a model's vectors within a gallery; those of another model are beside it.

    Raises:
        CsktError: a link is in the way.
    """
    return inside(folder, VECTORS, manifest.generation, follow_links=False)


def state_of(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew; none where there is no file."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_mtime_ns, state.st_ino
