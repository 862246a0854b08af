"""State of an open gallery: its manifest and store, kept in step with other processes, and every change of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from cskt.embed import ModelSource
from cskt.embed.model_paths import absolute_source
from cskt.errors import CsktError, GalleryChangedError, StoreError, file_system_errors, from_os_error
from cskt.gallery.calibration import CALIBRATION_FILE, load_calibration
from cskt.gallery.columns import (
    BUILT_IN,
    Kind,
    Value,
    check_new_columns,
    convert,
    find_column,
    infer_kinds,
    is_empty,
    named,
)
from cskt.gallery.conditions import Condition
from cskt.gallery.indexing.encoding import digest
from cskt.gallery.indexing.scanning import ImageSource
from cskt.gallery.manifest import GALLERY_LOCK, MANIFEST, Manifest, read_manifest, write_manifest
from cskt.gallery.opening import check_folder, copy_calibration, drop_store, open_store
from cskt.gallery.options import SearchOptions
from cskt.gallery.originals import Originals, original_path
from cskt.gallery.stores.base import CropRecord, VectorStore, operator_errors
from cskt.utils.arguments import expect
from cskt.utils.messages import command_text, nearest
from cskt.utils.paths import inside

logger = logging.getLogger(__name__)

Row = Mapping[str, object]
"""Metadata of a crop: column as the user calls it -> value; None deletes a value."""


class GalleryState:
    """Manifest as it was last read, and the store that it names."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.store = open_store(folder, manifest, create=False)
        self._read_at = self._file_state()
        self._lock = FileLock(folder / GALLERY_LOCK)
        self._calibrated_at: tuple[object, str] | None = None
        self._min_score: float | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of every change, over all processes; see `refresh`."""
        self.refresh()  # before the lock, which would create a deleted folder again
        inside(self.folder, GALLERY_LOCK, follow_links=False)
        with operator_errors(), file_system_errors(self.folder / GALLERY_LOCK):
            self._lock.acquire()
        try:
            self.refresh()
            yield
        finally:
            self._lock.release()

    def refresh(self) -> GalleryState:
        """Read the manifest again if another process has changed it, and return this state.

        Raises:
            GalleryChangedError: the gallery was filled by another model, or deleted.
        """
        state = self._file_state()
        if state != self._read_at:
            with operator_errors():
                manifest = read_manifest(self.folder)
            if manifest.generation != self.manifest.generation:
                raise GalleryChangedError(f"{self.folder}: was reindexed with another model; open it again")
            self.store.add_columns(manifest.columns)
            self.manifest, self._read_at = manifest, state
        return self

    @property
    def images(self) -> Path | None:
        """The indexed folder; None before the first indexing."""
        return None if self.manifest.images is None else Path(self.manifest.images)

    @property
    def originals(self) -> Originals:
        """Uploaded files."""
        return Originals(self.folder, self.store)

    def file_of(self, crop: CropRecord) -> Path:
        """Return the path of a crop's file: among the uploads or within the indexed folder, nowhere else."""
        if crop.kept:
            return original_path(self.folder, crop.sha256)
        return inside(self.images or self.folder, crop.image_id)

    def unchanged_file(self, crop: CropRecord) -> Path:
        """Return the path of a crop's file if it exists with the indexed content."""
        name, root = crop.image_id, self.images or self.folder
        try:
            path = self.file_of(crop)
        except CsktError as error:
            raise CsktError(f"{name}: its file is gone ({error}); index again with --prune") from None
        with file_system_errors(path):
            if not crop.kept and not root.is_dir():
                command = command_text("index", self.folder, "--images", "FOLDER")
                place = f"the folder of crops is no longer at {root}"
                raise CsktError(f"{name}: {place}; put it back, or say where it is now: {command}")
            if not path.is_file():
                raise CsktError(f"{name}: its file is gone; put it back, or index again with --prune")
            # The folder that a stranger's gallery names may contain files of that name which were never in the gallery.
            if path.stat().st_size != crop.num_bytes or digest(path.read_bytes()) != crop.sha256:
                raise CsktError(f"{name}: its file has changed since it was indexed; index again")
        return path

    def min_score(self) -> float | None:
        """Return the calibrated threshold of the model, if there is one; the file is read again when it has changed."""
        state = state_of(self.folder / CALIBRATION_FILE), self.manifest.fingerprint
        if state != self._calibrated_at:
            with operator_errors():
                calibration = load_calibration(self.folder, self.manifest.fingerprint)
            self._calibrated_at, self._min_score = state, None if calibration is None else calibration.min_score
        return self._min_score

    def condition(self, where: str | Condition | None) -> Condition | None:
        """Parse a filter on the columns of the manifest; a parsed one, and None, stay as they are."""
        if not isinstance(where, str):
            expect(where, (*get_args(Condition), type(None)), "where")
            return where
        from cskt.gallery.filters import parse_filter  # noqa: PLC0415  (sqlglot is slow to import)

        return parse_filter(where, {**self.manifest.columns, **BUILT_IN})

    def checked(self, options: SearchOptions) -> SearchOptions:
        """Return options with a parsed filter, the name of a column, and the calibrated threshold if none is stated."""
        self.refresh()
        columns, group_by = self.manifest.columns, options.group_by
        if group_by is not None:
            if not columns:
                raise CsktError(f"no metadata to group by '{group_by}'; index with --metadata")
            try:
                group_by = find_column(group_by, columns)
            except CsktError:
                near = nearest(group_by, columns)
                raise CsktError(f"unknown column '{group_by}' to group by: {near}") from None
        min_score = self.min_score() if options.min_score is None else options.min_score
        return replace(options, where=self.condition(options.where), group_by=group_by, min_score=min_score)

    def remember_source(self, source: ImageSource) -> None:
        """Store what is indexed, so that the next indexing without `images` updates the same source."""
        with self.writing():
            check_folder(self.folder, self.manifest, source.folder)
            self._change(
                images=str(source.folder),
                image_list=None if source.list_file is None else source.list_file.name,
                ignore=source.ignore,
                home=str(self.folder.resolve()),
            )

    def remember_shards(self, shards: Sequence[str], ignore: Sequence[str]) -> None:
        """Store paths or patterns of shards, so that the next indexing of a gallery without a folder reads them."""
        places = tuple(str(Path(shard).absolute()) for shard in shards)
        with self.writing():
            self._change(shards=places, ignore=tuple(ignore), home=str(self.folder.resolve()))

    def remember_model(self, model: ModelSource) -> bool:
        """Store another place of the same model, whose precision stays; return whether it is another than before."""
        with self.writing():
            before = self.manifest.model
            after = replace(absolute_source(model), precision=before.precision)
            self._change(model=after)
        is_added = model.backbone is None and before.backbone is None  # from the run's config: it has not moved
        return (replace(after, backbone=None) if is_added else after) != before

    def mark_upright(self) -> None:
        """Note that every crop is encoded as its EXIF orientation says; the caller holds the lock."""
        self._change(upright=True)

    def convert_metadata(self, rows: Mapping[str, Row]) -> dict[str, dict[str, Value | None]]:
        """Convert metadata by names of crops to the kinds of its columns; new columns are created."""
        values = {name: _named(row, name) for name, row in rows.items()}
        with self.writing():
            kinds: dict[str, Kind] = {**infer_kinds(values.values()), **self.manifest.columns}
            converted = {
                name: {
                    column: _converted(value, kinds[column], column, name)
                    for column, value in row.items()
                    if column in kinds
                }
                for name, row in values.items()
            }
            new = {column: kind for column, kind in kinds.items() if column not in self.manifest.columns}
            check_new_columns(self.manifest.columns, new)
            if new:
                self.store.add_columns(new)
                self._change(columns={**self.manifest.columns, **new})
        return converted

    def check_metadata(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Check that the gallery can have the columns of rows which `convert_metadata` will get in several parts."""
        self.refresh()
        known = self.manifest.columns
        new = set[str]()
        for name, row in rows:
            filled = {column for column, value in _named(row, name).items() if not is_empty(value)}
            new |= filled - known.keys()
            check_new_columns(known, new)

    def replace_by(self, manifest: Manifest, store: VectorStore) -> None:
        """Switch to another model with its vectors and calibration; the caller holds the lock."""
        old, old_store = self.manifest, self.store
        names = ("model", "fingerprint", "embed_dim", "warning", "upright")
        self._change(**{name: getattr(manifest, name) for name in names})
        self.store = store
        old_store.close()
        try:
            drop_store(self.folder, old)
        except CsktError as error:  # no reason to encode everything again
            logger.warning("the vectors of the model before are left over: %s", error)
        copy_calibration(self.folder, self.manifest)

    def _file_state(self) -> tuple[int, int]:
        state = state_of(self.folder / MANIFEST)
        if state is None:
            raise GalleryChangedError(f"{self.folder}: the gallery is gone; open it again where it is now")
        return state

    def _change(self, **changes: Any) -> None:
        """Change the manifest, on disk and then here, unless it is so already; the caller holds the lock."""
        manifest = replace(self.manifest, **changes)
        if manifest != self.manifest:
            write_manifest(self.folder, manifest)
            self.manifest = manifest
            self._read_at = self._file_state()


def state_of(path: Path) -> tuple[int, int] | None:
    """Return values that change when a file is replaced; None if there is no file."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(str(from_os_error(error, path)), without_query=True) from error
    return state.st_mtime_ns, state.st_ino


def _named(row: Row, image_id: str) -> dict[str, object]:
    try:
        return named(row)
    except CsktError as error:
        raise CsktError(f"{image_id}: {error}") from None


def _converted(value: object, kind: Kind, column: str, image_id: str) -> Value | None:
    try:
        return convert(value, kind, column)
    except CsktError as error:
        remedy = "; the column was made for that: write the value so, or give the column another name"
        raise CsktError(f"{image_id}: {error}{'' if kind == 'text' else remedy}") from None
