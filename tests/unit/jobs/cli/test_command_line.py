"""Bad input: one clear message, exit code 2, and no Ray was started."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import average, evaluate, ingest, train
from jobs.cli.command_line import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, parser, run
from jobs.cli.config import load_config


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def refuse(_cluster):
        raise AssertionError("Ray was started for bad input")

    for job in (ingest, train):
        monkeypatch.setattr(job, "connect_ray", refuse)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/a"], "caption": ["a"]}), path)
    return str(path)


def complaint(job, *arguments: str) -> str:
    capture = job.arguments() if hasattr(job, "arguments") else parser(job.__doc__)
    return str(run(capture, job.job, list(arguments)))


def test_ingestion_refuses_bad_input_before_ray_starts(table, tmp_path, bucket, capsys, monkeypatch):
    out = f"ingest.output={tmp_path / 'out'}"
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    cases = {
        ("ingest.inputs=x",): "did you mean ingest.input?",
        ("ingest.partition_size_rows=many",): "ingest.partition_size_rows='many'",
        (f"ingest.input={tmp_path}/none.parquet", out): "there is no such file",
        (f"ingest.input={tmp_path}/broken.parquet", out): "cannot be read",
        (f"ingest.input={table}", out, "ingest.url_column=link"): "has the columns url, caption",
        (f"ingest.input={table}",): "ingest.output: is empty",
        (f"ingest.input={table}", "ingest.output=s3://no-such-bucket/x"): "there is no such bucket",
        (f"ingest.input={table}", f"ingest.output={table}/below"): "cannot be written",
    }
    for arguments, message in cases.items():
        assert complaint(ingest, *arguments) == str(EXIT_BAD_INPUT), arguments
        assert message in capsys.readouterr().err, arguments


def test_a_storage_that_does_not_answer_is_a_failure_that_may_pass_and_no_bad_input(table, bucket, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert complaint(ingest, f"ingest.input={table}", f"ingest.output={bucket}/x") == str(EXIT_FAILED)
    message = capsys.readouterr().err
    assert "cannot be reached" in message
    assert "bad input" not in message
    assert "planted-secret" not in message


def test_training_refuses_bad_input_before_ray_starts(data_set, tmp_path, capsys):
    run_dir = f"run.dir={tmp_path}"
    cases = {
        ("train.global_batch_size=0", run_dir): "train.global_batch_size=0",
        ("data.uri=/nowhere/at/all", run_dir): "there is no data set; make one with jobs/ingest.py",
        (f"data.uri={data_set}", "train.global_batch_size=65", run_dir): "use 64 or less",
        (f"data.uri={data_set}", run_dir, "model.name=VIT-B/32"): "did you mean ViT-B/32",
    }
    for arguments, message in cases.items():
        assert complaint(train, "--config", "debug_cpu", *arguments) == str(EXIT_BAD_INPUT), arguments
        assert message in capsys.readouterr().err, arguments


def test_an_empty_data_set_is_refused(make_data_set, tmp_path, capsys):
    empty = make_data_set(str(tmp_path / "empty"), (0,))
    assert complaint(train, "--config", "debug_cpu", f"data.uri={empty}", f"run.dir={tmp_path}") == str(EXIT_BAD_INPUT)
    assert "holds no samples" in capsys.readouterr().err


def test_evaluation_refuses_bad_input(data_set, tmp_path, capsys):
    cases = {
        ("run.name=none", f"run.dir={tmp_path}"): "holds no checkpoint",
        ("--weights", "none.pt", f"evaluation.retrieval_uri={data_set}"): "there is no such file",
    }
    for arguments, message in cases.items():
        assert complaint(evaluate, *arguments) == str(EXIT_BAD_INPUT), arguments
        assert message in capsys.readouterr().err, arguments


def test_a_checkpoint_and_a_file_of_weights_are_evaluated_alike(data_set, tmp_path, capsys):
    import torch

    from model.clip import build_clip
    from pipeline.storage.address import open_storage
    from training.checkpoint.store import CheckpointStore
    from training.distributed import World
    from training.trainer import train as train_bare

    settings = [f"data.uri={data_set}", f"run.dir={tmp_path}", "train.max_steps=6", f"evaluation.retrieval_uri={data_set}"]
    result = train_bare(load_config("debug_cpu", settings), World(0, 1, torch.device("cpu")))
    capsys.readouterr()
    assert complaint(evaluate, f"run.dir={tmp_path}", "run.name=debug_cpu", "train.device=cpu") == "0"
    printed = capsys.readouterr().out
    figures = {name: value for name, value in result.evaluation.items() if name.startswith("evaluation/")}
    assert len(figures) == 8
    for name, value in figures.items():
        assert f"{name.removeprefix('evaluation/'):32} {value:.4f}" in printed
    clip = build_clip("debug-vit")
    CheckpointStore(open_storage(str(tmp_path / "debug_cpu"))).latest().restore_weights(clip)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    options = ["--weights", str(tmp_path / "weights.pt"), "model.name=debug-vit", f"evaluation.retrieval_uri={data_set}"]
    assert complaint(evaluate, *options) == str(EXIT_BAD_INPUT)
    assert "both have the same keys" in capsys.readouterr().err
    assert complaint(evaluate, *options, "--activation", "quick_gelu", "train.device=cpu") == "0"
    assert capsys.readouterr().out.splitlines() == printed.splitlines()[1:]


def test_open_clips_weights_are_fine_tuned_and_averaged_with_their_start(data_set, tmp_path, capsys):
    import open_clip
    import torch

    from training.distributed import World
    from training.trainer import train as train_bare

    torch.manual_seed(0)
    peer = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )
    torch.save({"epoch": 3, "state_dict": peer.state_dict()}, tmp_path / "epoch_3.pt")
    told = ["model.name=debug-vit", f"model.weights={tmp_path / 'epoch_3.pt'}", "model.activation=quick_gelu"]
    settings = [
        *(
            f"data.uri={data_set}",
            f"run.dir={tmp_path}",
            f"evaluation.retrieval_uri={data_set}",
            "tracking.wandb_mode=disabled",
        ),
        *("train.global_batch_size=32", "data.num_streams=2", "optimizer.learning_rate=1e-3", "train.device=cpu"),
    ]
    result = train_bare(load_config("finetune", [*told, *settings]), World(0, 1, torch.device("cpu")))
    place = (f"run.dir={tmp_path}", "run.name=finetune", "train.device=cpu")
    saved = tmp_path / "average.safetensors"
    assert complaint(average, *place, "--points", "3", "--save", str(saved), "--json", str(tmp_path / "line.json")) == "0"
    line = json.loads((tmp_path / "line.json").read_text())
    assert [point["alpha"] for point in line] == [0.0, 0.5, 1.0]
    assert {key: value for key, value in line[2].items() if key != "alpha"} == pytest.approx(result.evaluation)
    assert line[2]["evaluation/image_to_text_r5"] > line[0]["evaluation/image_to_text_r5"]
    capsys.readouterr()
    options = ("--weights", str(saved), "model.name=debug-vit", f"evaluation.retrieval_uri={data_set}", "train.device=cpu")
    assert complaint(evaluate, *options) == "0"
    assert f"{'image_to_text_r5':32} {line[1]['evaluation/image_to_text_r5']:.4f}" in capsys.readouterr().out


def test_a_run_without_initial_weights_has_no_line_to_average_along(data_set, tmp_path, capsys):
    import torch

    from training.distributed import World
    from training.trainer import train as train_bare

    settings = [f"data.uri={data_set}", f"run.dir={tmp_path}", "train.max_steps=6"]
    train_bare(load_config("debug_cpu", settings), World(0, 1, torch.device("cpu")))
    assert complaint(average, f"run.dir={tmp_path}", "run.name=debug_cpu") == str(EXIT_BAD_INPUT)
    assert "started from no weights" in capsys.readouterr().err


def test_a_job_that_is_told_to_stop_ends_with_its_own_exit_code_and_a_line():
    code = "import os, signal, ray\nfrom jobs.cli.command_line import connect_ray\nfrom training.config import ClusterConfig\n"
    code += "ray.init = lambda **_: None\nconnect_ray(ClusterConfig())\nos.kill(os.getpid(), signal.SIGTERM)\nprint('goes on')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (EXIT_STOPPED, "")
    assert result.stderr == "stopped; committed work is kept, and the same command resumes\n"


def test_help_lists_the_keys_and_the_recipes():
    result = subprocess.run([sys.executable, "jobs/train.py", "--help"], capture_output=True, text=True, check=True)
    assert "train.global_batch_size" in result.stdout
    assert "debug_cpu" in result.stdout
