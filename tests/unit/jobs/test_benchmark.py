"""jobs/benchmark.py: every command reaches its benchmark with its options."""

import pytest

from jobs import benchmark
from jobs.benchmarks import data_loading, embedding, ingestion, loss_cost, parity, ranking, training_step, whole_runs
from jobs.benchmarks.step_sides import Setting

BOTH = ("ours", "open_clip")
COMMANDS = {
    "ingest --scheme http --rows 3 --small-rows 2 --repeats 1": (ingestion, "run", ("http", 2, 3, 1)),
    "ingest-yield --rows 7": (ingestion, "run_yield", (7,)),
    "ingest-plan --rows 5 6": (ingestion, "run_plan", ((5, 6),)),
    "data --samples 9 --repeats 1": (data_loading, "run", (9, 1)),
    "train --model RN50 --repeats 2 --threads 1": (training_step, "run", (Setting("RN50", 32), 2, 1, 1, BOTH, None)),
    "train --batch-size 64 --side ours --steps 20 --micro-batch-size 16 --ddp --loader 3 --compile --checkpointing": (
        training_step,
        "run",
        (Setting("ViT-B/32", 64, micro_batch_size=16, ddp=True, compile=True, checkpointing=True), 5, 20, None, ("ours",), 3),
    ),
    "loss --global-batches 16 --repeats 1": (loss_cost, "run", ((16,), 1)),
    "end-to-end --steps 4": (whole_runs, "run_end_to_end", ("vit_b_32", 32, 4, 1)),
    "ray --threads 1": (whole_runs, "run_ray", ("vit_b_32", 16, 16, 3, 1)),
    "workers": (whole_runs, "run_workers", ("vit_b_32", 64, 5, 2)),
    "checkpoints": (whole_runs, "run_checkpoints", ("vit_b_32", 16, 20, 2)),
    "embed --threads 2": (embedding, "run", (embedding.Setting("ViT-B/32", 64, 4, 512, 2), 3)),
    "parity --steps 50 --seeds 1": (parity, "run", ("debug-vit", 50, 1, "data/demo", False)),
    "retrieval --pairs 10 --threads 1": (ranking, "run", (10, 512, 1, 1)),
}


def reach(monkeypatch, module, function) -> list[tuple]:
    """The arguments with which a benchmark will have been called, by the module's attribute or by its parser's."""
    calls: list[tuple] = []
    monkeypatch.setattr(module, function, lambda *arguments: calls.append(arguments) or "the figures")
    return calls


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs_its_benchmark_with_its_options_and_prints_the_figures(line, monkeypatch, capsys):
    module, function, expected = COMMANDS[line]
    calls = reach(monkeypatch, module, function)
    assert benchmark.main(line.split()) == 0
    assert calls == [expected]
    assert capsys.readouterr().out == "the figures\n"


def test_help_shows_every_command(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"python jobs/benchmark.py {line.split()[0]} " in text for line in COMMANDS)
