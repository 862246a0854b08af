"""Figures for Prometheus: requests, times, batches, the size of the gallery."""

from __future__ import annotations

from cskt.utils.extras import require

require("serve", "prometheus_client")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One set of figures per app, so that two apps in a process do not share them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "cskt_requests", "Requests answered.", ("route", "method", "code"), registry=registry
        )  # exported as cskt_requests_total
        self.request_seconds = Histogram(
            "cskt_request_seconds", "Time to answer a request.", ("route",), buckets=SECONDS, registry=registry
        )
        self.encode_seconds = Histogram(
            "cskt_encode_seconds", "Time to encode a batch of queries.", buckets=SECONDS, registry=registry
        )
        self.search_seconds = Histogram(
            "cskt_search_seconds", "Time to search for a batch of encoded queries.", buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram("cskt_batch_size", "Queries encoded together.", buckets=BATCHES, registry=registry)
        self.in_flight = Gauge("cskt_requests_in_flight", "Requests being answered.", registry=registry)
        self.crops = Gauge("cskt_crops", "Crops in the gallery.", registry=registry)
        self.gallery_up = Gauge("cskt_gallery_up", "Whether the gallery can be asked: 1 or 0.", registry=registry)

    def text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry)
