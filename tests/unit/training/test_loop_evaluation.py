"""Evaluations of a run: when they are due and how a failure is told; tests/world/test_found_early.py kills and breaks them."""

import pytest
import torch

from model.clip import build_clip
from pipeline.errors import ConfigError, StorageAwayError
from tests.support.runs import ALONE, config_of
from training.distributed import World
from training.errors import EvaluationFailedError
from training.loop_evaluation import LoopEvaluation
from training.run_plan import plan_run


def loop(data_set, folder, *overrides: str, world: World = ALONE) -> LoopEvaluation:
    config = config_of(data_set, folder, f"evaluation.retrieval_uri={data_set}", *overrides)
    return LoopEvaluation(plan_run(config), world, lambda: None)


def test_an_evaluation_is_due_at_its_steps_and_at_the_end(data_set, tmp_path):
    assert [step for step in range(1, 13) if loop(data_set, tmp_path, "evaluation.every_steps=5").is_due(step)] == [5, 10, 12]
    assert [step for step in range(1, 13) if loop(data_set, tmp_path).is_due(step)] == [12]


@pytest.mark.parametrize(
    ("error", "raised", "saves"),
    [
        (ConfigError("a class is gone; restore it"), EvaluationFailedError, 1),
        (StorageAwayError("s3://b: does not answer"), StorageAwayError, 1),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError, 1),
        (KeyboardInterrupt(), KeyboardInterrupt, 0),
    ],
)
def test_a_run_is_saved_before_a_failure_ends_it(data_set, tmp_path, monkeypatch, error, raised, saves):
    def fail(*_arguments):
        raise error

    monkeypatch.setattr("training.loop_evaluation.evaluate", fail)
    evaluation, clip, saved = loop(data_set, tmp_path), build_clip("debug-vit"), []
    with pytest.raises(raised):
        evaluation.evaluate(clip, 12, None, lambda: saved.append(1) or "checkpoints/step_00000012")
    assert len(saved) == saves
    assert clip.training
    assert evaluation.figures == {}


def test_a_failure_that_other_ranks_do_not_share_is_never_let_pass(data_set, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise ConfigError("cut")

    monkeypatch.setattr("training.loop_evaluation.evaluate", fail)
    monkeypatch.setattr("training.loop_evaluation.broadcast_buffers", lambda *_: None)
    one_of_two = World(0, 2, torch.device("cpu"))
    evaluation = loop(data_set, tmp_path, "evaluation.on_failure=warn", world=one_of_two)
    with pytest.raises(ConfigError, match="cut"):
        evaluation.evaluate(build_clip("debug-vit"), 12, None, lambda: "")
    evaluation = loop(data_set, tmp_path, "evaluation.on_failure=warn")
    assert not evaluation.evaluate(build_clip("debug-vit"), 12, None, lambda: "")
