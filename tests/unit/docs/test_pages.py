"""Pages by task, decisions and infra/README.md: commands, keys, paths and links exist."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.config import key_names, load_config, recipe_names
from tests.support.pages import ROOT, anchors, broken_links, commands, next_hop, overrides, quoted, recipe

TASKS = ("ingest", "train", "finetune", "evaluate", "use", "search", "pictures")
PAGES = [
    ROOT / "infra" / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "LOG.md"),
]
KEYS = set(key_names())
NOT_KEYS = {"train.sbatch", "cluster.yaml", "run.use_artifact"}
"""Files, and a method of W&B, that look like keys."""
SECTIONS = {key.split(".")[0] for key in KEYS}
COMMANDS = [(task, line) for task in TASKS for line in commands((ROOT / "docs" / f"{task}.md").read_text(encoding="utf-8"))]


def relative(path):
    return str(path.relative_to(ROOT)) if hasattr(path, "relative_to") else str(path)[:70]


def test_pages_of_every_kind_are_tested():
    assert len(PAGES) >= 24
    assert {task for task, _ in COMMANDS} == set(TASKS)
    assert len(COMMANDS) >= 30


def test_the_list_of_decisions_holds_each_with_its_title():
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8").splitlines()
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix(f"# {path.name[:4]}: ")
        assert f"- [{path.name[:4]}]({path.name}): {title}" in listed


@pytest.mark.soak
def test_the_site_is_built_with_a_page_for_each_of_ours_and_one_of_the_interface(tmp_path):
    done = subprocess.run(["make", f"VENV={Path(sys.prefix)}", "docs"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "build" / "site"
    for path in PAGES:
        place = path.relative_to(ROOT).with_suffix("")
        assert (site / place.parent / ("" if path.name == "README.md" else path.stem) / "index.html").is_file(), path
    assert "contrastive_loss" in (site / "api" / "index.html").read_text(encoding="utf-8")
    assert (site / "search" / "search_index.json").is_file()


@pytest.mark.parametrize(("task", "line"), COMMANDS, ids=relative)
def test_a_command_has_options_a_recipe_and_keys_that_exist(task, line):
    match = re.match(r"python jobs/(\w+)\.py (.*)", line)
    assert match, "a command of these pages is a job"
    options = importlib.import_module(f"jobs.{match.group(1)}").arguments().parse_intermixed_args(shlex.split(match.group(2)))
    assert options.config == recipe(line)
    assert options.config in recipe_names()
    assert sorted(options.overrides) == sorted(overrides(line))
    load_config(options.config, options.overrides)


@pytest.mark.parametrize("job", sorted({line.split()[1].removeprefix("jobs/").removesuffix(".py") for _, line in COMMANDS}))
def test_every_job_that_is_shown_answers_help(job, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"jobs.{job}").arguments().parse_args(["--help"])
    assert ended.value.code == 0
    assert f"jobs/{job}.py" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_a_page_by_task_has_commands_before_keys_before_remedies(task):
    text = (ROOT / "docs" / f"{task}.md").read_text(encoding="utf-8")
    places = [text.index(part) for part in ("```\npython jobs/", "## Keys that matter", "## When something fails")]
    assert places == sorted(places)
    assert len(text.splitlines()) <= 90


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_leads_somewhere(page):
    assert not broken_links(page)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_module_and_page_in_backticks_exists(page):
    """Paths with a folder of the repository in front; others (`hf/`, `manifests/`) belong to data sets and runs."""
    rooms = "pipeline|model|training|jobs|infra|docs|tests"
    named = [text for text in quoted(page.read_text(encoding="utf-8")) if re.fullmatch(rf"(?:{rooms})/[\w./-]*", text)]
    assert not [text for text in named if not (ROOT / text).exists()]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_key_in_backticks_exists(page):
    text = page.read_text(encoding="utf-8")
    named = [re.match(rf"((?:{'|'.join(SECTIONS)})\.[a-z_0-9.]+)(?:=.*)?$", one) for one in quoted(text)]
    keys = {match.group(1) for match in named if match} - NOT_KEYS
    assert not {key for key in keys if key not in KEYS and not any(one.startswith(f"{key}.") for one in KEYS)}


def test_broken_links_and_anchors_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with marks\n[a](#a-title-with-marks) [b](#none) [c](page.md#a-title-with-marks) [d](other.md)\n"
    )
    assert broken_links(page) == ["#none", "other.md"]
    assert anchors("## One two\n```\n# no heading\n```\n") == {"one-two"}


def test_commands_are_found_without_their_comments():
    text = "```\nmake x    # why\n# a comment alone\n```\n```text\nseen\n```\n```sh\nlast 'a#b'\n```\n"
    assert commands(text) == ["make x", "last 'a#b'"]


def test_a_docstring_names_the_next_hop():
    assert ROOT / "training" / "data" / "sample_order.py" in next_hop(ROOT / "training" / "trainer.py")
