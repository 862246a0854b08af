"""`Gallery`: crops indexed once, searched by sentence, picture or both."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

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
from cskt.gallery.calibration import CALIBRATION_FILE, load_calibration
from cskt.gallery.columns import Kind
from cskt.gallery.conditions import Condition
from cskt.gallery.indexing.commits import IndexReport, Progress
from cskt.gallery.indexing.encoding import Engine, LocalEngine
from cskt.gallery.indexing.preparing import digest
from cskt.gallery.indexing.reencoding import encode_turned_crops, reindex
from cskt.gallery.indexing.updating import add_crops, add_shards, index_source, remove_crops
from cskt.gallery.manifest import Manifest, read_manifest
from cskt.gallery.opening import copy_calibration, create_gallery
from cskt.gallery.options import DEFAULTS, EVERY_SCORE, SearchOptions, search_options
from cskt.gallery.places import check_model, load_model, source_to_index
from cskt.gallery.query import Query, encode_queries, query_warnings
from cskt.gallery.state import GalleryState, state_of
from cskt.gallery.stores.base import CropFacts, Facet, operator_errors
from cskt.gallery.stores.row_checks import checked_thumbnail
from cskt.image_files.decode import Source
from cskt.types import Hit
from cskt.utils.deprecation import warn_deprecated

T = TypeVar("T")
_OLD_NAMES = {"cut_off": "min_score", "kept": "uploaded"}
"""Deprecated name of an attribute -> its name."""


class Gallery:
    """A folder with vectors, thumbnails and metadata of crops. Make one with `create` or `open`.

    Searching is safe from several threads, beside writers in this and in other processes; only `reindex` must not run
    beside searches of the same object.

    Example:
        >>> with cskt.Gallery.open("my-gallery") as gallery:  # doctest: +SKIP
        ...     hits = gallery.search("a woman in a red coat", k=5, where="camera = 'c3'")
    """

    def __init__(self, folder: Path, manifest: Manifest, encoder: Encoder | None, device: str | None) -> None:
        self.folder = folder
        self._state = GalleryState(folder, manifest)
        self._device = device
        self._encoder = encoder
        self._loading = threading.Lock()
        self._calibrated: tuple[tuple[int, int] | None, float | None] = (None, None)

    @classmethod
    def create(
        cls, folder: str | Path, encoder: Encoder, model: str | ModelSource | None = None, *, store: str = "lance"
    ) -> Gallery:
        """Create an empty gallery.

        Args:
            folder: created if it is missing.
            encoder: the model that will fill it; `open` loads it again from `Encoder.source`.
            model: source of an encoder that was not made by `cskt.load`; deprecated for others, which know theirs.
            store: `lance`, files in the folder; or `milvus://HOST:PORT/COLLECTION`, `milvus:FILE.db`.

        Raises:
            CsktError: a gallery or other files are in the folder, the store contains crops, or it cannot be reached.

        Example:
            >>> encoder = cskt.load("ViT-B/16")  # doctest: +SKIP
            >>> gallery = cskt.Gallery.create("my-gallery", encoder)  # doctest: +SKIP
        """
        folder = Path(folder)
        manifest = Manifest.of(encoder, _source_of(encoder, model), store)
        create_gallery(folder, manifest)
        return cls(folder, manifest, encoder, None)

    @classmethod
    def open(cls, folder: str | Path, *, encoder: Encoder | None = None, device: str | None = None) -> Gallery:
        """Open a gallery; its model is loaded when first needed.

        Args:
            folder: of a gallery that `create` or `cskt index` made.
            encoder: the gallery's model, if it is loaded already.
            device: cpu, cuda or mps; None: the best one of this machine.

        Raises:
            CsktError: no gallery in the folder, one of a newer version, or one that another model filled.
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
        self._state.refresh()
        return isinstance(image_id, str) and bool(self._state.store.get([image_id]))

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close files and connections."""
        self._state.store.close()

    @property
    def manifest(self) -> Manifest:
        """Model, store, columns and image source of the gallery, as last read."""
        return self._state.manifest

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
                self._state.refresh()  # another process may have stated another place of the model
                encoder = load_model(self.folder, self.manifest.model, EncodeOptions(self._device))
                check_model(self.folder, self.manifest, encoder)
                self._encoder = encoder
            return self._encoder

    @property
    def columns(self) -> dict[str, Kind]:
        """Metadata columns and the kinds of their values."""
        self._state.refresh()
        return dict(self._state.manifest.columns)

    def count(self, where: str | Condition | None = None) -> int:
        """Return the number of crops, of all or of those that match a filter; see `SearchOptions.where`."""
        self._state.refresh()
        return self._state.store.count(self._state.condition(where))

    def facets(self) -> dict[str, Facet]:
        """Return the values of the metadata columns, for building filters."""
        return self._state.store.facets(self.columns)

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

        Crops that an older version encoded without their EXIF orientation are encoded again, uploads included.

        Args:
            images: a folder, which may have moved since the last call; or a list (.txt, .lst) of paths below the
                folder of the list, which are then all images of the gallery. None: the source of the last call.
            metadata: path within the folder -> column -> value; columns that are not named keep their values, an empty
                value or None deletes one.
            ignore: patterns of files and folders that are not indexed (see `cskt.gallery.indexing.ignoring`). None:
                those of the last call.
            prune: remove crops whose file is missing or ignored, and older versions of files that cannot be read any
                more; they are only counted otherwise. Crops below a folder that cannot be read stay.
            on_progress: called with (finished images, images to encode) after each commit.
            engine: reads and encodes; None: this process.

        Raises:
            CsktError: no such folder or list, another folder than before, or a value that does not fit its column.

        Example:
            >>> report = gallery.index("crops", metadata={"c1/1.jpg": {"camera": "c1"}})  # doctest: +SKIP
            >>> report.added, report.unreadable  # doctest: +SKIP
        """
        if images is None and self.manifest.images is None and not self.manifest.upright:
            report = IndexReport()
            encode_turned_crops(self._state, engine or LocalEngine(self.encoder), report)
            return report
        self._state.refresh()
        source = source_to_index(self.folder, self.manifest, images, ignore)
        engine = engine or LocalEngine(self.encoder)
        return index_source(self._state, engine, source, metadata or {}, prune=prune, on_progress=on_progress)

    def remember_model(self, model: str | ModelSource) -> bool:
        """Store another place of the gallery's model, so that `open` loads it from there.

        Args:
            model: the place; the gallery must have been opened with an encoder of it.

        Returns:
            True if the manifest named another place before.

        Raises:
            CsktError: it is another model.
        """
        check_model(self.folder, self.manifest, self.encoder)
        return self._state.remember_model(model if isinstance(model, ModelSource) else ModelSource(model))

    def add(
        self,
        images: Sequence[Source | str],
        image_ids: Sequence[str],
        metadata: Sequence[Mapping[str, object]] | None = None,
    ) -> IndexReport:
        """Upload crops, for example of a detector; the gallery stores the originals, named by their content.

        Args:
            images: paths, opened images, or bytes of image files.
            image_ids: a name for each; a crop of that name is replaced.
            metadata: column -> value for each.

        Raises:
            CsktError: an invalid name, one of an indexed file, or a value that does not fit its column.

        Example:
            >>> gallery.add(["new.jpg"], ["live/1"], [{"camera": "c7"}]).added  # doctest: +SKIP
        """
        return add_crops(self._state, LocalEngine(self.encoder), images, image_ids, metadata)

    def add_shards(
        self,
        shards: Sequence[str | Path] | None = None,
        *,
        ignore: Sequence[str] | None = None,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Upload the crops of Parquet files and WebDataset archives; the gallery stores the originals.

        Crops with the same name and content are skipped, so an interrupted call can be repeated.

        Args:
            shards: paths or patterns (`shards-*.tar`); None: those of the last call. `.parquet` files with a column of
                image bytes, one of names, and metadata in the others; `.tar` files whose images, and JSON or text
                beside them, share a name up to its first dot.
            ignore: patterns of names that are skipped; see `index`.
            on_progress: called with (finished images, images read so far).
            engine: decodes and encodes; None: this process.

        Raises:
            CsktError: a file that cannot be read, or a value that does not fit its column.
        """
        patterns = self.manifest.shards if shards is None else tuple(map(str, shards))
        if not patterns:
            raise CsktError(f"{self.folder}: no shards were indexed before; name them")
        ignored = self.manifest.ignore if ignore is None else tuple(ignore)
        engine = engine or LocalEngine(self.encoder)
        return add_shards(self._state, engine, patterns, ignored, on_progress=on_progress)

    def remove(self, image_ids: Sequence[str]) -> int:
        """Remove crops, and the stored originals of uploads; files of the indexed folder are not touched.

        Returns:
            Number of removed crops; unknown names are ignored.
        """
        return remove_crops(self._state, image_ids)

    def reindex(
        self,
        encoder: Encoder,
        model: str | ModelSource | None = None,
        *,
        prune: bool = False,
        on_progress: Progress | None = None,
    ) -> IndexReport:
        """Encode every crop again with another model; metadata stays.

        Searches use the old vectors until all new ones are stored; after an interruption, the next call continues.
        Other programs that have the gallery open must open it again. The same model at another place changes only that
        place in the manifest.

        Args:
            encoder: the new model.
            model: see `create`.
            prune: drop crops whose file cannot be read any more.
            on_progress: see `index`.

        Raises:
            CsktError: the gallery names this model already, or crops cannot be read and `prune` is not set.
        """
        report = reindex(self._state, encoder, _source_of(encoder, model), prune=prune, on_progress=on_progress)
        self._encoder = encoder
        if not report.model_moved:
            self._calibrated = (None, None)
            copy_calibration(self.folder, self.manifest)
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
        checked = self._state.checked(search_options(options, keywords))
        return self._search(self._encode(queries), checked)

    def search_vectors(
        self, vectors: Tensor, options: SearchOptions | int = DEFAULTS, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for vectors [Q, D] of `encode`; see `search_many`."""
        return self._search(vectors, self._state.checked(search_options(options, keywords)))

    def encode(self, queries: Sequence[Query]) -> Tensor:
        """Return unit vectors [Q, D] of queries: the costly half of a search."""
        self._state.refresh()
        return self._encode(queries)

    def parse_filter(self, where: str | None) -> Condition | None:
        """Parse a filter on the columns of this gallery, for `SearchOptions.where`; None for an empty one.

        Raises:
            CsktError: it is not a filter, or names an unknown column.
        """
        self._state.refresh()
        return self._state.condition(where)

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
        self._state.refresh()
        counts = self._state.store.histogram(vector, HISTOGRAM_EDGES, self._state.condition(where))
        return merged(counts, num_bins)

    def _encode(self, queries: Sequence[Query]) -> Tensor:
        def vector_of(image_id: str) -> Tensor:
            return torch.from_numpy(self._one(image_id, self._state.store.vectors([image_id])))

        return encode_queries(self.encoder, queries, vector_of)

    def _search(self, vectors: Tensor, options: SearchOptions) -> list[list[Hit]]:
        store, condition, column = self._state.store, cast("Condition | None", options.where), options.group_by
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
        """Return the parts of a crop that match a sentence and each of its words; see `cskt.explain`.

        Raises:
            CsktError: no such crop, its original is missing, or the sentence is one that `search` refuses.
        """
        check_sentence(text)
        return explain_crop(self.encoder, self.original(image_id), text, apply_orientation=True)

    # Single crops

    def crop(self, image_id: str) -> CropFacts:
        """Return the facts and metadata of a crop.

        Raises:
            UnknownCropError: no such crop.
        """
        self._state.refresh()
        return self._one(image_id, self._state.store.get([image_id]))

    def uploaded(self, image_ids: Sequence[str]) -> set[str]:
        """Return the names among these of uploaded crops: their files are the gallery's own, in no indexed folder."""
        self._state.refresh()
        return {name for name, facts in self._state.store.get(image_ids).items() if facts.kept}

    def thumbnail(self, image_id: str) -> bytes:
        """Return a small JPEG of a crop.

        Raises:
            UnknownCropError: no such crop.
        """
        self._state.refresh()
        thumbnail = self._one(image_id, self._state.store.thumbnails([image_id]))
        return checked_thumbnail(image_id, thumbnail, self.folder)

    def original(self, image_id: str) -> Path:
        """Return the path of a crop's file, in the indexed folder or among the uploads, unchanged since it was indexed.

        Raises:
            UnknownCropError: no such crop.
            CsktError: its file is gone or has changed.
        """
        facts = self.crop(image_id)
        root = self._state.images or self.folder
        try:
            path = self._state.file_of(facts)
        except CsktError as error:
            raise CsktError(f"{image_id}: its file is gone ({error}); index again with --prune") from None
        if not facts.kept and not root.is_dir():
            command = shlex.join(["cskt", "index", str(self.folder), "--images"])
            place = f"the folder of crops is no longer at {root}"
            raise CsktError(f"{image_id}: {place}; put it back, or say where it is now: {command} FOLDER")
        if not path.is_file():
            raise CsktError(f"{image_id}: its file is gone; put it back, or index again with --prune")
        # The folder that a stranger's gallery names may contain files of that name which were never in the gallery.
        if path.stat().st_size != facts.num_bytes or digest(path.read_bytes()) != facts.sha256:
            raise CsktError(f"{image_id}: its file has changed since it was indexed; index again")
        return path

    def _one(self, image_id: str, found: Mapping[str, T]) -> T:
        if image_id not in found:
            raise UnknownCropError(f"{image_id}: no such crop in {self.folder}")
        return found[image_id]


def _source_of(encoder: Encoder, model: str | ModelSource | None) -> ModelSource:
    """Return what an encoder was loaded from; a stated source counts only for an encoder without one."""
    if encoder.source is not None:
        if model is not None:
            warn_deprecated("the argument 'model'", "the encoder alone, which knows what it was loaded from")
        return encoder.source
    if model is None:
        raise CsktError("the encoder was not made by cskt.load; state what to load it from: model=PATH")
    return model if isinstance(model, ModelSource) else ModelSource(model)
