"""The threads of the service: queries share the model, and slow work of one kind delays no other kind.

encode     one thread   every query; those that arrive while the model is busy are encoded together
search     one thread   fast searches; those that wait are answered in one pass over the vectors
slow       two threads  searches with a filter, in groups or far down the list, and histograms
explain    one thread   heat maps
decode     two threads  query images, decoded and resized for the model
read       four threads originals, thumbnails, facts
write      one thread   additions and deletions
count      one thread   number of crops, which shows whether the store answers
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future

import torch
from torch import Tensor

from cskt.errors import CsktError, NoAnswerError
from cskt.gallery.gallery import Gallery
from cskt.gallery.options import EVERY_SCORE, SearchOptions
from cskt.gallery.query import Query
from cskt.gallery.ranking import Histogram
from cskt.service.batching import Batcher, Pool
from cskt.service.http_errors import ServiceError
from cskt.service.monitoring import Metrics
from cskt.service.settings import ServiceSettings
from cskt.types import Hit

WARM_UP = Query(text="a person")
DEEP = 1000
"""Ranked crops, those before the offset included, beyond which a search is slow."""
MAX_SLOW_WAITING = 32
"""Slow requests that may wait for a pool."""
COUNT_VALID_SECONDS, COUNT_TIMEOUT_SECONDS = 2.0, 5.0
"""Prometheus gives up after ten."""

log = logging.getLogger(__name__)


class GalleryWorker:
    """An open gallery, which the caller closes, and the threads that use it."""

    def __init__(self, gallery: Gallery, settings: ServiceSettings, metrics: Metrics) -> None:
        self.gallery = gallery
        self._metrics = metrics
        batch, waiting = settings.queries_together, settings.queries_waiting
        self._encoding: Batcher[Query, Tensor] = Batcher("encode", self._encode, max_batch=batch, max_waiting=waiting)
        self._searching: Batcher[tuple[Tensor, SearchOptions], list[Hit]] = Batcher(
            "search", self._search_batch, max_batch=batch, max_waiting=waiting
        )
        self._slow = Pool("slow", threads=2, max_waiting=MAX_SLOW_WAITING)
        self.explaining = Pool("explain", threads=1, max_waiting=MAX_SLOW_WAITING)
        self.decoding = Pool("decode", threads=2, max_waiting=MAX_SLOW_WAITING)
        self.reading = Pool("read", threads=4, max_waiting=waiting)
        self.writing = Pool("write", threads=1, max_waiting=MAX_SLOW_WAITING)
        self._counting = Pool("count", threads=1, max_waiting=1)
        self._count: Future[int] | None = None
        self._counted_at = 0.0
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

    async def count(self) -> int:
        """Return the number of crops, at most two seconds old; concurrent calls share one question to the store."""
        _ = self.gallery.columns  # reads the manifest: fails at once if the gallery has changed
        is_old = time.monotonic() > self._counted_at + COUNT_VALID_SECONDS
        if self._count is None or (self._count.done() and is_old):
            self._count, self._counted_at = self._counting.submit(self.gallery.count), time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._count)), COUNT_TIMEOUT_SECONDS)
        except TimeoutError:
            raise NoAnswerError(f"no answer within {COUNT_TIMEOUT_SECONDS:.0f} s") from None

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
        with self._metrics.encode_seconds.time():
            return self.gallery.encode(queries).unbind(0)

    def _search_batch(self, items: Sequence[tuple[Tensor, SearchOptions]]) -> list[list[Hit]]:
        """Return the hits of each item; items with the same options are searched for together."""
        positions: dict[SearchOptions, list[int]] = {}
        for position, (_, options) in enumerate(items):
            positions.setdefault(options, []).append(position)
        found: list[list[Hit]] = [[] for _ in items]
        with self._metrics.search_seconds.time():
            for options, places in positions.items():
                vectors = torch.stack([items[place][0] for place in places])
                for place, hits in zip(places, self.gallery.search_vectors(vectors, options), strict=True):
                    found[place] = hits
        return found
