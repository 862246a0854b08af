"""The threads of the service: queries share the model, and slow work of one kind delays no other kind.

encode     one thread   every query; those that arrive while the model is busy are encoded together
search     one thread   fast searches; those that wait are answered in one pass over the vectors
slow       two threads  searches with a filter, in groups or far down the list, and histograms
explain    one thread   heat maps
decode     two threads  query images, decoded and resized for the model
read       four threads originals, thumbnails, facts
write      one thread   additions and deletions
measure    one thread   size of the gallery, which shows whether the store answers

These are the stages in the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import torch
from torch import Tensor

from cskt.errors import CsktError, NoAnswerError, file_system_errors
from cskt.gallery.gallery import Gallery
from cskt.gallery.opening import vectors_folder
from cskt.gallery.options import EVERY_SCORE, SearchOptions
from cskt.gallery.query import Query
from cskt.gallery.ranking import Histogram
from cskt.service.batching import Batcher, Pool
from cskt.service.http_errors import ServiceError
from cskt.service.monitoring import Metrics
from cskt.service.settings import ServiceSettings
from cskt.types import Hit
from cskt.utils.files import bytes_below

WARM_UP = Query(text="a person")
DEEP = 1000
"""Ranked crops, those before the offset included, beyond which a search is slow."""
MAX_SLOW_WAITING = 32
"""Slow requests that may wait for a pool."""
SIZE_VALID_SECONDS, SIZE_TIMEOUT_SECONDS = 2.0, 5.0
"""Prometheus gives up after ten."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GallerySize:
    """Size of a gallery."""

    num_crops: int
    index_bytes: int
    """Files of its vectors, thumbnails and metadata; 0 if another server stores them."""
    disk_free_bytes: int
    """Free space of the disk that its folder is on."""


class GalleryWorker:
    """An open gallery, which the caller closes, and the threads that use it."""

    def __init__(self, gallery: Gallery, settings: ServiceSettings, metrics: Metrics) -> None:
        self.gallery = gallery
        self._metrics = metrics
        batch, waiting = settings.queries_together, settings.queries_waiting
        self._encoding: Batcher[Query, Tensor] = Batcher(
            "encode", metrics, self._encode, max_batch=batch, max_waiting=waiting
        )
        self._searching: Batcher[tuple[Tensor, SearchOptions], list[Hit]] = Batcher(
            "search", metrics, self._search_batch, max_batch=batch, max_waiting=waiting
        )
        self._slow = Pool("slow", metrics, threads=2, max_waiting=MAX_SLOW_WAITING)
        self.explaining = Pool("explain", metrics, threads=1, max_waiting=MAX_SLOW_WAITING)
        self.decoding = Pool("decode", metrics, threads=2, max_waiting=MAX_SLOW_WAITING)
        self.reading = Pool("read", metrics, threads=4, max_waiting=waiting)
        self.writing = Pool("write", metrics, threads=1, max_waiting=MAX_SLOW_WAITING)
        self._measuring = Pool("measure", metrics, threads=1, max_waiting=1)
        self._size: Future[GallerySize] | None = None
        self._measured_at = 0.0
        self.finished = False
        """True once `close` has been called and no thread works any more."""
        self.ready: Future[None] = Future()
        """Done when model and vectors are loaded; has the error if they cannot be."""

    def warm_up(self) -> None:
        """Begin to load the model and the vectors, by a first search in the threads of all later ones."""

        def load() -> None:
            failure = "the model cannot be loaded"
            try:
                vector = self._encoding.enqueue(WARM_UP).result()
                failure = "the gallery cannot be searched"
                self._searching.enqueue((vector, SearchOptions(k=1, min_score=EVERY_SCORE))).result()
            except (CancelledError, ServiceError):  # the service stops already
                return
            except Exception as error:  # raised where `ready` is awaited
                log.error("%s: %s", failure, error, exc_info=None if isinstance(error, CsktError) else error)
                self.ready.set_exception(error)
            else:
                self.ready.set_result(None)

        threading.Thread(target=load, name="warm-up", daemon=True).start()

    async def search(
        self, query: Query, options: SearchOptions, *, histogram: bool
    ) -> tuple[list[Hit], Histogram | None]:
        """Return the hits of one query and, if asked for, the distribution of all scores."""
        vector = await self._encoding.add(query)
        is_slow = options.where is not None or options.group_by is not None or options.k + options.offset > DEEP
        if is_slow:
            (hits,) = await self._slow.run(self._search_batch, [(vector, options)])
        else:
            hits = await self._searching.add((vector, options))
        if not histogram:
            return hits, None
        return hits, await self._slow.run(self.gallery.histogram, vector, where=options.where)

    async def size(self) -> GallerySize:
        """Return the size of the gallery, at most two seconds old; concurrent calls share one question to the store."""
        _ = self.gallery.columns  # reads the manifest: fails at once if the gallery has changed
        is_old = time.monotonic() > self._measured_at + SIZE_VALID_SECONDS
        if self._size is None or (self._size.done() and is_old):
            self._size, self._measured_at = self._measuring.submit(_size_of, self.gallery), time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._size)), SIZE_TIMEOUT_SECONDS)
        except TimeoutError:
            raise NoAnswerError(f"no answer within {SIZE_TIMEOUT_SECONDS:.0f} s") from None

    def close(self, seconds: float | None = None) -> bool:
        """Refuse further work, wait for running work, without a limit if None, and return whether it is finished."""
        pools = [pool for pool in vars(self).values() if isinstance(pool, Pool)]
        for pool in pools:
            pool.stop()
        end = None if seconds is None else time.monotonic() + seconds
        working = [
            pool.name for pool in pools if not pool.wait(None if end is None else max(0.0, end - time.monotonic()))
        ]
        if working:
            log.warning("not finished when the service stopped: threads %s", ", ".join(working))
        self.finished = not working
        return self.finished

    def _encode(self, queries: Sequence[Query]) -> Sequence[Tensor]:
        self._metrics.batch_size.observe(len(queries))
        return self.gallery.encode(queries).unbind(0)

    def _search_batch(self, items: Sequence[tuple[Tensor, SearchOptions]]) -> list[list[Hit]]:
        """Return the hits of each item; items with the same options are searched for together."""
        positions: dict[SearchOptions, list[int]] = {}
        for position, (_, options) in enumerate(items):
            positions.setdefault(options, []).append(position)
        found: list[list[Hit]] = [[] for _ in items]
        for options, places in positions.items():
            vectors = torch.stack([items[place][0] for place in places])
            for place, hits in zip(places, self.gallery.search_vectors(vectors, options), strict=True):
                found[place] = hits
        return found


def _size_of(gallery: Gallery) -> GallerySize:
    num_crops = gallery.count()
    with file_system_errors(gallery.folder):
        index_bytes = bytes_below(vectors_folder(gallery.folder, gallery.manifest))
        return GallerySize(num_crops, index_bytes, shutil.disk_usage(gallery.folder).free)
