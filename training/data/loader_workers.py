"""Processes that read and decode: each makes a slice of every batch of a rank, in shared memory.

In: a rank's `Share`. Out: for each step its pixels, and a `BatchSlice` of each process, in order. A process has several
decoding threads, which work without Python's lock most of the time, and its own reading threads. So a rank has few processes,
and as few streams of the order whose neighbouring samples are read by two of them.

Processes are spawned: forking one that has threads or a GPU is not safe. They inherit the environment, and with it the
credentials of storage. They end with their parent, however it ends, and leave signals to it. What they log, and the requests to
S3 that they make, count as their parent's.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import gc
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.storage import s3_request_counts
from training.data.shared_batches import AttachedBatches, SharedBatches
from training.data.slice_maker import BatchSlice, Share, SliceMaker

THREADS_PER_PROCESS = 4
"""Decoding threads of one process: more would wait for Python's lock."""
CLOSE_S = 10.0
"""Time that a process has to end its reads before it is killed."""
GARBAGE_OBJECTS = 100_000
"""New objects after which a process looks for cycles among them."""
_ANSWER_S = 1.0
_DIED = (
    "data.decode_workers={}: a process that reads and decodes died; if the machine ran out of memory, lower "
    "data.decode_workers or data.prefetch_bytes, else look for its last words above"
)


class WorkerProcessError(RuntimeError):
    """A process that reads and decodes died."""


class ClosedError(Exception):
    """The workers were closed while their parent waited for them."""


@dataclass(frozen=True)
class _Job:
    """The part of each batch that a process makes.

    Attributes:
        shape: of the rank's whole batch.
        rows: the first row of it that this process fills, and the one behind the last.
    """

    share: Share
    shape: tuple[int, ...]
    rows: tuple[int, int]


@dataclass(frozen=True)
class _Task:
    epoch: int
    step: int
    block: str


@dataclass(frozen=True)
class _Made:
    """A slice, and the requests to S3 since the last one."""

    slice: BatchSlice
    requests: dict[str, int]


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    tasks: Connection
    questions: Connection


class LoaderWorkers:
    """The processes of one rank. `begin` and `finish` belong to one thread."""

    def __init__(self, share: Share, num_decoders: int, pinned: bool) -> None:
        """Args:
        num_decoders: decoding threads of all processes together.
        pinned: batches lie in pinned memory.
        """
        self._share = share
        self._num_decoders = min(num_decoders, share.shape[0])
        self._batches = SharedBatches(share.shape, pinned)
        self._closed = threading.Event()
        self._in_flight: collections.deque[NDArray[np.uint8]] = collections.deque()
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        atexit.register(self._kill)  # before multiprocessing's own handler, which waits for processes
        for number in range(-(-self._num_decoders // THREADS_PER_PROCESS)):
            tasks, questions = context.Pipe(), context.Pipe()
            process = context.Process(
                target=_work, args=(tasks[1], questions[1], os.getpid()), name=f"loader-{number}", daemon=True
            )
            process.start()
            tasks[1].close()
            questions[1].close()
            self._workers.append(_Worker(process, tasks[0], questions[0]))
        self._sent = False

    def process_ids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def begin(self, epoch: int, step: int) -> None:
        """Gives a step to all processes. Must be called for one step after the other."""
        if not self._sent:  # here rather than at first, since it waits until the processes have started
            self._sent = True
            self._send_jobs()
        block, pixels = self._batches.take()
        self._in_flight.append(pixels)
        for worker in self._workers:
            _send(worker, _Task(epoch, step, block))

    def finish(self) -> tuple[NDArray[np.uint8], list[BatchSlice]]:
        """Waits for the step that was begun first.

        Raises:
            WorkerProcessError: a process died.
            ClosedError: `close` was called meanwhile.
            Exception: the one that a process raised.
        """
        slices = [self._receive(worker) for worker in self._workers]
        return self._in_flight.popleft(), slices

    def under_way(self) -> list[tuple[str, float]]:
        """Returns (address, seconds) of the reads that are under way in all processes that answer."""
        found = []
        for worker in self._workers:
            try:
                while worker.questions.poll():
                    worker.questions.recv()  # an answer that came late
                worker.questions.send(None)
                if worker.questions.poll(_ANSWER_S):
                    found += worker.questions.recv()
            except (OSError, EOFError):
                continue
        return found

    def interrupt(self) -> None:
        """Ends `finish` in another thread."""
        self._closed.set()

    def close(self, wait: bool = True) -> None:
        """Ends the processes: after the reads that are under way, or at once. Safe to call twice."""
        self._closed.set()
        if not wait:
            self._kill()
        for worker in self._workers:
            worker.tasks.close()
        for worker in self._workers:
            worker.process.join(CLOSE_S)
        self._kill()
        for worker in self._workers:
            worker.process.join()
            worker.questions.close()
        self._workers.clear()
        self._in_flight.clear()
        self._batches.close()
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()

    def _send_jobs(self) -> None:
        each, more = divmod(self._num_decoders, len(self._workers))
        threads = [each + (number < more) for number in range(len(self._workers))]
        first = self._share.bounds[0]
        for worker, part in zip(self._workers, self._share.split(threads), strict=True):
            _send(worker, _Job(part, self._share.shape, (part.bounds[0] - first, part.bounds[1] - first)))

    def _receive(self, worker: _Worker) -> BatchSlice:
        """Waits for a slice; passes on what the process logs meanwhile."""
        while True:
            try:
                while not worker.tasks.poll(0.2):
                    if self._closed.is_set():
                        raise ClosedError
                message = worker.tasks.recv()
            except (OSError, EOFError):
                raise WorkerProcessError(_DIED.format(self._num_decoders)) from None
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
                continue
            for what, number in message.requests.items():
                s3_request_counts.count(what, number)
            made: BatchSlice = message.slice
            return made


def _send(worker: _Worker, message: _Job | _Task) -> None:
    """Sends a message to a process, unless it has died, which is noticed when its next slice is due."""
    with contextlib.suppress(OSError):
        worker.tasks.send(message)


# ------------------------------------------------------------------------------------------------------------ in a worker


def _work(tasks: Connection, questions: Connection, parent: int) -> None:
    """Makes slices until the parent closes its end of `tasks`, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent ends its workers, once it has saved
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    makers: list[SliceMaker] = []
    threading.Thread(target=_answer, args=(questions, parent, makers), daemon=True).start()
    answers = _Answers(tasks)
    logging.getLogger().addHandler(logging.handlers.QueueHandler(answers))  # type: ignore[arg-type]
    s3_request_counts.listen(answers.count)
    with contextlib.suppress(_ParentGoneError):
        job = answers.next_task()
        try:
            makers.append(SliceMaker(job.share))
            gc.freeze()  # what was imported stays, and samples form no cycles: looking through both takes 15 us a pair
            gc.set_threshold(GARBAGE_OBJECTS)
            _make_slices(makers[0], job, answers)
        except Exception as error:
            answers.put_nowait(_portable(error))
    for maker in makers:
        maker.close()


def _make_slices(maker: SliceMaker, job: _Job, answers: _Answers) -> None:
    batches = AttachedBatches(job.shape)
    while True:
        if maker.in_flight and not answers.has_task():
            answers.put_slice(maker.finish())
        else:
            task = answers.next_task()
            maker.begin(task.epoch, task.step, batches.pixels(task.block)[slice(*job.rows)])


class _ParentGoneError(BaseException):
    """The other end of the pipe is closed."""


class _Answers:
    """The pipe to the parent, for several threads; and the queue of a logging handler."""

    def __init__(self, tasks: Connection) -> None:
        self._tasks, self._lock = tasks, threading.Lock()
        self._requests = collections.Counter[str]()

    def has_task(self) -> bool:
        return self._tasks.poll()

    def next_task(self) -> Any:
        try:
            return self._tasks.recv()
        except (EOFError, OSError):
            raise _ParentGoneError from None

    def put_nowait(self, message: Any) -> None:
        with self._lock:
            try:
                self._tasks.send(message)
            except OSError:
                raise _ParentGoneError from None

    def put_slice(self, one: BatchSlice) -> None:
        with self._lock:
            requests, self._requests = self._requests, collections.Counter()
        self.put_nowait(_Made(one, requests))

    def count(self, what: str, number: int) -> None:
        with self._lock:
            self._requests[what] += number


def _portable(error: Exception) -> Exception:
    """Returns the error with its traceback as a note; or one that says the same, if it cannot be sent to a process."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # fails for the exceptions of some libraries
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"raised in a process that reads and decodes:\n{text}")
    return error


def _answer(questions: Connection, parent: int, makers: list[SliceMaker]) -> None:
    """Tells the parent which reads are under way, and exits with it: a killed one closes nothing."""
    try:
        while os.getppid() == parent:
            if questions.poll(1.0):
                questions.recv()
                questions.send([read for maker in makers for read in maker.under_way()])
    except (OSError, EOFError):
        pass
    os._exit(1)
