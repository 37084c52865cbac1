"""A rank's time by kind: waiting for data, computing, communicating.

Communication is time that a step waits: for collectives of the loss, and for the part of DDP's gradients that the backward pass
does not hide. A rank that waits there waits for a slower one, which is the one that computes, or waits for data, longest.

data_wait is measured on the host. A GPU is given work ahead of time and may still be busy meanwhile: it has waited too only
where samples_per_s is below the model's rate without a loader.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


class CommunicationTimer:
    """Counts the seconds that this rank's device waits for others."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._pairs: list[tuple[Any, Any]] = []
        self._last_bucket: Any = None
        self._in_collective = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Times a collective that the step waits for."""
        began = self._now()
        self._in_collective = True
        yield
        self._in_collective = False
        self._add(began)

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Marks a wait for the device, which may wait for other ranks: its collectives are in the same queue. Not timed."""
        before, self._in_collective = self._in_collective, True
        try:
            yield
        finally:
            self._in_collective = before

    @property
    def is_waiting(self) -> bool:
        """True while this rank waits for others. Safe to read from another thread."""
        return self._in_collective or self._last_bucket is not None

    def bucket_sent(self) -> None:
        """Notes that DDP sends a bucket of gradients; after the last one the step only waits."""
        self._last_bucket = self._now()

    def backward_ended(self) -> None:
        """Notes that all gradients have arrived."""
        if self._last_bucket is not None:
            self._add(self._last_bucket)
            self._last_bucket = None

    def take(self) -> float:
        """Seconds of waiting since the last call. On a GPU it waits for the device."""
        for began, ended in self._pairs:
            with self.blocked():
                ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1000
        taken, self._seconds = self._seconds, 0.0
        self._pairs.clear()
        return taken

    def put_back(self, seconds: float) -> None:
        """Replaces the seconds since the last call of `take` by the ones that it returned."""
        self.take()
        self._seconds = seconds

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, began: Any) -> None:
        if self._cuda:
            self._pairs.append((began, self._now()))
        else:
            self._seconds += time.perf_counter() - began


@dataclass(frozen=True)
class Lap:
    """The time since the last logged row: over all ranks, and of this rank's average step.

    Attributes:
        train_s: of all its steps together.
        step_s, data_wait_s, communication_s: of the average step.
        stopped_s: time for which the clock was stopped besides, by reason.
    """

    samples_per_s: float
    train_s: float
    step_s: float
    data_wait_s: float
    communication_s: float
    stopped_s: Mapping[str, float]

    @property
    def compute_s(self) -> float:
        return max(0.0, self.step_s - self.data_wait_s - self.communication_s)


class Clock:
    """Measures laps without evaluation and checkpoints."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._samples = self._steps = 0
        self._wait_s = 0.0
        self.stopped_s: collections.defaultdict[str, float] = collections.defaultdict(float)
        """Seconds that the clock was stopped since the last lap, by reason."""

    def start(self, step: int, samples_seen: int, wait_s: float) -> None:
        """Starts a lap. `wait_s`: seconds spent waiting for the loader so far."""
        self._since, self._steps, self._samples, self._wait_s = time.perf_counter(), step, samples_seen, wait_s

    @contextlib.contextmanager
    def stopped(self, reason: str, communication: CommunicationTimer) -> Iterator[None]:
        """Stops the clock, for evaluation and checkpoints: neither their time nor their waiting for others is part of a lap."""
        began, waited_s = time.perf_counter(), communication.take()
        yield
        communication.put_back(waited_s)
        took_s = time.perf_counter() - began
        self._since += took_s
        self.stopped_s[reason] += took_s

    def open_s(self, step: int) -> float:
        """Seconds of the steps since the last lap up to `step`; 0 if there was none."""
        return max(0.0, time.perf_counter() - self._since) if step > self._steps else 0.0

    def lap(self, step: int, samples_seen: int, wait_s: float, communication: CommunicationTimer) -> Lap:
        """Ends this lap and starts the next."""
        elapsed_s = max(time.perf_counter() - self._since, 1e-9)
        steps = max(1, step - self._steps)
        lap = Lap(
            samples_per_s=(samples_seen - self._samples) / elapsed_s,
            train_s=elapsed_s,
            step_s=elapsed_s / steps,
            data_wait_s=min(elapsed_s, wait_s - self._wait_s) / steps,
            communication_s=communication.take() / steps,
            stopped_s=self.stopped_s,
        )
        self.stopped_s = collections.defaultdict(float)
        self.start(step, samples_seen, wait_s)
        return lap
