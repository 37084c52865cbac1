"""A foreign or misspelled key is answered with the one that was meant."""

import re
from pathlib import Path

import pytest

from jobs.cli.config import key_names
from jobs.cli.job_keys import JOBS
from jobs.cli.suggestions import FOREIGN, WITHOUT_EQUIVALENT, WITHOUT_KEY, suggest

KEYS = list(key_names(inside_lists=True))
PAGE = (Path(__file__).parents[4] / "docs" / "coming-from.md").read_text(encoding="utf-8")


def rows_with_keys():
    """(their option, our keys) of the tables of docs/coming-from.md."""
    for option, here in re.findall(r"^\| `-{0,2}([a-z0-9_-]+)` \| ([^|]+) \|", PAGE, flags=re.MULTILINE):
        keys = re.findall(r"`([a-z_]+\.[a-z0-9_.]+)`", here)
        if keys:
            yield option.replace("-", "_"), keys


def test_every_key_of_the_table_exists_and_no_name_is_in_two_tables():
    assert {key for keys in FOREIGN.values() for key in keys} <= set(KEYS)
    names = [*FOREIGN, *WITHOUT_KEY, *WITHOUT_EQUIVALENT]
    assert len(names) == len(set(names))


def test_the_table_holds_every_option_that_the_page_translates():
    rows = list(rows_with_keys())
    assert len(rows) > 60
    exact = {key.rpartition(".")[2] for key in KEYS}
    for option, keys in rows:
        known = (
            FOREIGN[option] if option in FOREIGN else [key for key in KEYS if option in exact and key.endswith(f".{option}")]
        )
        assert set(keys) & set(known), option


def test_every_option_of_the_page_is_answered():
    options = re.findall(r"`(?:--)?([a-z0-9_-]+)`", "\n".join(re.findall(r"^\| (`[^|]+) \|", PAGE, flags=re.MULTILINE)))
    assert len(options) > 120
    assert [option for option in options if suggest(option, KEYS).startswith("the sections are")] == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.batch_size", "train.global_batch_size"),
        ("batch_size", "train.global_batch_size"),
        ("--batch-size", "train.global_batch_size"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("train.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("epochs", "train.num_epochs"),
        ("train_data", "data.uri or data.mixture"),
        ("ingest.image_size", "ingest.image.size_px"),
        ("ingest.timeout", "ingest.fetch.total_timeout_s or ingest.fetch.read_timeout_s"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("ingest.resize_mode", "ingest.image.resize_mode"),
        ("train.global_batch_sise", "train.global_batch_size"),
        ("train.sed", "train.seed"),
        ("ingest.fetch.atempts", "ingest.fetch.attempts"),
        ("data.mixture.0.wieght", "data.mixture.weight"),
        ("trian", "the section train"),
    ],
)
def test_a_name_is_answered_with_what_was_meant(typed, meant):
    assert suggest(typed, KEYS) == f"did you mean {meant}?"


@pytest.mark.parametrize("section", ["train", "optimizer", "data", "ingest", "evaluation"])
def test_a_foreign_name_behind_a_section_of_ours_gives_only_keys_of_the_table(section):
    for name, meant in FOREIGN.items():
        answer = suggest(f"{section}.{name}", KEYS)
        assert set(re.findall(r"[a-z_]+\.[a-z0-9_.]+[a-z0-9_]", answer)) <= set(meant), name


def test_what_is_not_near_is_answered_with_the_sections_keys_and_not_with_a_guess():
    assert "did you mean" not in suggest("train.colour", KEYS)
    assert suggest("optimizer.foo", KEYS).startswith("optimizer has learning_rate, weight_decay, ")
    assert "fetch.*, image.*, caption.*" in suggest("ingest.foo", KEYS)
    assert suggest("oops", KEYS).startswith("the sections are run, model, data, ")
    assert suggest("oops", KEYS, JOBS["index"].select(KEYS)) == "the sections are index, cluster"


@pytest.mark.parametrize(
    ("job", "typed", "meant"),
    [
        ("evaluate", "batch_size", "evaluation.batch_size"),
        ("embed", "batch_size", "embed.batch_size"),
        ("train", "batch_size", "train.global_batch_size"),
        ("ingest", "image_size", "ingest.image.size_px"),
        ("train", "image_size", "model.image_size_px"),
        ("curate", "seed", "curate.seed"),
    ],
)
def test_of_several_keys_the_one_that_the_job_uses_is_meant(job, typed, meant):
    assert suggest(typed, KEYS, JOBS[job].select(KEYS)) == f"did you mean {meant}?"


def test_an_option_that_is_always_on_here_is_not_guessed_at():
    assert suggest("--local-loss", KEYS).startswith("not needed: ")
    assert suggest("--train.seed", KEYS) == "write train.seed=VALUE"
