"""jobs/evaluate.py in this process: a checkpoint and weights, and what it refuses."""

from jobs import evaluate
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.cli.config import load_config


def complaint(*arguments: str) -> int:
    return run(evaluate.arguments(), evaluate.job, list(arguments))


def test_evaluation_refuses_bad_input(data_set, tmp_path, capsys):
    cases = {
        ("run.name=none", f"run.dir={tmp_path}"): "holds no checkpoint",
        ("--weights", "none.pt", f"evaluation.retrieval_uri={data_set}"): "there is no such file",
    }
    for arguments, message in cases.items():
        assert complaint(*arguments) == EXIT_BAD_INPUT, arguments
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
    assert complaint(f"run.dir={tmp_path}", "run.name=debug_cpu", "train.device=cpu") == 0
    printed = capsys.readouterr().out
    figures = {name: value for name, value in result.evaluation.items() if name.startswith("evaluation/")}
    assert len(figures) == 8
    for name, value in figures.items():
        assert f"{name.removeprefix('evaluation/'):32} {value:.4f}" in printed
    clip = build_clip("debug-vit")
    CheckpointStore(open_storage(str(tmp_path / "debug_cpu"))).latest().restore_weights(clip)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    options = ["--weights", str(tmp_path / "weights.pt"), "model.name=debug-vit", f"evaluation.retrieval_uri={data_set}"]
    assert complaint(*options) == EXIT_BAD_INPUT
    assert "both have the same keys" in capsys.readouterr().err
    assert complaint(*options, "--activation", "quick_gelu", "train.device=cpu") == 0
    assert capsys.readouterr().out.splitlines() == printed.splitlines()[1:]
