"""Numbers of a running job for a monitoring system: what is published, and by which of Ray's metrics.

In: values, from wherever a job has them. Out: Ray's metrics of this process, which each node's agent shows to Prometheus with
`ray_` before the name, and `_total` behind that of a counter. Ray's library is handed in by the files that may import it.
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
"""How often gauges are told: in every report of Ray's."""


@dataclass(frozen=True)
class Metric:
    """One name, by Prometheus' rules: base units, and the unit at the name's end.

    Attributes:
        unit: seconds, bytes or ratio; "" for a plain number.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    description: str
    labels: tuple[str, ...]


Table = Mapping[str, Metric]
"""Metrics by the word that the code has for them."""

_DATA_SET = ("data_set",)

INGESTION: Table = {
    "rows": Metric("rayclip_ingest_rows", "counter", "", "Rows that are done, by their reason", ("data_set", "reason")),
    "stored_bytes": Metric("rayclip_ingest_stored_bytes", "counter", "bytes", "Tars and sidecars that were stored", _DATA_SET),
    "partitions": Metric("rayclip_ingest_partitions", "counter", "", "Partitions that are done", _DATA_SET),
    "partitions_left": Metric("rayclip_ingest_partitions_left", "gauge", "", "Partitions that are still to be done", _DATA_SET),
    "commits": Metric("rayclip_ingest_commits", "counter", "", "Versions that were added to the data set", _DATA_SET),
    "version": Metric("rayclip_ingest_version", "gauge", "", "The data set's latest version", _DATA_SET),
    "samples": Metric("rayclip_ingest_samples", "gauge", "", "Samples of that version", _DATA_SET),
}
"""Published by the driver."""

_ANYONE = ("run", "data_set")

STORAGE: Table = {
    "requests": Metric(
        "rayclip_storage_requests", "counter", "", "Requests to S3; one that was made several times counts once", _ANYONE
    ),
    "retries": Metric("rayclip_storage_retries", "counter", "", "Requests to S3 that were made once more", _ANYONE),
    "failures": Metric("rayclip_storage_failures", "counter", "", "Requests to S3 that were refused or given up", _ANYONE),
}
"""Published by every process that uses storage (pipeline/storage/s3_request_counts.py); `run` or `data_set` says for what."""


class Publisher:
    """A table's metrics in this process. One that fails is a warning, after which there are none; nothing ends by it.

    Counters are told at once. Gauges are told by a thread, again and again, from `__enter__` to `__exit__`: Ray forgets a value
    that it was not told within two of its reports, which are 10 s apart.
    """

    def __init__(self, table: Table, labels: Mapping[str, str], library: Any) -> None:
        """
        Args:
            labels: those that all values share; user and password of an address are hidden.
            library: `ray.util.metrics`, once Ray is initialised; None where nobody is to be told.
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
        """Counts. From any thread."""
        if amount and self._metrics:  # Ray takes no zero
            with self._only_a_warning():
                self._metrics[key].inc(amount, tags=self._labels | labels)

    def set(self, key: str, value: float, **labels: str) -> None:
        """The gauge's value from here on. From any thread; costs no more than a note."""
        with self._lock:
            self._values[key, tuple(labels.items())] = value

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._tell_gauges()  # Ray reports once more when a process ends in peace

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
            logger.warning("no metrics from this process from here on (%s: %s); its work goes on", type(error).__name__, error)


def publish_requests(library: Any, run: str = "", data_set: str = "") -> None:
    """From here on this process's requests to S3 are published, as those of a run or of work on a data set."""
    s3_request_counts.listen(Publisher(STORAGE, {"run": run, "data_set": data_set}, library).add)
