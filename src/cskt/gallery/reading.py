"""`GalleryReader`: searches of an open gallery, and what it contains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.data.images import resize
from cskt.data.sentences import check_sentence
from cskt.embed import EncodeOptions, Encoder
from cskt.errors import CsktError, UnknownCropError
from cskt.explain import Explanation
from cskt.explain import explain as explain_crop
from cskt.gallery.columns import Kind
from cskt.gallery.conditions import Condition
from cskt.gallery.manifest import Manifest
from cskt.gallery.opening import check_model, load_gallery_model
from cskt.gallery.options import DEFAULTS, SearchOptions, search_options
from cskt.gallery.query import Query, encode_queries, query_warnings
from cskt.gallery.ranking import HISTOGRAM_EDGES, Histogram, check_vectors, merged, ranked_hits
from cskt.gallery.state import GalleryState
from cskt.gallery.stores.base import CropRecord, Facet
from cskt.gallery.stores.row_checks import checked_thumbnail
from cskt.image_files.decode import Source
from cskt.types import Hit
from cskt.utils.arguments import expect, listed, whole_number

T = TypeVar("T")


class GalleryReader:
    """The methods of `Gallery` that change nothing."""

    def __init__(self, folder: Path, manifest: Manifest, encoder: Encoder | None, device: str | None) -> None:
        self.folder = folder
        self._state = GalleryState(folder, manifest)
        self._device = device
        self._encoder = encoder
        self._loading = threading.Lock()

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and connections.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.close()
        """
        self._state.store.close()

    @property
    def manifest(self) -> Manifest:
        """Model, store, columns and image source of the gallery, as last read.

        Example:
            >>> cskt.Gallery.open("my-gallery").manifest.store
            'lance'
        """
        return self._state.manifest

    @property
    def min_score(self) -> float | None:
        """Calibrated threshold of this model, if there is one, as `calibration.json` states it now.

        Example:
            >>> cskt.Gallery.open("my-gallery").min_score is None
            True
        """
        return self._state.min_score()

    @property
    def encoder(self) -> Encoder:
        """The model of this gallery, loaded when first needed; must be the one that filled the gallery.

        Example:
            >>> cskt.Gallery.open("my-gallery", device="cpu").encoder.embed_dim
            256
        """
        with self._loading:
            if self._encoder is None:
                self._state.refresh()  # another process may have stated another place of the model
                encoder = load_gallery_model(self.folder, self.manifest.model, EncodeOptions(self._device))
                check_model(self.folder, self.manifest, encoder)
                self._encoder = encoder
            return self._encoder

    @property
    def columns(self) -> dict[str, Kind]:
        """Metadata columns and the kinds of their values.

        Example:
            >>> cskt.Gallery.open("my-gallery").columns
            {'camera': 'text'}
        """
        return dict(self._state.refresh().manifest.columns)

    def count(self, where: str | Condition | None = None) -> int:
        """Return the number of crops, of all or of those that match a filter; see `SearchOptions.where`.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> 0 < gallery.count("camera = 'c1'") < gallery.count()
            True
        """
        state = self._state.refresh()
        return state.store.count(state.condition(where))

    def facets(self) -> dict[str, Facet]:
        """Return the values of the metadata columns, for building filters.

        Example:
            >>> cskt.Gallery.open("my-gallery").facets()["camera"].kind
            'text'
        """
        return self._state.store.facets(self.columns)

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
        self, queries: Sequence[Query], options: SearchOptions | int = DEFAULTS, *, once: bool = False, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for several queries at once; see `search`. k and the other options as keywords are deprecated.

        Args:
            queries: what to look for.
            options: which crops to return.
            once: this is the only search, as in `cskt search`. For one query, vectors in LanceDB are then not loaded
                into memory for later searches, which is quicker and takes less memory. The answers are the same.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> answers = gallery.search_many([cskt.Query("a man"), cskt.Query("a bag")], cskt.SearchOptions(k=2))
            >>> [len(hits) for hits in answers]
            [2, 2]
        """
        checked = self._state.checked(search_options(options, keywords))
        return ranked_hits(self._state.store, self.encode(queries), checked, once=once)

    def search_vectors(
        self, vectors: Tensor, options: SearchOptions | int = DEFAULTS, **keywords: Any
    ) -> list[list[Hit]]:
        """Search for vectors [Q, D] of `encode`; see `search_many`.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> vectors = gallery.encode([cskt.Query("a man in a grey jacket")])
            >>> len(gallery.search_vectors(vectors, cskt.SearchOptions(k=2))[0])
            2
        """
        checked = self._state.checked(search_options(options, keywords))
        check_vectors(vectors, ["Q", self.manifest.embed_dim], "vectors")
        return ranked_hits(self._state.store, vectors, checked)

    def encode(self, queries: Sequence[Query]) -> Tensor:
        """Return unit vectors [Q, D] of queries: the costly half of a search.

        Example:
            >>> cskt.Gallery.open("my-gallery").encode([cskt.Query("a man"), cskt.Query(like="1.jpg")]).shape
            torch.Size([2, 256])
        """
        vectors = self._state.store.vectors
        items = listed(queries, Query, "queries")
        return encode_queries(self.encoder, items, lambda name: torch.from_numpy(self._one(name, vectors)))

    def parse_filter(self, where: str | None) -> Condition | None:
        """Parse a filter on the columns of this gallery, for `SearchOptions.where`; None stays None.

        Raises:
            CsktError: it is empty, no filter, or names an unknown column.

        Example:
            >>> cskt.Gallery.open("my-gallery").parse_filter("camera = 'c1'")
            Comparison(column='camera', operator='=', value='c1')
        """
        return self._state.refresh().condition(where)

    def warnings(self, query: Query) -> list[str]:
        """Describe what the model misses in the sentences of a query: cut ends, and words that it has never seen.

        Example:
            >>> cskt.Gallery.open("my-gallery").warnings(cskt.Query("a woman in a red coat"))
            []
        """
        return query_warnings(self.encoder, query)

    def resize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Resize a decoded picture [h, w, 3] for the model, so that `Query` takes it: [3, H, W] uint8.

        Example:
            >>> cskt.Gallery.open("my-gallery").resize(np.zeros((300, 100, 3), np.uint8)).shape
            torch.Size([3, 128, 64])
        """
        return resize(pixels, *self.encoder.image_size, self.encoder.interpolation)

    def histogram(self, vector: Tensor, *, where: str | Condition | None = None, num_bins: int = 40) -> Histogram:
        """Return the distribution of the scores of crops for a vector [D] of `encode`, in at most `num_bins` bins.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> [vector] = gallery.encode([cskt.Query("a man")])
            >>> sum(gallery.histogram(vector, num_bins=10).counts) == len(gallery)
            True
        """
        whole_number(num_bins, "num_bins", 1)
        check_vectors(vector, [self.manifest.embed_dim], "vector")
        state = self._state.refresh()
        return merged(state.store.histogram(vector, HISTOGRAM_EDGES, state.condition(where)), num_bins)

    def explain(self, image_id: str, text: str) -> Explanation:
        """Return the parts of a crop that match a sentence and each of its words; see `cskt.explain`.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> [word for word, _ in gallery.explain("1.jpg", "a woman with a red bag").words]
            ['woman', 'red', 'bag']
        """
        check_sentence(text)
        return explain_crop(self.encoder, self.original(image_id), text, apply_orientation=True)

    def crop(self, image_id: str) -> CropRecord:
        """Return the facts and metadata of a crop, or raise an UnknownCropError.

        Example:
            >>> cskt.Gallery.open("my-gallery").crop("1.jpg").image_id
            '1.jpg'
        """
        return self._one(image_id, self._state.store.get)

    def thumbnail(self, image_id: str) -> bytes:
        """Return a small JPEG of a crop, or raise an UnknownCropError.

        Example:
            >>> cskt.Gallery.open("my-gallery").thumbnail("1.jpg")[:2]  # a JPEG
            b'\\xff\\xd8'
        """
        return checked_thumbnail(image_id, self._one(image_id, self._state.store.thumbnails), self.folder)

    def original(self, image_id: str) -> Path:
        """Return the path of a crop's file, in the indexed folder or among the uploads, unchanged since it was indexed.

        Raises:
            UnknownCropError: no such crop.
            CsktError: its file is missing or has changed.

        Example:
            >>> cskt.Gallery.open("my-gallery").original("1.jpg").name
            '1.jpg'
        """
        return self._state.unchanged_file(self.crop(image_id))

    def uploaded(self, image_ids: str | Sequence[str]) -> set[str]:
        """Return the names among these of uploaded crops: their files are the gallery's own, in no indexed folder.

        Example:
            >>> cskt.Gallery.open("my-gallery").uploaded(["1.jpg", "2.jpg"])  # both are in the indexed folder
            set()
        """
        names = listed(image_ids, str, "image_ids")
        return {name for name, facts in self._state.refresh().store.get(names).items() if facts.kept}

    def _one(self, image_id: str, read: Callable[[Sequence[str]], Mapping[str, T]]) -> T:
        expect(image_id, str, "image_id")
        self._state.refresh()
        found = read([image_id])
        if image_id not in found:
            raise UnknownCropError(f"{image_id}: no such crop in {self.folder}")
        return found[image_id]
