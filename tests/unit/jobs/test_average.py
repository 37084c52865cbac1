"""jobs/average.py: the line between the weights before and after fine-tuning."""

import json

import pytest

from jobs import average, evaluate
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.cli.config import load_config


def complaint(job, *arguments: str) -> int:
    return run(job.arguments(), job.job, list(arguments))


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
    assert complaint(average, *place, "--points", "3", "--save", str(saved), "--json", str(tmp_path / "line.json")) == 0
    line = json.loads((tmp_path / "line.json").read_text())
    assert [point["alpha"] for point in line] == [0.0, 0.5, 1.0]
    assert {key: value for key, value in line[2].items() if key != "alpha"} == pytest.approx(result.evaluation)
    assert line[2]["evaluation/image_to_text_r5"] > line[0]["evaluation/image_to_text_r5"]
    assert "has not recorded" not in capsys.readouterr().out
    options = ("--weights", str(saved), "model.name=debug-vit", f"evaluation.retrieval_uri={data_set}", "train.device=cpu")
    assert complaint(evaluate, *options) == 0
    assert f"{'image_to_text_r5':32} {line[1]['evaluation/image_to_text_r5']:.4f}" in capsys.readouterr().out
    starts = tmp_path / "finetune" / "starts.jsonl"
    starts.write_text(starts.read_text().replace("weights_sha256", "other"))  # of an earlier release
    assert complaint(average, *place, "--points", "0", "--save", str(saved)) == 0
    assert "the run has not recorded what it started from; alpha 0 is model.weights=" in capsys.readouterr().out
    starts.write_text(starts.read_text().replace("other", "weights_sha256"))
    torch.save({key: value + 1 for key, value in peer.state_dict().items()}, tmp_path / "epoch_3.pt")
    assert complaint(average, *place, "--points", "0", "--save", str(saved)) == EXIT_BAD_INPUT
    assert "epoch_3.pt, which holds other weights now; restore them" in capsys.readouterr().err


def test_a_run_without_initial_weights_has_no_line_to_average_along(data_set, tmp_path, capsys):
    import torch

    from training.distributed import World
    from training.trainer import train as train_bare

    settings = [f"data.uri={data_set}", f"run.dir={tmp_path}", "train.max_steps=6"]
    train_bare(load_config("debug_cpu", settings), World(0, 1, torch.device("cpu")))
    assert complaint(average, f"run.dir={tmp_path}", "run.name=debug_cpu") == EXIT_BAD_INPUT
    assert "started without model.weights; name a fine-tuning run" in capsys.readouterr().err


@pytest.mark.parametrize("alpha", ["-0.1", "1.5"])
def test_an_alpha_beyond_the_line_is_refused(alpha, capsys):
    with pytest.raises(SystemExit):
        average.arguments().parse_args(["--alpha", alpha])
    assert f"{alpha}: must be between 0 (the start) and 1 (the end)" in capsys.readouterr().err
