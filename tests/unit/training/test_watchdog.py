"""A step that hangs: its rank says where, shows its threads, and ends."""

import pytest

from tests.support.runs import run_script
from training.watchdog import EXIT_HANGS

HANGING = """
import ctypes, sys, time
import torch
from jobs.cli.config import load_config
from training.data.loader import TrainLoader
from training.distributed import World
from training.trainer import Trainer, train

def stand_still(*_):
    time.sleep(600)

def stand_still_with_the_lock(*_):
    ctypes.PyDLL(None).sleep(600)

def spoil(cls, name, stand, step):
    method = getattr(cls, name)
    def spoilt(self, *arguments):
        spoilt.calls += 1
        if spoilt.calls == step:
            stand()
        return method(self, *arguments)
    spoilt.calls = 0
    setattr(cls, name, spoilt)

where = sys.argv[1]
if where == "data":
    spoil(TrainLoader, "_next", stand_still, 4)
else:
    spoil(Trainer, "_inputs", stand_still if where == "step" else stand_still_with_the_lock, 4)
train(load_config("debug_cpu", sys.argv[2:]), World(0, 1, torch.device("cpu")))
"""


@pytest.mark.parametrize(("where", "phase"), [("data", "waiting for data"), ("step", "computing"), ("lock", "")])
def test_a_rank_that_hangs_says_where_and_ends(data_set, tmp_path, where, phase):
    settings = [f"data.uri={data_set}", f"run.dir={tmp_path}", "train.hang_timeout_s=1.5", "checkpoint.every_steps=2"]
    exit_code, errors = run_script(HANGING, where, *settings)
    assert "stand_still" in errors, "the stack is shown"
    if where == "lock":  # nothing of Python can speak
        assert exit_code == 1
        assert "Timeout" in errors
    else:
        assert exit_code == EXIT_HANGS
        assert f"rank 0 hangs in step 4: {phase} for " in errors
        assert (tmp_path / "debug_cpu" / "checkpoints" / "step_00000002" / "checkpoint.json").exists()
