"""`Gallery`: crops indexed once, searched by sentence, picture or both.

with cskt.Gallery.open("my-gallery") as gallery:
    hits = gallery.search("a woman in a red coat", k=10, where="camera = 'c3'", min_score=0.2)
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.data.images import resize
from cskt.data.sentences import check_sentence
from cskt.embed import EncodeOptions, Encoder, ModelSource
from cskt.errors import CsktError, UnknownCropError
from cskt.explain import Explanation
from cskt.explain import explain as explain_crop
from cskt.gallery.answers import HISTOGRAM_EDGES, Histogram, grouped, merged
from cskt.gallery.calibration import CALIBRATION_FILE, load_calibration, save_calibration
from cskt.gallery.columns import Kind, find_column
from cskt.gallery.conditions import Condition
from cskt.gallery.indexing.changes import add_crops, add_shards, check_shards, index_source, reindex, remove_crops
from cskt.gallery.indexing.commits import IndexReport, Progress
from cskt.gallery.indexing.encoding import Engine, LocalEngine
from cskt.gallery.indexing.files import digest
from cskt.gallery.indexing.shards import find_shards
from cskt.gallery.indexing.upright import encode_turned_crops
from cskt.gallery.manifest import LOCK, MANIFEST, Manifest, read_manifest, write_manifest
from cskt.gallery.options import DEFAULTS, EVERY_SCORE, SearchOptions
from cskt.gallery.originals import original_path
from cskt.gallery.places import load_model
from cskt.gallery.query import Query, encode_queries, query_warnings
from cskt.gallery.state import VECTORS, Contents, check_model, open_store, state_of, undo_creation
from cskt.gallery.stores.base import CropFacts, Facet, operator_errors
from cskt.gallery.stores.row_checks import checked_thumbnail
from cskt.image_files.decode import Source
from cskt.types import Hit
from cskt.utils.deprecation import warn_deprecated
from cskt.utils.messages import nearest
from cskt.utils.paths import inside

_OLD_NAMES = {"cut_off": "min_score", "kept": "uploaded"}
"""Deprecated name of an attribute -> its name."""


class Gallery:
    """A folder that holds vectors, thumbnails and metadata of crops. Make one with `create` or `open`.

    Searching is safe from several threads, beside writers in this and in other processes; only `reindex` must not run
    beside searches of the same object.
    """

    def __init__(self, folder: Path, manifest: Manifest, encoder: Encoder | None, device: str | None) -> None:
        self.folder = folder
        self._contents = Contents(folder, manifest)
        self._device = device
        self._encoder = encoder
        self._loading = threading.Lock()
        self._calibrated: tuple[tuple[int, int] | None, float | None] = (None, None)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder,
        model: str | ModelSource,
        *,
        store: str = "lance",
    ) -> Gallery:
        """Make an empty gallery.

        Args:
            folder: made if it is missing.
            encoder: the model that will fill it.
            model: where the encoder was loaded from, so that `open` can load it again.
            store: `lance`, files in the folder; or `milvus://HOST:PORT/COLLECTION`, `milvus:FILE.db`.

        Raises:
            CsktError: a gallery or something else is there, the store holds crops, or it cannot be reached.
        """
        folder = Path(folder)
        # A creation that was killed leaves vectors and a lock without a manifest; the next one goes on with them.
        if folder.is_dir() and any(entry.name not in (VECTORS, LOCK) for entry in folder.iterdir()):
            there = "a gallery already" if (folder / MANIFEST).is_file() else "not empty, and no gallery"
            raise CsktError(f"{folder}: {there}; name another folder")
        source = model if isinstance(model, ModelSource) else ModelSource(model)
        manifest = Manifest.of(encoder, source, store)
        existed = folder.is_dir()
        try:
            _see_that_it_is_empty(folder, manifest)
            write_manifest(folder, manifest)
            _take_over_calibration(folder, manifest)
        except BaseException:
            if not existed:
                undo_creation(folder, manifest)
            raise
        return cls(folder, manifest, encoder, None)

    @classmethod
    def open(cls, folder: str | Path, *, encoder: Encoder | None = None, device: str | None = None) -> Gallery:
        """Open a gallery; its model is loaded when first needed.

        Args:
            folder: where `create` or `cskt index` made it.
            encoder: the gallery's model, if it is loaded already.
            device: where to compute; the best one here if empty.

        Raises:
            CsktError: no gallery there, one of a newer version, or one that another model filled.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if encoder is not None:
            check_model(folder, manifest, encoder)
        return cls(folder, manifest, encoder, device)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return an attribute under its deprecated name."""
            if name not in _OLD_NAMES:
                raise AttributeError(f"'Gallery' object has no attribute '{name}'")
            warn_deprecated(f"Gallery.{name}", f"Gallery.{_OLD_NAMES[name]}")
            return getattr(self, _OLD_NAMES[name])

    def __repr__(self) -> str:
        try:
            size = f"{len(self):,} crops"
        except CsktError:
            size = "crops cannot be counted"
        return f"<Gallery {str(self.folder)!r}: {size}, model {self.manifest.model.path}, store {self.manifest.store}>"

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, image_id: object) -> bool:
        self._contents.refresh()
        return isinstance(image_id, str) and bool(self._contents.store.get([image_id]))

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and connections."""
        self._contents.store.close()

    @property
    def manifest(self) -> Manifest:
        """What the gallery is made of."""
        return self._contents.manifest

    @property
    def min_score(self) -> float | None:
        """Calibrated threshold of this model, if there is one, as `calibration.json` states it now."""
        state = state_of(self.folder / CALIBRATION_FILE)
        if state != self._calibrated[0]:
            with operator_errors():
                calibration = load_calibration(self.folder, self.manifest.fingerprint)
            self._calibrated = state, None if calibration is None else calibration.min_score
        return self._calibrated[1]

    @property
    def encoder(self) -> Encoder:
        """The model of this gallery.

        Raises:
            CsktError: it cannot be loaded, or is not the one that filled the gallery.
        """
        with self._loading:
            if self._encoder is None:
                self._contents.refresh()  # another process may have stated where the model is now
                encoder = load_model(self.folder, self.manifest.model, EncodeOptions(self._device))
                check_model(self.folder, self.manifest, encoder)
                self._encoder = encoder
            return self._encoder

    @property
    def columns(self) -> dict[str, Kind]:
        """Metadata columns and what they hold."""
        self._contents.refresh()
        return dict(self._contents.manifest.columns)

    def count(self, where: str | Condition | None = None) -> int:
        """Return the number of crops, of all or of those that match a filter; see `SearchOptions.where`."""
        self._contents.refresh()
        return self._contents.store.count(self._contents.condition(where))

    def facets(self) -> dict[str, Facet]:
        """The values of the metadata columns, for building filters."""
        return self._contents.store.facets(self.columns)

    # Filling

    def index(
        self,
        images: str | Path | None = None,
        *,
        metadata: Mapping[str, Mapping[str, object]] | None = None,
        ignore: Sequence[str] | None = None,
        prune: bool = False,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Bring the gallery up to date with a folder of crops: new files are added, changed ones replaced.

        Crops that an older version encoded without their EXIF orientation are encoded again, those that were handed
        over included; a gallery without a folder is brought up to date with that alone.

        Args:
            images: a folder; or a list (.txt, .lst) of paths below the list's own folder, which then count as all that
                is there. What was indexed last if empty. The folder may have moved, but not become another.
            metadata: path within the folder -> column -> value; columns that are not named keep their values, one
                that is named with an empty value or None loses it.
            ignore: patterns of files and folders that are not indexed (see `cskt.gallery.indexing.ignoring`); those of
                the last call if None, no pattern if ().
            prune: remove crops whose file is gone or ignored, and older versions of files that cannot be read any more;
                they are only counted otherwise. Crops below a folder that cannot be read stay.
            on_progress: called with (images done, images to encode) as they are committed.
            engine: what reads and encodes; this process if empty.

        Raises:
            CsktError: no such folder or list, another folder than before, or a value that does not fit its column.
        """
        if images is None and self.manifest.images is None and not self.manifest.upright:
            report = IndexReport()
            encode_turned_crops(self._contents, engine or LocalEngine(self.encoder), report)
            return report
        source = self._contents.source(images, ignore)
        working = engine or LocalEngine(self.encoder)
        return index_source(self._contents, working, source, metadata or {}, prune=prune, on_progress=on_progress)

    def remember_model(self, model: str | ModelSource) -> bool:
        """State where the gallery's model is now, so that `open` loads it from there.

        Args:
            model: another place of the same model; the gallery must have been opened with an encoder of it.

        Returns:
            Whether the manifest named another place before.

        Raises:
            CsktError: it is another model.
        """
        check_model(self.folder, self.manifest, self.encoder)
        return self._contents.remember_model(model if isinstance(model, ModelSource) else ModelSource(model))

    def add(
        self,
        images: Sequence[Source | str],
        image_ids: Sequence[str],
        metadata: Sequence[Mapping[str, object]] | None = None,
    ) -> IndexReport:
        """Hand crops over, from a detector for instance; the gallery keeps the originals, named by their content.

        Args:
            images: paths, opened images, or bytes of image files.
            image_ids: a name for each; a crop of that name is replaced.
            metadata: column -> value for each.

        Raises:
            CsktError: a name that can be none, one of an indexed file, or a value that does not fit its column.
        """
        return add_crops(self._contents, self.encoder, images, image_ids, metadata)

    def add_shards(
        self,
        shards: Sequence[str | Path] | None = None,
        *,
        ignore: Sequence[str] | None = None,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Hand over the crops of Parquet files and WebDataset archives; the gallery keeps the originals.

        A crop that is there with the same content is passed over, so an interrupted call may be made again.

        Args:
            shards: paths or patterns (`shards-*.tar`); those of the last call if empty. `.parquet` files with a column
                of image bytes, one of names, and metadata in the others; `.tar` files whose images, and JSON or text
                beside them, share a name up to its first dot.
            ignore: patterns of crops' names that do not count; see `index`.
            on_progress: called with (images done, images read so far).
            engine: what decodes and encodes; this process if empty.

        Raises:
            CsktError: a file that cannot be read, or a value that does not fit its column.
        """
        patterns = self.manifest.shards if shards is None else tuple(map(str, shards))
        if not patterns:
            raise CsktError(f"{self.folder}: no shards were handed over before; name them")
        found = [shard for pattern in patterns for shard in find_shards(pattern)]
        ignored = self.manifest.ignore if ignore is None else tuple(ignore)
        working = engine or LocalEngine(self.encoder)
        check_shards(self._contents, found, ignored)
        self._contents.remember_shards(patterns, ignored)
        return add_shards(self._contents, working, found, ignore=ignored, on_progress=on_progress)

    def remove(self, image_ids: Sequence[str]) -> int:
        """Remove crops, and the originals that the gallery kept of them; files of the indexed folder are not touched.

        Returns:
            How many were there.
        """
        return remove_crops(self._contents, image_ids)

    def reindex(
        self,
        encoder: Encoder,
        model: str | ModelSource,
        *,
        prune: bool = False,
        on_progress: Progress | None = None,
    ) -> IndexReport:
        """Encode every crop anew with another model, and keep what is known of it.

        The old vectors answer until all new ones are there; an interrupted reindexing goes on where it stopped. Other
        programs that have the gallery open must open it again.

        The same model from another place changes only what the manifest says of its place.

        Args:
            encoder: the new model.
            model: where it was loaded from.
            prune: drop crops whose file cannot be read any more.
            on_progress: see `index`.

        Raises:
            CsktError: the gallery names this model already, or crops cannot be read and `prune` is not set.
        """
        source = model if isinstance(model, ModelSource) else ModelSource(model)
        report = reindex(self._contents, encoder, source, drop_unreadable=prune, on_progress=on_progress)
        self._encoder = encoder
        if not report.model_moved:
            self._calibrated = (None, None)
            _take_over_calibration(self.folder, self.manifest)
        return report

    # Searching

    def search(
        self,
        text: str | None = None,
        k: int = SearchOptions.k,
        *,
        image: Source | str | None = None,
        like: str | None = None,
        exclude: Sequence[str] = (),
        text_weight: float = Query.text_weight,
        image_weight: float = Query.image_weight,
        exclude_weight: float = Query.exclude_weight,
        where: str | Condition | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        offset: int = 0,
    ) -> list[Hit]:
        """Return the best crops for a sentence, a picture, or both.

        Args:
            text: description of the person.
            k, where, min_score, group_by, offset: see `SearchOptions`.
            image: a picture to find more of.
            like: name of a crop of this gallery to find more of.
            exclude: sentences to move away from.
            text_weight, image_weight, exclude_weight: see `Query`.

        Returns:
            Best first; equal scores in the order of their names.

        Raises:
            CsktError: nothing to look for, an option out of range, an invalid filter, an unknown column or crop.

        Example:
            >>> hits = gallery.search("a woman in a red coat", k=5, where="camera = 'c3'")  # doctest: +SKIP
            >>> [(hit.image_id, hit.score) for hit in hits]  # doctest: +SKIP
        """
        source = Path(image) if isinstance(image, str) else image
        query = Query(text, source, like, tuple(exclude), text_weight, image_weight, exclude_weight)
        return self.search_many([query], SearchOptions(k, offset, where, min_score, group_by))[0]

    def search_many(
        self, queries: Sequence[Query], options: SearchOptions | int = DEFAULTS, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for several queries at once; see `search`.

        Args:
            queries: Q of them.
            options: number and choice of the hits. The old form, k and the fields as keywords, is deprecated.
        """
        checked = self._checked(_search_options(options, keywords))
        return self._search(self._encode(queries), checked)

    def search_vectors(
        self, vectors: Tensor, options: SearchOptions | int = DEFAULTS, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for vectors [Q, D] of `encode`; see `search_many`."""
        return self._search(vectors, self._checked(_search_options(options, keywords)))

    def encode(self, queries: Sequence[Query]) -> Tensor:
        """Return unit vectors [Q, D] of queries: the costly half of a search."""
        self._contents.refresh()
        return self._encode(queries)

    def parse_filter(self, where: str | None) -> Condition | None:
        """Parse a filter on the columns of this gallery, for `SearchOptions.where`; None for an empty one.

        Raises:
            CsktError: it is not a filter, or names an unknown column.
        """
        self._contents.refresh()
        return self._contents.condition(where)

    def warnings(self, query: Query) -> list[str]:
        """Describe what the model misses in the sentences of a query: cut ends, and words that it has never seen.

        Searching itself is silent; the command prints these lines, the service puts them into its answer.
        """
        return query_warnings(self.encoder, query)

    def resize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Resize a decoded picture [h, w, 3] for the model, so that `Query` takes it: [3, H, W] uint8."""
        return resize(pixels, *self.encoder.image_size, self.encoder.interpolation)

    def histogram(self, vector: Tensor, *, where: str | Condition | None = None, num_bins: int = 40) -> Histogram:
        """Return the distribution of the scores of all crops, or of those that match a filter.

        Args:
            vector: [D], of `encode`.
            where: see `SearchOptions`.
            num_bins: most intervals.
        """
        self._contents.refresh()
        counts = self._contents.store.histogram(vector, HISTOGRAM_EDGES, self._contents.condition(where))
        return merged(counts, num_bins)

    def _encode(self, queries: Sequence[Query]) -> Tensor:
        def vector_of(image_id: str) -> Tensor:
            vector = self._contents.store.vectors([image_id]).get(image_id)
            if vector is None:
                raise UnknownCropError(f"{image_id}: no such crop in {self.folder}")
            return torch.from_numpy(vector)

        return encode_queries(self.encoder, queries, vector_of)

    def _checked(self, options: SearchOptions) -> SearchOptions:
        """Return options with a parsed filter and the name of an existing column."""
        self._contents.refresh()
        columns, group_by = self._contents.manifest.columns, options.group_by
        if group_by is not None:
            if not columns:
                raise CsktError(f"no metadata to group by '{group_by}'; index with --metadata")
            try:
                group_by = find_column(group_by, columns)
            except CsktError:
                near = nearest(group_by, list(columns))
                raise CsktError(f"unknown column '{group_by}' to group by: {near}") from None
        return replace(options, where=self._contents.condition(options.where), group_by=group_by)

    def _search(self, vectors: Tensor, options: SearchOptions) -> list[list[Hit]]:
        store, condition, column = self._contents.store, cast("Condition | None", options.where), options.group_by
        num_groups = options.k + options.offset
        if column is None:
            answers = store.search(vectors, num_groups, condition)
        else:
            answers = [
                grouped(lambda depth, row=row: store.search(row, depth, condition)[0], num_groups, column)  # type: ignore[misc]
                for row in vectors[:, None]
            ]
        calibrated = self.min_score if options.min_score is None else options.min_score
        min_score = EVERY_SCORE if calibrated is None else calibrated
        return [[hit for hit in hits if hit.score >= min_score][options.offset :] for hits in answers]

    def explain(self, image_id: str, text: str) -> Explanation:
        """Which parts of a crop speak for a sentence and for each of its words; see `cskt.explain`.

        Raises:
            CsktError: no such crop, its original is gone, or the sentence is one that `search` refuses.
        """
        check_sentence(text)
        return explain_crop(self.encoder, self.original(image_id), text, apply_orientation=True)

    # Single crops

    def crop(self, image_id: str) -> CropFacts:
        """What is known of a crop.

        Raises:
            UnknownCropError: it is not there.
        """
        self._contents.refresh()
        facts = self._contents.store.get([image_id]).get(image_id)
        if facts is None:
            raise UnknownCropError(f"{image_id}: no such crop in {self.folder}")
        return facts

    def uploaded(self, image_ids: Sequence[str]) -> set[str]:
        """Return the names among these of uploaded crops: their files are the gallery's own, in no indexed folder."""
        self._contents.refresh()
        return {name for name, facts in self._contents.store.get(image_ids).items() if facts.kept}

    def thumbnail(self, image_id: str) -> bytes:
        """A small JPEG of a crop.

        Raises:
            UnknownCropError: it is not there.
        """
        self._contents.refresh()
        thumbnail = self._contents.store.thumbnails([image_id]).get(image_id)
        if thumbnail is None:
            raise UnknownCropError(f"{image_id}: no such crop in {self.folder}")
        return checked_thumbnail(image_id, thumbnail, self.folder)

    def original(self, image_id: str) -> Path:
        """The file of a crop: in the indexed folder or in the gallery's own, nowhere else, and as it was indexed.

        Raises:
            UnknownCropError: there is no such crop.
            CsktError: its file is gone, or is another one by now.
        """
        facts = self.crop(image_id)
        root = self._contents.images or self.folder
        try:
            if facts.kept:
                path = original_path(self.folder, facts.sha256)
            else:
                inside(root, facts.image_id)
                path = root / facts.image_id
        except ValueError as error:
            raise CsktError(f"{image_id}: its file is gone ({error}); index again with --prune") from None
        if not facts.kept and not root.is_dir():
            where = shlex.join(["cskt", "index", str(self.folder)])
            raise CsktError(
                f"{image_id}: the folder of crops is no longer at {root}; put it back, or say where it is now: {where}"
                " --images FOLDER"
            )
        if not path.is_file():
            raise CsktError(f"{image_id}: its file is gone; put it back, or index again with --prune")
        # The folder that a stranger's gallery names as its own may hold files of that name which were never in it.
        if path.stat().st_size != facts.num_bytes or digest(path.read_bytes()) != facts.sha256:
            raise CsktError(f"{image_id}: its file has changed since it was indexed; index again")
        return path


def _search_options(options: SearchOptions | int, keywords: Mapping[str, Any]) -> SearchOptions:
    """Return the options of a search, also where they are stated in the old form."""
    if isinstance(options, SearchOptions) and not keywords:
        return options
    warn_deprecated("search_many and search_vectors with k, where, ...", "SearchOptions(k=..., where=...)")
    base = options if isinstance(options, SearchOptions) else SearchOptions(options)
    try:
        return replace(base, **keywords)
    except TypeError as error:
        raise CsktError(f"unknown option of a search: {error}") from None


def _see_that_it_is_empty(folder: Path, manifest: Manifest) -> None:
    """Open or make a store; what another gallery has left there is of unknown columns."""
    store = open_store(folder, manifest, create=True)
    try:
        num_crops = store.count()
    finally:
        store.close()
    if num_crops:
        place = folder / VECTORS if manifest.store == "lance" else manifest.store
        raise CsktError(f"{place}: holds {num_crops:,} crops of another gallery; name another place")


def _take_over_calibration(folder: Path, manifest: Manifest) -> None:
    """Let a gallery have the cut-off that was measured for the run that fills it, if there is one."""
    calibration = load_calibration(Path(manifest.model.path), manifest.fingerprint)
    if calibration is not None:
        save_calibration(folder, calibration, fingerprint=manifest.fingerprint, source=manifest.model.path)
