"""What the server counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of one application."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("seeker_retrieval_requests", "Requests by status.", ["status"], registry=registry)
        self._seconds = Histogram("seeker_retrieval_seconds", "Seconds of a request.", buckets=SECONDS, registry=registry)
        self._batches = Histogram("seeker_retrieval_batch_queries", "Queries of a batch.", buckets=QUERIES, registry=registry)
        self._cached = Counter(
            "seeker_retrieval_cache", "Queries by whether the cache knew them.", ["found"], registry=registry
        )
        self._waiting = Gauge("seeker_retrieval_waiting_queries", "Queries that wait for the engine.", registry=registry)

    def request(self, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def batch(self, queries: int) -> None:
        """Count a batch."""
        self._batches.observe(queries)

    def cache(self, hits: int, misses: int) -> None:
        """Count queries that the cache knew, and others."""
        self._cached.labels("yes").inc(hits)
        self._cached.labels("no").inc(misses)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Ask this function for the queue's length when the metrics are read."""
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """Return all counts."""
        return generate_latest(self._registry)
