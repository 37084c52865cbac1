"""Metrics of a running job for a monitoring system, published through Ray.

In: values, from any part of a job. Out: Ray's metrics of this process, which each node's agent exposes to Prometheus with the
prefix `ray_`, and counters with the suffix `_total`. Ray's library is passed in by the files that may import it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.storage import s3_request_counts
from pipeline.storage.url_credentials import without_userinfo

logger = logging.getLogger(__name__)

TOLD_EVERY_S = 5.0
"""Interval at which gauges are set: at least once per report of Ray's."""


@dataclass(frozen=True)
class Metric:
    """One metric, named by Prometheus' rules: base units, and the unit as the last word.

    Attributes:
        unit: seconds, bytes or ratio; "" for a plain number.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    description: str
    labels: tuple[str, ...]


Table = Mapping[str, Metric]
"""Metrics by the short name that the code uses for them."""

_DATA_SET = ("data_set",)

INGESTION: Table = {
    "rows": Metric("rayclip_ingest_rows", "counter", "", "Finished rows, by reason", ("data_set", "reason")),
    "stored_bytes": Metric("rayclip_ingest_stored_bytes", "counter", "bytes", "Bytes of stored tars and sidecars", _DATA_SET),
    "partitions": Metric("rayclip_ingest_partitions", "counter", "", "Finished partitions", _DATA_SET),
    "partitions_left": Metric("rayclip_ingest_partitions_left", "gauge", "", "Partitions still to do", _DATA_SET),
    "commits": Metric("rayclip_ingest_commits", "counter", "", "Versions added to the data set", _DATA_SET),
    "not_meant": Metric("rayclip_ingest_not_meant", "counter", "", "Runs with exit code 3: too few samples", _DATA_SET),
    "version": Metric("rayclip_ingest_version", "gauge", "", "The data set's latest version", _DATA_SET),
    "samples": Metric("rayclip_ingest_samples", "gauge", "", "Samples in that version", _DATA_SET),
}
"""Published by the driver."""

_ANYONE = ("run", "data_set")

STORAGE: Table = {
    "requests": Metric(
        "rayclip_storage_requests", "counter", "", "Requests to S3; retries of one request are not counted", _ANYONE
    ),
    "retries": Metric("rayclip_storage_retries", "counter", "", "Retries of requests to S3", _ANYONE),
    "failures": Metric("rayclip_storage_failures", "counter", "", "Failed requests to S3", _ANYONE),
}
"""Published by every process that uses storage (pipeline/storage/s3_request_counts.py), labelled by `run` or `data_set`."""


class Publisher:
    """Publishes a table's metrics from this process. A failure is logged and ends publishing, but never the job.

    Counters are sent at once. Gauges are sent by a thread, repeatedly, from `__enter__` to `__exit__`: Ray forgets a value that
    was not set again within two of its reports, which are 10 s apart.
    """

    def __init__(self, table: Table, labels: Mapping[str, str], library: Any) -> None:
        """
        Args:
            labels: those that all values share; user names and passwords in addresses are hidden.
            library: `ray.util.metrics`, once Ray is initialised; None: publish nothing.
        """
        self._labels = {label: without_userinfo(value) for label, value in labels.items()}
        self._metrics: dict[str, Any] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._tell_gauges_until_closed, name="metrics", daemon=True)
        if library is not None:
            with self._only_a_warning():
                kinds = {"counter": library.Counter, "gauge": library.Gauge}
                self._metrics = {key: kinds[one.kind](one.name, one.description, one.labels) for key, one in table.items()}

    def add(self, key: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter. Thread-safe."""
        if amount and self._metrics:  # Ray refuses zero
            with self._only_a_warning():
                self._metrics[key].inc(amount, tags=self._labels | labels)

    def set(self, key: str, value: float, **labels: str) -> None:
        """Sets a gauge's value from here on. Thread-safe and cheap: the thread sends it."""
        with self._lock:
            self._values[key, tuple(labels.items())] = value

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._tell_gauges()  # Ray reports once more when a process exits normally

    def _tell_gauges_until_closed(self) -> None:
        while not self._closed.wait(TOLD_EVERY_S):
            self._tell_gauges()

    def _tell_gauges(self) -> None:
        with self._lock:
            values = dict(self._values)
        with self._only_a_warning():
            for (key, labels), value in values.items():
                if self._metrics:
                    self._metrics[key].set(value, tags=self._labels | dict(labels))

    @contextlib.contextmanager
    def _only_a_warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._metrics = {}
            logger.warning("metrics of this process stop here (%s: %s); the job continues", type(error).__name__, error)


def publish_requests(library: Any, run: str = "", data_set: str = "") -> None:
    """Publishes this process's requests to S3 from here on, labelled with a run or a data set."""
    s3_request_counts.listen(Publisher(STORAGE, {"run": run, "data_set": data_set}, library).add)
