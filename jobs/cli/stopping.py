"""Ends a job on SIGINT (Ctrl-C) and SIGTERM, at every moment, with the exit code that says which of them: 130 or 143.

A signal reaches a process in two parts. The handler in Python runs between two instructions of the main thread: it raises
`Stopped` there, so that jobs commit what they have and remove what is temporary. It does not run while a library keeps the main
thread waiting, libraries replace it (Ray does while it starts), and what it raises may be swallowed. The part in C always runs
and writes the signal's number into a pipe. A thread reads it there, and ends the process if it has not ended by itself.

Training saves a checkpoint first, and takes its time for that: training/stop_signals.py replaces the handler meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from training.ray_internals import end_started_groups
from training.stop_signals import REPEATED_WITHIN_S, STOP_SIGNALS, StoppedError, takes_its_time

AFTER_FORK_S = 0.05
"""Time after a fork in which a signal waits: hooks of the fork still run."""
ENDS_WITHIN_S = 10.0
"""Time in which the main thread commits and tidies up; the process is ended after it."""
EXIT_INTERRUPTED, EXIT_TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
LINE = "stopped; committed work is kept, and the same command resumes"


_ENDED, _ASKED = b"\0", b"\xff"
"""Bytes in the pipe that are no signals: the job has ended; the main thread waits for an answer."""


class Stopped(SystemExit):
    """Raised in the main thread by a signal. A SystemExit, so that no handler of errors takes it for one."""


def run_until_stopped(work: Callable[[], int]) -> int:
    """Returns the exit code of `work`, or ends the process with that of the signal that stopped it."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    with _Signals() as signals:
        try:
            code = work()
        except (SystemExit, KeyboardInterrupt, StoppedError):  # Ray turns a Stopped into another one
            signals.catch_up()
            if signals.first is None:
                raise
        except Exception:
            if not signals.raised:
                raise
        else:
            signals.catch_up()
            if not signals.raised:
                return signals.code if code == EXIT_TERMINATED and signals.first is not None else code
        signals.end()
    raise AssertionError("unreachable")


def is_stopping() -> bool:
    """True once a signal has told the main thread to stop."""
    return _current is not None and _current.raised


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Context that ends with the handlers that it began with: Ray sets its own, whose exit code is the signal's number."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Signals:
    """The handlers, and the thread that reads the pipe."""

    def __init__(self) -> None:
        self.first: int | None = None
        """The first signal that has arrived."""
        self.raised = False
        """The main thread has been told."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._deadline = float("inf")
        self._caught_up, self._ending = threading.Event(), threading.Lock()
        self._before: dict[int, Any] = {}
        self._pipe_before = -1
        self.forked_at = -math.inf

    @property
    def code(self) -> int:
        assert self.first is not None
        return 128 + self.first

    def __enter__(self) -> _Signals:
        global _current
        self._pipe_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        self._thread.start()
        _current = self
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # Ray starts a submitted job with SIGINT blocked
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None
        self.forget()
        os.write(self._write, _ENDED)
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def forget(self) -> None:
        """Restores the former handlers."""
        signal.set_wakeup_fd(self._pipe_before)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def catch_up(self) -> None:
        """Waits until the thread has read all signals so far."""
        self._caught_up.clear()
        os.write(self._write, _ASKED)
        self._caught_up.wait()

    def end(self) -> None:
        """Ends Ray, says that the job has stopped, and ends the process: no thread of a library may hold it up."""
        self._deadline = min(self._deadline, time.monotonic() + ENDS_WITHIN_S)
        self.catch_up()
        if "ray" in sys.modules:
            import ray

            with contextlib.suppress(Exception):
                ray.shutdown()
        self._exit()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.raised:  # while the main thread tidies up
            return
        if time.monotonic() - self.forked_at < AFTER_FORK_S:  # what is raised in a hook of a fork is only printed
            _send_again(number)
            return
        self.first, self.raised = self.first or number, True
        raise Stopped(128 + number)

    def _watch(self) -> None:
        first_at = 0.0
        while True:
            ready, _, _ = select.select([self._read], [], [], min(60.0, max(0.0, self._deadline - time.monotonic())))
            byte = os.read(self._read, 1) if ready else b""
            if byte == _ENDED:
                return
            if byte == _ASKED:
                self._caught_up.set()
            elif byte and byte[0] in STOP_SIGNALS:
                number = byte[0]
                if first_at and time.monotonic() - first_at > REPEATED_WITHIN_S:
                    self._exit()
                if not first_at:
                    first_at, self.first = time.monotonic(), self.first or number
                    # A handler that takes its time ends the job itself; only a second signal overrules it.
                    if not takes_its_time(number):
                        self._deadline = first_at + ENDS_WITHIN_S
            if time.monotonic() > self._deadline:
                self._exit()

    def _exit(self) -> None:
        """Ends the process at once. A Ray that it has started ends with it, by the kernel's hand."""
        self._ending.acquire()  # the other thread may be about to end it too
        last_words = threading.Thread(target=_say_that_it_stopped, daemon=True)
        last_words.start()
        last_words.join(timeout=1.0)  # a pipe that nobody reads takes none
        end_started_groups()
        os._exit(self.code)


def _say_that_it_stopped() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        print(LINE, file=sys.stderr, flush=True)


_current: _Signals | None = None


def _send_again(number: int) -> None:
    again = threading.Timer(AFTER_FORK_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _hold_signals() -> None:
    if _current is not None:
        _current.forked_at = math.inf
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _let_signals_come() -> None:
    try:
        if _current is not None:
            _current.forked_at = time.monotonic()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    except SystemExit as end:  # of Ray's own handler, which gives the number itself
        _send_again(int(end.code or 0) & 127)


def _forget_in_child() -> None:
    """A fork has its parent's handlers and pipe, and would stop the parent when it is stopped."""
    global _current
    if _current is not None:
        _current.forget()
        _let_signals_come()
        _current = None


os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_come, after_in_child=_forget_in_child)
