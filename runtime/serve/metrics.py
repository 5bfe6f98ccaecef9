"""What the service counts, for Prometheus: numbers only, never an image, a label of a caller or an address."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "emocaliber_requests",
            "Requests answered, by endpoint and HTTP status.",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "emocaliber_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_size = Histogram(
            "emocaliber_batch_size", "Images computed together.", buckets=_SIZES, registry=self._registry
        )
        self._compute_seconds = Histogram(
            "emocaliber_compute_seconds",
            "Time the model took for a batch or a stream, decoding included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._predictions = Counter(
            "emocaliber_predictions",
            "Predictions made, by mode and whether a calibrator was applied.",
            ("mode", "calibrated"),
            registry=self._registry,
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge ``emocaliber_NAME`` that is read when the metrics are asked for."""
        Gauge(f"emocaliber_{name}", text, registry=self._registry).set_function(read)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def computed(self, images: int, seconds: float) -> None:
        """Counts a batch that went through the model."""
        self._batch_size.observe(images)
        self._compute_seconds.observe(seconds)

    def predicted(self, mode: str, *, calibrated: bool) -> None:
        """Counts a prediction."""
        self._predictions.labels(mode, str(calibrated).lower()).inc()

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
