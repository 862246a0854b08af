"""How many requests a client may make: a bucket of tokens that fills at a steady rate."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from cskt.service.errors import ServiceError

MOST_CLIENTS = 10_000
"""Clients remembered; the one that has been silent longest is forgotten, its bucket having filled long ago."""


class RateLimiter:
    """One bucket per client.

    Args:
        rate: what a client may spend per second in the long run; an ordinary request costs 1.
        burst: what it may spend at once.
        clock: seconds that only rise.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str, cost: float) -> None:
        """Take from a client's bucket.

        Raises:
            ServiceError: 429, with the seconds to wait; nothing is taken then.
        """
        now = self._clock()
        level, filled = self._buckets.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - filled) * self._rate)
        self._buckets[client] = (level - cost if level >= cost else level, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if level < cost:
            wait = math.ceil((cost - level) / self._rate)
            message = f"more than {self._rate:g} requests per second; try again in {wait} s"
            raise ServiceError(429, "too_many_requests", message, {"Retry-After": str(wait)})
