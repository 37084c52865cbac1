"""The command line of a job as a newcomer meets it: its help, and its answers to options of other programs."""

import subprocess
import sys
from importlib import import_module

import pytest

from jobs.cli.config import recipe_names
from jobs.cli.job_keys import JOBS
from jobs.cli.job_parser import recipes_for


def said(capsys, job: str, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as error:
        import_module(f"jobs.{job}").arguments().parse_intermixed_args(list(words))
    out, err = capsys.readouterr()
    return error.value.code or 0, out, err


@pytest.mark.parametrize("job", JOBS)
def test_help_shows_examples_first_then_options_then_the_jobs_own_keys(job, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = said(capsys, job, "--help")
    assert code == 0
    assert out.index(f"python jobs/{job}.py ") < out.index("options:") < out.index("keys:\n")
    assert out.rfind("recipes: ") > out.index("keys:\n") or not recipes_for(job)
    for other in set(JOBS["demo"].sections) - set(JOBS[job].sections):
        assert f"\n  {other}." not in out
    assert len(out.splitlines()) <= 100


def test_recipes_are_listed_where_they_set_something_that_the_job_uses(capsys):
    assert recipes_for("train") == recipes_for("evaluate") == recipes_for(None) == recipe_names()
    assert recipes_for("ingest") == ["demo"]
    assert recipes_for("index") == recipes_for("curate") == []
    assert "vit_b_32, " in said(capsys, "train", "--help")[1]
    assert "vit_b_16" not in said(capsys, "ingest", "--help")[1]
    assert "recipes: " not in said(capsys, "curate", "--help")[1]


def test_help_shows_the_values_of_the_recipe_that_is_loaded_without_config(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "118")
    _, out, _ = said(capsys, "train", "--help", "train.num_epochs")
    assert "(default: 1000 by the recipe `default`; 32 if a recipe omits it)" in " ".join(out.split())
    _, out, _ = said(capsys, "demo", "--help")
    assert "(default: 2 by the recipe `demo`; 1 if a recipe omits it)" in " ".join(out.split())


def test_help_of_a_section_and_of_an_unknown_one(capsys):
    code, out, _ = said(capsys, "train", "--help", "optimizer")
    assert code == 0
    assert "optimizer.cooldown_samples INT|null" in out
    code, _, err = said(capsys, "train", "--help", "trian")
    assert code == 2
    assert "did you mean the section train?" in err


def test_an_override_before_help_or_after_it_changes_nothing(capsys):
    assert said(capsys, "train", "--help", "data.uri=x")[1].startswith("usage: python jobs/train.py")
    assert said(capsys, "evaluate", "run.name=demo", "--help")[1].startswith("usage: python jobs/evaluate.py")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--lr", "1e-3"), "--lr: keys are given as section.key=value; did you mean optimizer.learning_rate?"),
        (("--batch-size=32",), "did you mean train.global_batch_size?"),
        (("--train.seed=3",), "--train.seed=3: keys are given as section.key=value; write train.seed=VALUE"),
        (("--local-loss",), "not needed: "),
        (("--confg", "demo"), "--confg: did you mean --config?"),
    ],
)
def test_an_option_of_another_program_is_answered_with_our_key(capsys, words, answer):
    code, _, err = said(capsys, "train", *words)
    assert code == 2
    assert answer in err


def test_help_imports_neither_torch_nor_ray():
    code = "import sys, jobs.train as job\ntry: job.arguments().parse_args(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'ray') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
