"""`Gallery`: crops indexed once, searched by sentence, picture or both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.data.images import resize
from cskt.data.sentences import check_sentence
from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.errors import CsktError, UnknownCropError
from cskt.explain import Explanation
from cskt.explain import explain as explain_crop
from cskt.gallery.columns import Kind
from cskt.gallery.conditions import Condition
from cskt.gallery.indexing.commits import IndexReport, Progress
from cskt.gallery.indexing.encoding import Engine, LocalEngine
from cskt.gallery.indexing.reencoding import reindex
from cskt.gallery.indexing.updating import add_crops, add_shards, index, remove_crops
from cskt.gallery.manifest import Manifest, as_source, read_manifest, source_of
from cskt.gallery.opening import check_model, create_gallery, load_gallery_model
from cskt.gallery.options import DEFAULTS, SearchOptions, search_options
from cskt.gallery.query import Query, encode_queries, query_warnings
from cskt.gallery.ranking import HISTOGRAM_EDGES, Histogram, merged, ranked_hits
from cskt.gallery.state import GalleryState, Row
from cskt.gallery.stores.base import CropRecord, Facet
from cskt.gallery.stores.row_checks import checked_thumbnail
from cskt.image_files.decode import Source
from cskt.types import Hit
from cskt.utils.arguments import listed
from cskt.utils.messages import renamed

Model: TypeAlias = str | Path | ModelSource
"""Source of a model, as `cskt.load` takes it."""
T = TypeVar("T")


class Gallery(AbstractContextManager["Gallery"]):
    """A folder with vectors, thumbnails and metadata of crops. Make one with `create` or `open`.

    Searching is safe from several threads, beside writers in this and in other processes; only `reindex` must not run
    beside searches of the same object.

    Example:
        >>> with cskt.Gallery.open("my-gallery") as gallery:
        ...     hits = gallery.search("a woman in a red coat", k=2, where="camera = 'c1'")
        >>> [hit.rank for hit in hits]
        [1, 2]
    """

    def __init__(self, folder: Path, manifest: Manifest, encoder: Encoder | None, device: str | None) -> None:
        self.folder = folder
        self._state = GalleryState(folder, manifest)
        self._device = device
        self._encoder = encoder
        self._loading = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder,
        model: Model | None = None,
        *,
        store: str = "lance",
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
            >>> gallery = cskt.Gallery.create("new-gallery", cskt.load("clip-tiny", device="cpu"))
            >>> len(gallery)
            0
        """
        manifest = Manifest.of(encoder, source_of(encoder, model), store)
        create_gallery(Path(folder), manifest)
        return cls(Path(folder), manifest, encoder, None)

    @classmethod
    def open(cls, folder: str | Path, *, encoder: Encoder | None = None, device: str | None = None) -> Gallery:
        """Open a gallery; its model is loaded when first needed.

        Args:
            folder: of the gallery.
            encoder: the gallery's model, if it is loaded already.
            device: cpu, cuda or mps; None: the best one of this machine.

        Raises:
            CsktError: no gallery in the folder, one of a newer version, or one that another model filled.
        """
        manifest = read_manifest(Path(folder))
        if encoder is not None:
            check_model(Path(folder), manifest, encoder)
        return cls(Path(folder), manifest, encoder, device)

    cut_off = renamed("Gallery.cut_off", "min_score")
    kept = renamed("Gallery.kept", "uploaded")

    def __repr__(self) -> str:
        try:
            size = f"{len(self):,} crops"
        except CsktError:
            size = "crops cannot be counted"
        return f"<Gallery {str(self.folder)!r}: {size}, model {self.manifest.model.path}, store {self.manifest.store}>"

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and bool(self._state.refresh().store.get([image_id]))

    def __exit__(self, *error: object) -> None:
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
        return self._state.min_score()

    @property
    def encoder(self) -> Encoder:
        """The model of this gallery, loaded when first needed; must be the one that filled the gallery."""
        with self._loading:
            if self._encoder is None:
                self._state.refresh()  # another process may have stated another place of the model
                encoder = load_gallery_model(self.folder, self.manifest.model, EncodeOptions(self._device))
                check_model(self.folder, self.manifest, encoder)
                self._encoder = encoder
            return self._encoder

    @property
    def columns(self) -> dict[str, Kind]:
        """Metadata columns and the kinds of their values."""
        return dict(self._state.refresh().manifest.columns)

    def count(self, where: str | Condition | None = None) -> int:
        """Return the number of crops, of all or of those that match a filter; see `SearchOptions.where`."""
        state = self._state.refresh()
        return state.store.count(state.condition(where))

    def facets(self) -> dict[str, Facet]:
        """Return the values of the metadata columns, for building filters."""
        return self._state.store.facets(self.columns)

    def index(
        self,
        images: str | Path | None = None,
        *,
        metadata: Mapping[str, Row] | None = None,
        ignore: str | Sequence[str] | None = None,
        prune: bool = False,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Bring the gallery up to date with a folder of crops: new files are added, changed ones replaced.

        Crops that an older version encoded without their EXIF orientation are encoded again, uploads included.

        Args:
            images: a folder, which may have moved since the last call; or a list (.txt, .lst) of paths below its own
                folder. None: the source of the last call.
            metadata: path within the folder -> column -> value; other columns stay, an empty value deletes one.
            ignore: a pattern of files and folders or several, see
                `cskt.gallery.indexing.ignoring`. None: those of the last call.
            prune: remove crops whose file is missing or ignored, and older versions of unreadable files; they are only
                counted otherwise. Crops below a folder that cannot be read stay.
            on_progress: called with (finished images, images to encode) after each commit.
            engine: reads and encodes; None: this process.

        Raises:
            CsktError: no such folder or list, another folder than before, or a value that does not fit its column.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.index("crops", metadata={"1.jpg": {"camera": "c7"}}).updated
            1
        """
        engine = engine or LocalEngine(self.encoder)
        return index(self._state, engine, images, metadata or {}, ignore, prune=prune, on_progress=on_progress)

    def remember_model(self, model: Model) -> bool:
        """Store another place of the gallery's model, and return whether the manifest named another before.

        Raises:
            CsktError: it is another model.
        """
        source = as_source(model)
        with self._loading:
            encoder = self._encoder
            if encoder is None or encoder.source != source:
                encoder = load_source(source, EncodeOptions(self._device))
            check_model(self.folder, self.manifest, encoder)
            self._encoder = self._encoder or encoder
        return self._state.remember_model(source)

    def add(
        self,
        images: Source | str | Sequence[Source | str],
        image_ids: str | Sequence[str],
        metadata: Row | Sequence[Row] | None = None,
    ) -> IndexReport:
        """Upload crops, for example of a detector; the gallery stores the originals, named by their content.

        Args:
            images: a path, an opened image, or the bytes of an image file; or several of these.
            image_ids: the name, or a name for each; a crop of that name is replaced.
            metadata: column -> value, likewise.

        Raises:
            CsktError: an invalid name, one of an indexed file, or a value that does not fit its column.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.add(["new.jpg"], ["live/1"], [{"camera": "c7"}]).added
            1
            >>> "live/1" in gallery
            True
        """
        return add_crops(self._state, LocalEngine(self.encoder), images, image_ids, metadata)

    def add_shards(
        self,
        shards: str | Path | Sequence[str | Path] | None = None,
        *,
        ignore: str | Sequence[str] | None = None,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Upload the crops of Parquet files and WebDataset archives; the gallery stores the originals.

        Crops with the same name and content are skipped, so an interrupted call can be repeated.

        Args:
            shards: paths or patterns (`shards-*.tar`); None: those of the last call. `.parquet` files with a column of
                image bytes, one of names, and metadata in the others; `.tar` files whose images, and JSON or text
                beside them, share a name up to its first dot.
            ignore, engine: see `index`.
            on_progress: called with (finished images, images read so far).

        Raises:
            CsktError: a file that cannot be read, or a value that does not fit its column.
        """
        return add_shards(self._state, engine or LocalEngine(self.encoder), shards, ignore, on_progress=on_progress)

    def remove(self, image_ids: str | Sequence[str]) -> int:
        """Remove crops, with the stored originals of uploads, and return their number; unknown names are ignored.

        Files of the indexed folder are not touched.
        """
        return remove_crops(self._state, listed(image_ids, str, "image_ids"))

    def reindex(
        self,
        encoder: Encoder,
        model: Model | None = None,
        *,
        prune: bool = False,
        on_progress: Progress | None = None,
    ) -> IndexReport:
        """Encode every crop again with another model; metadata stays.

        Searches use the old vectors until all new ones are stored; after an interruption, the next call continues. The
        same model at another place changes only the manifest.

        Args:
            encoder: the new model.
            model: see `create`.
            prune: drop crops whose file cannot be read any more.
            on_progress: see `index`.

        Raises:
            CsktError: the gallery names this model already, or crops cannot be read and `prune` is not set.
        """
        report = reindex(self._state, encoder, source_of(encoder, model), prune=prune, on_progress=on_progress)
        self._encoder = encoder
        return report

    def search(
        self,
        text: str | None = None,
        k: int = SearchOptions.k,
        *,
        image: Source | str | None = None,
        like: str | None = None,
        exclude: str | Sequence[str] = (),
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
            exclude: a sentence to move away from, or several.
            text_weight, image_weight, exclude_weight: see `Query`.

        Returns:
            Best first; equal scores in the order of their names.

        Raises:
            CsktError: nothing to look for, an option out of range, an invalid filter, an unknown column or crop.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> hits = gallery.search("a woman in a red coat", k=1)
            >>> hits[0].rank, -1 <= hits[0].score <= 1
            (1, True)
        """
        source = Path(image) if isinstance(image, str) else image
        query = Query(text, source, like, exclude, text_weight, image_weight, exclude_weight)
        return self.search_many([query], SearchOptions(k, offset, where, min_score, group_by))[0]

    def search_many(
        self, queries: Sequence[Query], options: SearchOptions | int = DEFAULTS, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for several queries at once; see `search`. k and the other options as keywords are deprecated."""
        checked = self._state.checked(search_options(options, keywords))
        return ranked_hits(self._state.store, self.encode(queries), checked)

    def search_vectors(
        self, vectors: Tensor, options: SearchOptions | int = DEFAULTS, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for vectors [Q, D] of `encode`; see `search_many`."""
        checked = self._state.checked(search_options(options, keywords))
        return ranked_hits(self._state.store, vectors, checked)

    def encode(self, queries: Sequence[Query]) -> Tensor:
        """Return unit vectors [Q, D] of queries: the costly half of a search."""
        vectors = self._state.store.vectors
        return encode_queries(self.encoder, queries, lambda name: torch.from_numpy(self._one(name, vectors)))

    def parse_filter(self, where: str | None) -> Condition | None:
        """Parse a filter on the columns of this gallery, for `SearchOptions.where`; None stays None.

        Raises:
            CsktError: it is empty, no filter, or names an unknown column.
        """
        return self._state.refresh().condition(where)

    def warnings(self, query: Query) -> list[str]:
        """Describe what the model misses in the sentences of a query: cut ends, and words that it has never seen."""
        return query_warnings(self.encoder, query)

    def resize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Resize a decoded picture [h, w, 3] for the model, so that `Query` takes it: [3, H, W] uint8."""
        return resize(pixels, *self.encoder.image_size, self.encoder.interpolation)

    def histogram(self, vector: Tensor, *, where: str | Condition | None = None, num_bins: int = 40) -> Histogram:
        """Return the distribution of the scores of crops for a vector [D] of `encode`, in at most `num_bins` bins."""
        state = self._state.refresh()
        return merged(state.store.histogram(vector, HISTOGRAM_EDGES, state.condition(where)), num_bins)

    def explain(self, image_id: str, text: str) -> Explanation:
        """Return the parts of a crop that match a sentence and each of its words; see `cskt.explain`."""
        check_sentence(text)
        return explain_crop(self.encoder, self.original(image_id), text, apply_orientation=True)

    def crop(self, image_id: str) -> CropRecord:
        """Return the facts and metadata of a crop, or raise an UnknownCropError."""
        return self._one(image_id, self._state.store.get)

    def thumbnail(self, image_id: str) -> bytes:
        """Return a small JPEG of a crop, or raise an UnknownCropError."""
        return checked_thumbnail(image_id, self._one(image_id, self._state.store.thumbnails), self.folder)

    def original(self, image_id: str) -> Path:
        """Return the path of a crop's file, in the indexed folder or among the uploads, unchanged since it was indexed.

        Raises:
            UnknownCropError: no such crop.
            CsktError: its file is missing or has changed.
        """
        return self._state.unchanged_file(self.crop(image_id))

    def uploaded(self, image_ids: str | Sequence[str]) -> set[str]:
        """Return the names among these of uploaded crops: their files are the gallery's own, in no indexed folder."""
        names = listed(image_ids, str, "image_ids")
        return {name for name, facts in self._state.refresh().store.get(names).items() if facts.kept}

    def _one(self, image_id: str, read: Callable[[Sequence[str]], Mapping[str, T]]) -> T:
        self._state.refresh()
        found = read([image_id])
        if image_id not in found:
            raise UnknownCropError(f"{image_id}: no such crop in {self.folder}")
        return found[image_id]
