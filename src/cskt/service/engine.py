"""The gallery behind the service: which thread does what, so that queries share the model and none holds the rest.

encode     one thread   every query; what gathers while the model is busy is encoded together
search     one thread   quick queries; what gathers is searched for together
slow       two threads  queries with a filter, in groups or far down the list, and histograms, which may take long
explain    one thread   heat maps
decode     two threads  pictures to search by, decoded and resized for the model
read       four threads originals, thumbnails, facts
write      one thread   additions and deletions
count      one thread   how many crops there are, which tells whether the store answers
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from cskt.errors import CsktError, NoAnswerError
from cskt.gallery.answers import Histogram
from cskt.gallery.gallery import Gallery
from cskt.gallery.options import EVERY_SCORE, SearchOptions
from cskt.gallery.query import Query
from cskt.service.batching import Batcher, Pool
from cskt.service.errors import ServiceError
from cskt.service.metrics import Metrics
from cskt.service.settings import ServiceSettings
from cskt.types import Hit

WARM_UP = Query(text="a person")
DEEP = 1000
"""Best crops beyond which a search, those before its offset included, takes many times as long as one for a page."""
LONG_WAIT = 32
"""Slow requests that may wait for a pool."""
COUNT_HOLDS, COUNT_PATIENCE = 2.0, 5.0
"""Seconds for which a count is good, and for which one is waited for; Prometheus gives up after ten."""

log = logging.getLogger(__name__)


def is_slow(options: SearchOptions) -> bool:
    """Return whether a search may take so long that quick ones must not wait behind it."""
    return options.where is not None or options.group_by is not None or options.k + options.offset > DEEP


class Engine:
    """A gallery and its threads.

    Args:
        gallery: open; closed by whoever opened it.
        settings: of the service.
        metrics: where times and batches are counted.
    """

    def __init__(self, gallery: Gallery, settings: ServiceSettings, metrics: Metrics) -> None:
        self.gallery = gallery
        self._metrics = metrics
        self._encoding: Batcher[Query, Tensor] = Batcher(
            "encode", self._encode, most_together=settings.queries_together, most_waiting=settings.queries_waiting
        )
        self._searching: Batcher[tuple[Tensor, SearchOptions], list[Hit]] = Batcher(
            "search", self._search, most_together=settings.queries_together, most_waiting=settings.queries_waiting
        )
        self._slow = Pool("slow", threads=2, most_waiting=LONG_WAIT)
        self.explaining = Pool("explain", threads=1, most_waiting=LONG_WAIT)
        self.decoding = Pool("decode", threads=2, most_waiting=LONG_WAIT)
        self.reading = Pool("read", threads=4, most_waiting=settings.queries_waiting)
        self.writing = Pool("write", threads=1, most_waiting=LONG_WAIT)
        self._counting = Pool("count", threads=1, most_waiting=1)
        self._counted: asyncio.Task[int] | None = None
        self._counted_at = 0.0
        self.finished = False
        """True once `close` has been called and no thread works any more."""
        self.ready: Future[None] = Future()
        """Done when model and vectors are loaded; holds the error if they cannot be."""

    def warm_up(self) -> None:
        """Begin to load the model and the vectors, by a first search in the threads that will do all others."""

        def searched(future: Future[list[Hit]]) -> None:
            if future.cancelled():  # the service stops already
                return
            error = future.exception()
            if error is None:
                self.ready.set_result(None)
            else:
                _log_broken("the gallery cannot be searched", error)
                self.ready.set_exception(error)

        def encoded(future: Future[Tensor]) -> None:
            if future.cancelled():
                return
            if error := future.exception():
                _log_broken("the model cannot be loaded", error)
                self.ready.set_exception(error)
            else:
                options = SearchOptions(k=1, min_score=EVERY_SCORE)
                with contextlib.suppress(ServiceError):  # the service has been stopped meanwhile
                    self._searching.submit((future.result(), options)).add_done_callback(searched)

        self._encoding.submit(WARM_UP).add_done_callback(encoded)

    async def search(
        self, query: Query, options: SearchOptions, *, histogram: bool
    ) -> tuple[list[Hit], Histogram | None]:
        """The hits of one query and, if asked for, how the gallery's scores are distributed.

        Raises:
            CsktError: the user's error; see `Gallery.search`.
            StoreError, OSError: the store refuses.
            ServiceError: 503, too much waits.
        """
        vector = await self._encoding.run(query)
        if is_slow(options):
            hits = (await self._slow.run(self._search, [(vector, options)]))[0]
        else:
            hits = await self._searching.run((vector, options))
        if not histogram:
            return hits, None
        return hits, await self._slow.run(self.gallery.histogram, vector, where=options.where)

    async def count(self) -> int:
        """Crops in the gallery, as of the last two seconds; all who ask meanwhile share one question.

        Raises:
            StoreError, OSError: the store refuses, or gives no answer in time.
        """
        _ = self.gallery.columns  # read anew: fails at once if the gallery has changed
        if self._counted is None or (self._counted.done() and time.monotonic() > self._counted_at + COUNT_HOLDS):
            self._counted = asyncio.ensure_future(self._counting.run(self.gallery.count))
            self._counted.add_done_callback(lambda task: task.cancelled() or task.exception())  # all may have left
            self._counted_at = time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(self._counted), COUNT_PATIENCE)
        except TimeoutError:
            raise NoAnswerError(f"no answer within {COUNT_PATIENCE:.0f} s") from None

    def close(self, seconds: float | None = None) -> bool:
        """Take no more work, and wait until what has begun is finished; then the gallery may be closed.

        Args:
            seconds: to wait at most; without a limit if None.

        Returns:
            Whether everything is finished. Threads that still work do not keep the process alive.
        """
        parts: dict[str, Batcher[Any, Any] | Pool] = {
            "encode": self._encoding, "search": self._searching, "slow": self._slow, "explain": self.explaining,
            "decode": self.decoding, "read": self.reading, "write": self.writing, "count": self._counting,
        }  # fmt: skip
        for part in parts.values():
            part.stop()
        end = None if seconds is None else time.monotonic() + seconds
        working = [
            name for name, part in parts.items() if not part.close(None if end is None else end - time.monotonic())
        ]
        if working:
            log.warning("not finished when the service stopped: threads %s", ", ".join(working))
        self.finished = not working
        return self.finished

    def _encode(self, queries: Sequence[Query]) -> Sequence[Tensor]:
        self._metrics.batch_size.observe(len(queries))
        with self._metrics.encode_seconds.time():
            return self.gallery.encode(queries).unbind(0)

    def _search(self, asked: Sequence[tuple[Tensor, SearchOptions]]) -> list[list[Hit]]:
        """Hits of each; those that want the same are searched for in one pass over the vectors."""
        positions: dict[SearchOptions, list[int]] = {}
        for position, (_, options) in enumerate(asked):
            positions.setdefault(options, []).append(position)
        found: list[list[Hit]] = [[] for _ in asked]
        with self._metrics.search_seconds.time():
            for options, places in positions.items():
                vectors = torch.stack([asked[place][0] for place in places])
                answers = self.gallery.search_vectors(vectors, options)
                for place, hits in zip(places, answers, strict=True):
                    found[place] = hits
        return found


def _log_broken(message: str, error: BaseException) -> None:
    """Log why the service cannot start; a bug with its traceback. The first search has no words of a client."""
    log.error("%s: %s", message, error, exc_info=None if isinstance(error, CsktError) else error)
