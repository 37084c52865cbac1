"""What a run publishes is what its record says, and trouble with it stops no training."""

from pipeline.metrics import Publisher
from tests.support.metrics_library import MetricsLibrary
from tests.support.runs import ALONE, config_of
from training.metrics import TRAINING, publish_row
from training.record.tracking import read_metrics
from training.save_and_stop import Request
from training.trainer import train

BY_THE_ADAPTER = {"checkpoint_step", "checkpoint_time"}


class Link:
    """What training/worker.py has, without Ray."""

    def __init__(self, publisher):
        self.recorded = lambda row: publish_row(row, publisher)

    def requested(self):
        return Request.NONE

    def saving(self):
        return lambda step: None


def test_rows_become_gauges_of_the_run_with_the_values_of_the_record(data_set, tmp_path):
    library = MetricsLibrary()
    settings = ("optimizer.warmup_steps=1", f"evaluation.retrieval_uri={data_set}", "run.allow_config_changes=true")
    for steps in (2, 4):  # the second is another start of the same run
        with Publisher(TRAINING, {"run": "debug_cpu"}, library) as publisher:
            config = config_of(data_set, tmp_path, f"train.max_steps={steps}", *settings)
            result = train(config, ALONE, Link(publisher))
    assert library.names() == {one.name for key, one in TRAINING.items() if key not in BY_THE_ADAPTER}
    row = next(row for row in reversed(read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")) if "loss" in row)
    for key in set(row) & set(TRAINING):
        assert library.of(TRAINING[key].name, run="debug_cpu") == row[key], key
    assert len(set(row) & set(TRAINING)) >= 15
    assert library.of("rayclip_train_starts", run="debug_cpu") == 2
    assert library.of("rayclip_train_workers", run="debug_cpu") == 1
    assert library.of("rayclip_train_planned_steps", run="debug_cpu") == 4
    for figure in ("image_to_text_r1", "text_to_image_median_rank"):
        value = library.of("rayclip_train_evaluation", run="debug_cpu", figure=figure)
        assert value == result.evaluation[f"evaluation/{figure}"]


def test_a_number_that_is_none_leaves_the_last_one():
    library = MetricsLibrary()
    with Publisher(TRAINING, {"run": "r"}, library) as publisher:
        publish_row({"step": 1, "loss": 2.0}, publisher)
        publish_row({"step": 2, "loss": None}, publisher)
    assert library.of("rayclip_train_loss", run="r") == 2.0
    assert library.of("rayclip_train_step", run="r") == 2


def test_a_link_that_fails_stops_no_training_and_loses_no_row(data_set, tmp_path, caplog):
    link = Link(None)

    def fail(row):
        raise RuntimeError("nobody there")

    link.recorded = fail
    assert train(config_of(data_set, tmp_path, "train.max_steps=3", "optimizer.warmup_steps=1"), ALONE, link).step == 3
    assert "a row of the record was not published (RuntimeError: nobody there)" in caplog.text
    assert [row["step"] for row in read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl") if "loss" in row] == [1, 2, 3]
