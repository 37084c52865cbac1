"""jobs/train.py without Ray: bad input costs no cluster."""

import pytest

from jobs import train
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from tests.support.odd_s3 import ignores


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(train, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))


def complaint(*arguments: str) -> int:
    return run(train.arguments(), train.job, list(arguments))


def test_training_refuses_bad_input_before_ray_starts(data_set, tmp_path, capsys):
    run_dir = f"run.dir={tmp_path}"
    cases = {
        ("train.global_batch_size=0", run_dir): "train.global_batch_size=0",
        ("data.uri=/nowhere/at/all", run_dir): "there is no data set; make one with jobs/ingest.py",
        (f"data.uri={data_set}", "train.global_batch_size=65", run_dir): "use 64 or less",
        (f"data.uri={data_set}", run_dir, "model.name=VIT-B/32"): "did you mean ViT-B/32",
    }
    for arguments, message in cases.items():
        assert complaint("--config", "debug_cpu", *arguments) == EXIT_BAD_INPUT, arguments
        assert message in capsys.readouterr().err, arguments


def test_an_empty_data_set_is_refused(make_data_set, tmp_path, capsys):
    empty = make_data_set(str(tmp_path / "empty"), (0,))
    assert complaint("--config", "debug_cpu", f"data.uri={empty}", f"run.dir={tmp_path}") == EXIT_BAD_INPUT
    assert "holds no samples" in capsys.readouterr().err


@pytest.mark.parametrize("store", [ignores], indirect=True)
def test_a_run_folder_without_put_if_absent_costs_no_cluster(store, data_set, capsys):
    assert complaint("--config", "debug_cpu", f"data.uri={data_set}", "run.dir=s3://bucket/runs") == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{store.address} (server: OddStore/1.0) does not keep put-if-absent" in said
    assert "run.single_writer=NAME" in said
    assert not store.objects
