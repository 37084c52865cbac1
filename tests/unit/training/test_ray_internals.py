"""The installed Ray is the one whose private code was read, and everything that is used of it is there."""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from training import ray_internals
from training.ray_internals import INTERNALS, READ_IN, SILENCED, UNWANTED_LINES

FILE = Path(ray_internals.__file__)


def check_version(installed: str) -> None:
    assert installed.startswith(f"{READ_IN}."), (
        f"training/ray_internals.py was read in Ray {READ_IN}, and Ray {installed} is installed: compare the use of each name "
        "in INTERNALS, SILENCED and UNWANTED_LINES with the new code, then set READ_IN"
    )


def check_internal(name: str) -> None:
    """Imports the longest part of a name that is a module, and takes the attributes after it."""
    parts = name.split(".")
    last = max(count for count in range(1, len(parts)) if _is_module(".".join(parts[:count])))
    found = importlib.import_module(".".join(parts[:last]))
    for part in parts[last:]:
        assert hasattr(found, part), (
            f"training/ray_internals.py uses {name}, and the installed Ray has no {part} in {found}: find what took its place"
        )
        found = getattr(found, part)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_installed_ray_is_the_one_that_was_read():
    check_version(importlib.metadata.version("ray"))


@pytest.mark.parametrize("name", INTERNALS)
def test_every_internal_is_there(name):
    check_internal(name)


@pytest.mark.parametrize("name", [*SILENCED, *UNWANTED_LINES])
def test_every_logger_is_that_of_a_module_which_writes_the_unwanted_line(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"training/ray_internals.py silences {name}, and the installed Ray has no such module"
    source = Path(spec.origin).read_text()
    assert "logging.getLogger(__name__)" in source
    assert UNWANTED_LINES.get(name, "") in source, f"{name} has another line now: see training/ray_internals.py"


def test_another_version_and_a_name_that_is_gone_are_named_with_the_file_to_compare():
    with pytest.raises(
        AssertionError, match=r"ray_internals\.py was read in Ray 2\.60, and Ray 2\.61\.0 is installed: compare"
    ):
        check_version("2.61.0")
    with pytest.raises(AssertionError, match=r"ray_internals\.py uses ray\.train\.v2\.gone\.Name, .*has no gone in"):
        check_internal("ray.train.v2.gone.Name")


def test_the_list_of_internals_is_complete():
    code = FILE.read_text().split("# -----", 1)[1]
    modules = {
        match[1] for match in re.finditer(r"(?:from|import) (ray(?:\.\w*(?:_internal|_private|experimental)\b[\w.]*))", code)
    }
    modules |= {match[1] for match in re.finditer(r"from (ray\.[\w.]*_internal[\w.]*) import", code)}
    assert len(modules) >= 6
    for module in modules:
        assert any(name.startswith(module) for name in INTERNALS), f"{module} is used and not in INTERNALS"


def test_no_other_module_reaches_into_ray():
    root = FILE.parents[1]
    pattern = re.compile(r"ray\.(?:\w+\.)*(?:_internal|_private)\b|ray\.experimental")
    rooms = ("jobs", "model", "training")
    found = {
        str(path.relative_to(root))
        for room in rooms
        for path in (root / room).rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert found == {"training/ray_internals.py"}


@pytest.fixture
def as_worker(monkeypatch):
    """This process as a worker of a Ray with the address 10.0.0.1:7, whose driver had been told `local`."""
    context = SimpleNamespace(gcs_address="10.0.0.1:7")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setenv("RAY_ADDRESS", "local")


def test_a_worker_asks_its_own_ray_where_several_run_on_its_machine(as_worker, monkeypatch):
    from ray._private import services
    from ray.dashboard import utils

    monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset({"10.0.0.1:7", "10.0.0.1:8"}))
    monkeypatch.setattr(utils, "ray_address_to_api_server_url", services.canonicalize_bootstrap_address_or_die)
    with pytest.raises(ConnectionError, match="Found multiple active Ray instances"):
        utils.get_address_for_submission_client(None)
    ray_internals.set_up_worker()
    assert utils.get_address_for_submission_client(None) == "10.0.0.1:7"


def test_a_worker_keeps_the_lines_that_say_something_and_drops_the_others(as_worker, caplog):
    ray_internals.set_up_worker()
    try:
        for name, start in UNWANTED_LINES.items():
            logger = logging.getLogger(name)
            with caplog.at_level(logging.INFO, logger=name):
                logger.info("%s anything", start)
                logger.info("Started training worker group of size 2")
            assert [record.getMessage() for record in caplog.records] == ["Started training worker group of size 2"]
            caplog.clear()
    finally:
        for name in UNWANTED_LINES:
            logging.getLogger(name).removeFilter(ray_internals._is_wanted)


def test_the_controller_tells_the_watcher_when_a_running_group_is_resized_and_when_one_restarts():
    from ray.train.v2._internal.execution.controller import state

    heard = []

    class Watcher:
        def polled(self):
            heard.append("polled")

        def scheduling(self, group_runs):
            heard.append(("scheduling", group_runs))

        def running(self):
            heard.append("running")

        def restarting(self):
            heard.append("restarting")

        def resizing(self):
            heard.append("resizing")

    def made(name):
        kind = getattr(state, name)
        return kind.__new__(kind)

    callback = ray_internals.controller_callback(Watcher())
    callback.after_controller_state_update(made("InitializingState"), made("SchedulingState"))
    callback.after_controller_state_update(made("SchedulingState"), made("RunningState"))
    callback.after_worker_group_poll_status(None)
    callback.after_controller_state_update(made("ResizingState"), made("SchedulingState"))
    callback.before_controller_execute_resize_decision(None)
    callback.after_controller_state_update(made("RunningState"), made("RestartingState"))
    assert heard == [("scheduling", False), "running", "polled", ("scheduling", True), "resizing", "restarting"]


def test_the_callback_can_be_sent_to_the_controller():
    from ray import cloudpickle

    from training.launch.group_size import GroupSize
    from training.launch.mailbox import Mailbox

    mailbox = Mailbox("launch", ray_internals.put_value, ray_internals.get_value)
    callback = ray_internals.controller_callback(GroupSize(mailbox, ray_internals.RayCluster(), None))
    cloudpickle.loads(cloudpickle.dumps(callback)).after_worker_group_poll_status(None)
    assert ray_internals.RayCluster().recount_delay_s > 0


def test_the_traceback_of_a_group_that_waits_for_workers_is_dropped_and_those_of_others_stay():
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    def record(error):
        return logging.LogRecord("name", logging.INFO, "file", 1, "[FailurePolicy] RETRY", None, (type(error), error, None))

    assert not ray_internals._is_no_wait_for_workers(record(ControllerError(WorkerGroupStartupTimeoutError(2))))
    assert ray_internals._is_no_wait_for_workers(record(ControllerError(ValueError("another"))))
    assert ray_internals._is_no_wait_for_workers(logging.LogRecord("name", logging.INFO, "file", 1, "a line", None, None))


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("local", None),
    ],
)
def test_the_head_that_ray_would_join_is_known_before_it_does(monkeypatch, address, found):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_internals.address_to_join() == found


def test_ray_starts_its_processes_outside_of_the_process_group_of_the_terminal():
    from ray._private import services

    before = services.ConsolePopen
    with ray_internals.in_a_process_group_of_its_own():
        process = services.ConsolePopen(["sleep", "60"])
    assert os.getpgid(process.pid) == process.pid != os.getpgrp()
    process.kill()
    process.wait()
    assert services.ConsolePopen is before


def test_what_outlives_a_node_that_is_stopped_while_it_starts_is_ended():
    from ray._private import services

    with ray_internals.in_a_process_group_of_its_own():
        node = services.ConsolePopen(["sh", "-c", "sleep 61 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    agent = int(node.stdout.readline())
    node.kill()
    node.wait()
    assert os.getpgid(agent) == node.pid
    ray_internals.end_started_groups()
    deadline = time.monotonic() + 10
    while is_alive(agent):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ray_internals.end_started_groups()  # has nothing left to end


def is_alive(process):
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
