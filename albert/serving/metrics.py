"""What the service counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from albert.serving.batching import Batch

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Of one service. `waiting`: how many rows wait now; `limit`: how many may."""

    def __init__(self, waiting: Callable[[], float], limit: int):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time, open files
        self._requests = Counter(
            "albert_requests",
            "Requests by endpoint and HTTP status; 499: the client had gone.",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "albert_request_seconds",
            "From a request's headers to its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_rows = Histogram(
            "albert_batch_rows",
            "Rows that were computed together, without padding.",
            ("ability",),
            buckets=_ROWS,
            registry=self._registry,
        )
        self._batch_seconds = Histogram(
            "albert_batch_seconds",
            "Of computing a batch, by its shape with padding.",
            ("ability", "rows", "length"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        Gauge("albert_queue_rows", "Rows that wait.", registry=self._registry).set_function(waiting)
        Gauge("albert_queue_limit", "Rows that may wait.", registry=self._registry).set(limit)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_batch(self, batch: Batch) -> None:
        self._batch_rows.labels(batch.ability).observe(batch.rows)
        rows, length = batch.shape
        self._batch_seconds.labels(batch.ability, str(rows), str(length)).observe(batch.seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
