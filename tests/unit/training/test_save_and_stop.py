"""What a run is asked for: all ranks do it after the same step, and SIGINT and SIGTERM lose nothing."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from pipeline.storage.local import LocalStorage
from tests.support.runs import ALONE, BARE, config_of, exact_rows, start_script
from training.data import loader
from training.record.tracking import read_metrics
from training.run_plan import plan_run
from training.save_and_stop import Request, Requests
from training.stop_signals import StoppedError
from training.trainer import train


def test_alone_what_was_asked_for_is_done_at_once_and_once():
    requests = Requests(ALONE)
    assert requests.agreed() == Request.NONE
    requests.ask(Request.SAVE)
    requests.ask(Request.STOP)
    assert requests.agreed() == Request.SAVE | Request.STOP
    assert requests.agreed() == Request.NONE


def one_rank(rank, folder):
    import torch

    from training.distributed import init_world

    world = init_world(rank, 3, f"file://{folder}/meet", torch.device("cpu"))
    requests, heard = Requests(world), []
    for step in range(6):
        if (rank, step) in ((1, 2), (2, 4)):
            requests.ask(Request.SAVE if rank == 1 else Request.STOP)
        heard.append(int(requests.agreed()))
        time.sleep(0.02 * rank)
    requests.close()
    torch.distributed.destroy_process_group()  # its threads would outlive the interpreter, which aborts then
    Path(folder, f"{rank}.json").write_text(json.dumps(heard))


def test_ranks_hear_of_it_after_the_same_step_whoever_was_asked(tmp_path):
    multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=3)
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert heard == [[0, 0, 0, int(Request.SAVE), 0, int(Request.STOP)]] * 3


def test_a_run_saves_by_the_clock_too(data_set, tmp_path):
    config = config_of(
        data_set, tmp_path, "checkpoint.every_steps=null", "checkpoint.every_minutes=0.0001", "checkpoint.keep_last=99"
    )
    train(config, ALONE)
    folders = sorted(path.name for path in (tmp_path / "debug_cpu" / "checkpoints").iterdir())
    assert len(folders) == 12, "every step took longer"
    assert folders[-1] == "step_00000012"
    train(config_of(data_set, tmp_path, "checkpoint.every_steps=null", "run.name=few"), ALONE)
    assert [path.name for path in (tmp_path / "few" / "checkpoints").iterdir()] == ["step_00000012"]


@pytest.fixture
def one_thread():
    """In this process as in the one that is stopped: two threads sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StopAsked:
    """A link through which a run is asked to stop once its data do not come."""

    def __init__(self, hangs):
        self.hangs = hangs

    def requested(self):
        return Request.NONE

    def stop_is_asked(self):
        return self.hangs.is_set()

    def saving(self):
        return lambda _step: None

    def recorded(self, row):
        pass


@pytest.fixture
def hanging_data(monkeypatch):
    """(event that makes all reads of data hang, event that lets them go on)."""
    hangs, go_on, read_range = threading.Event(), threading.Event(), LocalStorage.read_range

    def read(self, path, *place):
        if hangs.is_set() and path.endswith(".tar"):
            go_on.wait(60)
        return read_range(self, path, *place)

    monkeypatch.setattr(LocalStorage, "read_range", read)
    monkeypatch.setattr(loader, "GIVES_UP_AFTER_S", 0.3)
    yield hangs, go_on
    go_on.set()


def test_a_run_whose_data_do_not_come_saves_when_it_is_asked_to_stop_and_goes_on_bit_for_bit(
    data_set, tmp_path, one_thread, hanging_data
):
    hangs, go_on = hanging_data
    overrides = ("train.max_steps=40", "checkpoint.every_steps=null", "data.prefetch_batches=1", "data.read_threads=1")
    train(config_of(data_set, tmp_path / "undisturbed", *overrides), ALONE)
    config, metrics = (
        config_of(data_set, tmp_path / "stopped", *overrides),
        tmp_path / "stopped" / "debug_cpu" / "metrics.jsonl",
    )

    def hang():
        while len(read_metrics(metrics)) < 3:
            time.sleep(0.01)
        hangs.set()

    threading.Thread(target=hang, daemon=True).start()
    began = time.monotonic()
    result = train(config, ALONE, StopAsked(hangs))
    assert time.monotonic() - began < 40, "it does not wait for the reads"
    assert not result.finished
    assert result.step >= 3
    assert result.checkpoint.endswith(f"{result.step:08d}")
    hangs.clear()
    go_on.set()
    train(config, ALONE)
    assert exact_rows(tmp_path / "stopped") == exact_rows(tmp_path / "undisturbed")


def test_a_run_without_a_step_has_nothing_to_save(data_set, tmp_path, hanging_data, monkeypatch):
    hangs, _ = hanging_data
    monkeypatch.setattr("training.run_plan.check_captions", lambda *_: None)  # it reads samples while the run is planned
    hangs.set()
    with pytest.raises(StoppedError, match="rank 0 got no data, and the run was asked to stop"):
        train(config_of(data_set, tmp_path), ALONE, StopAsked(hangs))
    assert not (tmp_path / "debug_cpu" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("log_every", "number", "decoders"), [(1, signal.SIGTERM, 0), (7, signal.SIGINT, 0), (1, signal.SIGTERM, 5)]
)
def test_a_signal_to_all_saves_after_the_step_and_the_same_command_goes_on_bit_for_bit(
    data_set, tmp_path, log_every, number, decoders, one_thread
):
    overrides = ("train.max_steps=60", f"train.log_every_steps={log_every}", "checkpoint.every_steps=null")
    train(config_of(data_set, tmp_path / "undisturbed", *overrides), ALONE)
    settings = [f"data.uri={data_set}", f"run.dir={tmp_path / 'stopped'}", *overrides]
    settings = [*settings, f"data.decode_workers={decoders}"]
    run = start_script(BARE, "debug_cpu", *settings, stdout=subprocess.PIPE, start_new_session=True)
    metrics = tmp_path / "stopped" / "debug_cpu" / "metrics.jsonl"
    while len(read_metrics(metrics)) < 2:
        time.sleep(0.01)
        assert run.poll() is None
    os.killpg(run.pid, number)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert "on request; saved in " in printed
    assert printed.splitlines()[-1] == "not finished"
    config = config_of(data_set, tmp_path / "stopped", *overrides)
    assert 0 < plan_run(config).start.step < 60
    train(config, ALONE)
    assert exact_rows(tmp_path / "stopped") == exact_rows(tmp_path / "undisturbed")
