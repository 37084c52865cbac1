"""Help on keys: name, type, default and docstring, wrapped to the terminal."""

import pytest

from jobs.cli.config import key_names
from jobs.cli.job_keys import JOBS
from jobs.cli.key_help import Key, all_keys, first_page, keys_with_recipe, pages, reflow

KEYS = {key.name: key for key in all_keys()}


def test_every_key_of_the_tree_is_described():
    assert set(key_names()) <= set(KEYS)
    assert not [name for name, key in KEYS.items() if not key.docs]


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("train.seed", "INT", "0"),
        ("train.precision", "auto|float32|bfloat16|float16", "auto"),
        ("train.micro_batch_size", "INT|auto|null", "null"),
        ("optimizer.eps", "FLOAT", "1.0e-06"),
        ("data.uri", "TEXT", '""'),
        ("data.captions", "[TEXT, ...]", "[caption]"),
        ("data.mixture", "[{uri, version, weight}, ...]", "[]"),
        ("data.mixture[n].uri", "TEXT", None),
        ("cluster.num_workers", "INT|[INT, INT]", "1"),
        ("cluster.use_gpu", "true|false|auto", "auto"),
        ("cluster.runtime_env", "{NAME: VALUE, ...}", "{}"),
        ("evaluation.zero_shot.uri", "TEXT", None),
    ],
)
def test_types_and_defaults_are_written_as_a_person_types_them(name, kind, default):
    assert (KEYS[name].kind, KEYS[name].default) == (kind, default)


def test_the_summary_is_the_first_sentence():
    assert Key("a", "INT", "0", "Read e.g. this. And that.").summary == "Read e.g. this."
    assert Key("a", "INT", "0", "No full stop").summary == "No full stop"


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("width", [60, 80, 118])
def test_no_line_is_wider_than_the_terminal(job, width):
    texts = [first_page(job, width), *(pages(section, job, width) for section in JOBS[job].sections)]
    assert max(len(line) for text in texts for line in text.splitlines()) <= width


def test_a_section_page_has_the_jobs_own_keys_and_says_where_the_others_are_used():
    ours = pages("train", "evaluate", 100)
    assert "train.device" in ours
    assert "train.seed" not in ours
    assert "jobs/train.py" in ours
    assert "train.seed" in pages("train", "train", 100)


def test_a_section_page_says_which_jobs_use_only_some_of_its_keys():
    text = " ".join(pages("cluster", "train", 100).split())
    assert "(used by jobs/train.py, jobs/evaluate.py, jobs/demo.py; only cluster.runtime_env by jobs/ingest.py, " in text
    text = " ".join(pages("cluster", "ingest", 100).split())
    assert (
        "(the keys that jobs/ingest.py uses; the whole section is used by jobs/train.py, jobs/evaluate.py, jobs/demo.py)"
        in text
    )
    assert "cluster.num_workers" not in text
    assert "(not used by jobs/index.py, but by jobs/embed.py)" in " ".join(pages("embed", "index", 100).split())


def test_a_key_that_the_recipe_sets_shows_its_value_before_the_default():
    known = {key.name: key for key in keys_with_recipe("default")}
    assert (known["optimizer.learning_rate"].in_recipe, known["optimizer.learning_rate"].default) == ("0.002", "0.0005")
    assert known["train.global_batch_size"].in_recipe is None, "the recipe repeats the default"
    assert known["optimizer.eps"].in_recipe is None
    assert {key.name for key in keys_with_recipe("demo") if key.in_recipe} >= {
        "ingest.image.size_px",
        "evaluation.zero_shot.uri",
    }


def test_a_page_may_be_asked_for_a_nested_section_a_key_and_everything():
    assert "evaluation.zero_shot.templates" in pages("evaluation.zero_shot", "train", 100)
    assert pages("train.seed", "train", 100).lstrip().startswith("train.seed INT")
    everything = pages("all", "train", 100)
    assert all(f"  {name} " in everything for name in key_names())
    assert pages("nothing", "train", 100) is None


def test_a_docstring_is_wrapped_with_remarks_above_commands_that_fill_the_line():
    text = "Trains.\n\n    python jobs/train.py --config demo     on this machine\n\nA paragraph\nof two lines."
    assert reflow(text, 100) == text.replace("paragraph\nof", "paragraph of")
    assert reflow(text, 50).splitlines()[2:4] == ["    # on this machine", "    python jobs/train.py --config demo"]
