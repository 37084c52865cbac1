"""The jobs as functions: keys in any form, errors instead of exits, and a process that stays as it was."""

import signal

import pytest

import rayclip
from jobs.cli.config import load_config
from rayclip import job_calls
from training.record.run_record import TrainResult
from training.stop_signals import StoppedError


@pytest.fixture
def trained_with(monkeypatch):
    """The configurations that would be trained."""
    seen = []

    def train_run(config):
        seen.append(config)
        return TrainResult("runs/a", "checkpoints/step_00000003", 3, 96, 1.0, {"evaluation/r1": 0.5})

    monkeypatch.setattr(job_calls, "train_run", train_run)
    monkeypatch.setattr(job_calls, "report_at_the_end", lambda config: "")
    return seen


def test_keys_may_be_given_by_section_as_a_list_or_by_their_dotted_names(trained_with, tmp_path):
    typed = ["data.uri=data/pairs", "train.max_steps=30", "optimizer.learning_rate=0.001", f"run.dir={tmp_path}"]
    expected = load_config("debug_cpu", typed)
    result = rayclip.train("debug_cpu", typed)
    rayclip.train(
        "debug_cpu",
        data={"uri": "data/pairs"},
        train={"max_steps": 30},
        optimizer={"learning_rate": 1e-3},
        run={"dir": tmp_path},
    )
    rayclip.train("debug_cpu", typed[:2], **{"optimizer.learning_rate": 0.001, "run.dir": str(tmp_path)})
    assert trained_with == [expected] * 3
    assert (result.step, result.samples_seen, result.finished) == (3, 96, True)
    assert result.evaluation == {"evaluation/r1": 0.5}


def test_values_of_every_kind_arrive(trained_with):
    rayclip.train("debug_cpu", data={"uri": 'a "b": #c', "captions": ("x", "y")}, evaluation={"retrieval_uri": None},
                  cluster={"num_workers": [1, 2]}, train={"compile": True})  # fmt: skip
    config = trained_with[0]
    assert config.data.uri.endswith('a "b": #c')
    assert config.data.captions == ("x", "y")
    assert config.cluster.num_workers == (1, 2)
    assert config.train.compile is True


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"trian": {"max_steps": 3}}, "did you mean the section train"),
        ({"train": {"max_stepz": 3}}, "did you mean"),
        ({"max_steps": 3}, "max_steps=3: an override is section.key=value"),
        ({"ingest": {"input": "a"}}, "does not use the section ingest"),
        ({"train": {"max_steps": "many"}}, "train.max_steps="),
    ],
)
def test_a_bad_key_is_a_config_error_and_nothing_starts(trained_with, keys, message):
    with pytest.raises(rayclip.ConfigError) as error:
        rayclip.train("debug_cpu", **keys)
    assert message in str(error.value)
    assert not trained_with


def test_an_unknown_recipe_is_named_without_the_option_of_a_command_line():
    with pytest.raises(rayclip.ConfigError, match=r"^config=none: there is no such recipe"):
        rayclip.train("none")


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (rayclip.RunError("the loss is not finite"), rayclip.RunError, "the loss is not finite"),
        (rayclip.ConfigError("a.b=1: is bad; change it"), rayclip.ConfigError, "is bad"),
        (StoppedError(), rayclip.RunError, "the same call resumes from the last checkpoint"),
        (KeyError("a bug"), rayclip.RunError, "unexpected error: KeyError"),
        (OSError(28, "No space left on device"), rayclip.RunError, "no space is left"),
    ],
)
def test_every_error_is_one_of_the_package_and_keeps_its_cause(monkeypatch, raised, kind, message):
    def train_run(config):
        raise raised

    monkeypatch.setattr(job_calls, "train_run", train_run)
    with pytest.raises(kind, match=message) as error:
        rayclip.train("debug_cpu", data={"uri": "x"})
    assert error.value is raised or error.value.__cause__ is raised


def test_ctrl_c_stays_ctrl_c(monkeypatch):
    def train_run(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(job_calls, "train_run", train_run)
    with pytest.raises(KeyboardInterrupt):
        rayclip.train("debug_cpu", data={"uri": "x"})


def test_training_refuses_bad_data_before_ray_starts_and_keeps_the_handlers(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.train.connect_ray", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(rayclip.InputError, match="there is no data set"):
        rayclip.train("debug_cpu", data={"uri": str(tmp_path / "none")}, run={"dir": str(tmp_path / "runs")})
    assert {number: signal.getsignal(number) for number in before} == before


def test_ingestion_refuses_a_bad_table_and_reports_one_without_new_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(job_calls, "connect_ray", None)
    with pytest.raises(rayclip.InputError, match=r"ingest\.output: is empty"):
        rayclip.ingest(ingest={"input": str(tmp_path / "none.csv")})
    (tmp_path / "pairs.csv").write_text("url,caption\n")
    summary = rayclip.ingest(ingest={"input": str(tmp_path / "pairs.csv"), "output": str(tmp_path / "pairs")})
    assert (summary.version, summary.rows, summary.num_samples) == (0, 0, 0)


def test_less_than_was_meant_is_an_error(tmp_path, monkeypatch):
    from pipeline.ingest.summary import IngestSummary

    (tmp_path / "pairs.csv").write_text("url,caption\n")
    summary = IngestSummary(str(tmp_path), 1, 0, {"timeout": 9}, 0, 1.0, shortfall="0 of 9 rows: too few")
    monkeypatch.setattr("pipeline.ingest.driver.run_ingest", lambda *_, **__: summary)
    with pytest.raises(rayclip.NotMeantError, match="0 of 9 rows: too few; what is committed stays"):
        rayclip.ingest(ingest={"input": str(tmp_path / "pairs.csv"), "output": str(tmp_path / "pairs")})
