"""A job ends on SIGINT and SIGTERM wherever its main thread is, with the code that says which."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli.stopping import LINE

ROOT = Path(__file__).parents[4]
START = """
import ctypes, multiprocessing, os, signal, sys, time
from jobs.cli import stopping
from training.stop_signals import StoppedError, on_stop_signals

def ready():
    os.write(1, b"ready\\n")  # a signal within print() may cost what is printed next
"""
SLEEPS = """
def work():
    try:
        ready()
        time.sleep(60)
    finally:
        print("tidied up", flush=True)
"""
SWALLOWS = """
stopping.ENDS_WITHIN_S = 0.5
def work():
    said = []
    while True:
        try:
            said or said.append(1) or ready()
            time.sleep(60)
        except BaseException:
            pass
"""
STUCK_IN_A_LIBRARY = """
stopping.ENDS_WITHIN_S = 0.5
def work():
    lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    library.pthread_mutex_lock(lock)
    ready()
    library.pthread_mutex_lock(lock)  # waits for itself; no signal interrupts it
"""
HANDLERS_REPLACED = """
def work():
    with stopping.handlers_kept():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit(number))  # as Ray does
        ready()
        time.sleep(60)
"""
BECOMES_ANOTHER_ERROR = """
def work():
    try:
        ready()
        time.sleep(60)
    except SystemExit:
        raise RuntimeError("a task was cancelled")
"""
ARRIVES_DURING_A_FORK = """
def work():
    try:
        armed.append(ARMED)
        if os.fork() == 0:
            os._exit(0)
        ready()
        time.sleep(60)
    finally:
        print("tidied up", flush=True)
"""
ARMED_FORKS = """
import os
armed = []
os.register_at_fork(before=lambda: armed and os.kill(os.getpid(), armed.pop()))  # after stopping.py has held signals
"""
SAVES = """
stopping.ENDS_WITHIN_S = 0.5
def work():
    asked = []
    with on_stop_signals(lambda: asked.append(1)):
        ready()
        while not asked:
            time.sleep(0.01)
        time.sleep(1.5)  # a checkpoint takes longer than stopping.ENDS_WITHIN_S
        print("saved", flush=True)
    return stopping.EXIT_TERMINATED
"""
NOBODY_READS = """
stopping.ENDS_WITHIN_S = 0.5
def work():
    ready()
    while True:
        try:
            print("x" * 1_000_000, flush=True)
        except BaseException:
            pass
"""
NOTHING_TO_SAVE = """
def work():
    asked = []
    with on_stop_signals(lambda: asked.append(1)):
        ready()
        while not asked:
            time.sleep(0.01)
        raise StoppedError
"""


def start(work: str, before: Callable[[], object] | None = None, first: str = "") -> subprocess.Popen[str]:
    code = f"{first}\n{START}\n{work}\nsys.exit(stopping.run_until_stopped(work))"
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("work", "said"),
    [
        (SLEEPS, "tidied up\n"),
        (SWALLOWS, ""),
        (STUCK_IN_A_LIBRARY, ""),
        (HANDLERS_REPLACED, ""),
        (BECOMES_ANOTHER_ERROR, ""),
        (NOTHING_TO_SAVE, ""),
    ],
    ids=["sleeps", "swallows", "stuck", "replaced", "another error", "nothing to save"],
)
def test_a_job_ends_wherever_it_is_with_one_line(work, said, number):
    job = start(work)
    job.send_signal(number)
    assert job.communicate(timeout=30) == (said, f"{LINE}\n")
    assert job.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_that_arrives_during_a_fork_ends_the_job_afterwards_without_a_traceback(number):
    work = ARRIVES_DURING_A_FORK.replace("ARMED", str(int(number)))
    job = start(work, first=ARMED_FORKS)
    assert job.communicate(timeout=30) == ("tidied up\n", f"{LINE}\n")
    assert job.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_job_that_saves_has_the_time_for_it(number):
    job = start(SAVES)
    job.send_signal(number)
    assert job.communicate(timeout=30) == ("saved\n", "")
    assert job.returncode == 128 + number


@pytest.mark.parametrize(
    "before",
    [
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]),
        lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ],
    ids=["blocked, as Ray starts a submitted job", "ignored, as a shell starts a background process"],
)
def test_sigint_ends_a_job_that_was_started_without_it(before):
    job = start(SLEEPS, before)
    job.send_signal(signal.SIGINT)
    assert job.communicate(timeout=30) == ("tidied up\n", f"{LINE}\n")
    assert job.returncode == 128 + signal.SIGINT


def test_a_second_signal_ends_a_job_that_saves_at_once_but_a_repeated_one_does_not():
    job = start(SAVES)
    job.send_signal(signal.SIGINT)
    job.send_signal(signal.SIGINT)  # as a launcher passes on what the terminal has sent to all
    assert job.communicate(timeout=30) == ("saved\n", "")
    job = start(SAVES.replace("1.5", "60"))
    job.send_signal(signal.SIGINT)
    time.sleep(1.2)
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=30) == ("", f"{LINE}\n")
    assert job.returncode == 128 + signal.SIGINT


def test_a_job_whose_output_nobody_reads_ends():
    job = start(NOBODY_READS)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 128 + signal.SIGTERM
    job.communicate()


def test_a_ray_that_does_not_shut_down_does_not_hold_the_job_up():
    work = (
        NOTHING_TO_SAVE
        + """
import types
stopping.ENDS_WITHIN_S = 0.5
sys.modules["ray"] = types.SimpleNamespace(shutdown=lambda: time.sleep(60))
"""
    )
    job = start(work)
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=30) == ("", f"{LINE}\n")
    assert job.returncode == 128 + signal.SIGTERM


def test_a_child_that_is_stopped_does_not_stop_its_parent():
    work = """
def work():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    ready()
    child.terminate()
    child.join()
    time.sleep(0.3)
    print("child", child.exitcode)
    return 7
"""
    job = start(work)
    assert job.communicate(timeout=30) == (f"child {-signal.SIGTERM}\n", "")
    assert job.returncode == 7


def test_a_job_that_is_not_stopped_keeps_its_code_and_its_errors():
    job = start("def work():\n    ready()\n    return 3")
    assert job.communicate(timeout=30) == ("", "")
    assert job.returncode == 3
    job = start("def work():\n    ready()\n    raise ValueError('x')")
    assert job.communicate(timeout=30)[1].endswith("ValueError: x\n")
    job = start("def work():\n    ready()\n    sys.exit(2)")
    assert job.wait(timeout=30) == 2


def test_the_handlers_of_a_process_that_runs_jobs_are_its_own_again():
    from jobs.cli.stopping import run_until_stopped

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_until_stopped(lambda: 5) == 5
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
