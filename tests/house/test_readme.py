"""The first page: short, with commands that work and links that lead to the heart of the code in three hops."""

import re
import subprocess
import sys

import pytest

from jobs.cli.config import key_names, load_config, recipe_names
from tests.support.pages import ROOT, broken_links, commands, links, overrides, quoted, reached, recipe

PAGE = ROOT / "README.md"
README = PAGE.read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = commands(README)
JOBS = sorted({word for line in COMMANDS for word in line.split() if word.startswith("jobs/")})
MAX_LINES, MAX_WORDS = 90, 900
TASKS = ("ingest", "train", "evaluate", "use", "cluster", "coming-from")

HEART = {
    "training/trainer.py": "def train(",
    "training/loss.py": "def contrastive_loss(",
    "pipeline/dataset/manifest.py": "class Manifest(",
    "pipeline/ingest/partition.py": "def ingest_partition(",
}
"""The training loop, the loss, the manifest with its commit, and what is committed exactly once: where each is defined."""


def test_it_is_short():
    assert len(README.splitlines()) <= MAX_LINES
    assert len(README.split()) <= MAX_WORDS


def test_the_first_screen_has_the_two_commands_the_installation_and_the_figures():
    assert COMMANDS[:2] == ["make demo", "make test"]
    first = "\n".join(README.splitlines()[:24])
    assert "`pip install -e .`" in first
    assert len(re.findall(r"^\|.*\*\*\d\.\d\dx\*\*", first, flags=re.MULTILINE)) == 3


def test_every_figure_beside_a_peer_is_in_the_log():
    log = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")
    rows = [line for line in README.splitlines() if re.search(r"\*\*\d\.\d\dx\*\*", line)]
    figures = {figure for row in rows for figure in re.findall(r"\d\.\d\dx|\d,\d{3}|\d\.\d\d(?= )", row)}
    assert len(figures) >= 9
    assert not {figure for figure in figures if figure not in log}


def test_make_targets_that_are_shown_exist():
    shown = set(re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#|$)", README + CONTRIBUTING, flags=re.MULTILINE))
    assert shown >= {"demo", "test", "check", "quick", "soak"}
    makefile = (ROOT / "Makefile").read_text()
    assert not [target for target in shown if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_link_and_every_path_in_backticks_exists(name):
    page = ROOT / name
    assert not broken_links(page)
    made_later = {".venv", ".venv/ministack", "metrics.jsonl", "report.html"}
    known = set(key_names()) | made_later
    named = [text for text in quoted(page.read_text(encoding="utf-8")) if re.fullmatch(r"[\w./-]*[./][\w./-]*", text)]
    assert not [text for text in named if text not in known and not (ROOT / text).exists()]


def test_every_job_that_is_shown_answers_help():
    assert len(JOBS) >= 4
    for job in JOBS:
        result = subprocess.run([sys.executable, job, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "usage" in result.stdout


@pytest.mark.parametrize("line", [line for line in COMMANDS if "jobs/" in line])
def test_the_recipe_and_every_key_of_a_command_exist(line):
    assert recipe(line) in recipe_names()
    load_config(recipe(line), overrides(line))


def test_four_commands_take_ones_own_data_from_a_table_to_an_export():
    assert JOBS == ["jobs/evaluate.py", "jobs/export.py", "jobs/ingest.py", "jobs/train.py"]


def test_every_page_by_task_is_linked():
    assert {f"docs/{task}.md" for task in TASKS} <= set(links(README))


def test_the_image_has_a_caption_that_says_what_it_shows():
    text, caption = re.search(r"!\[([^\]]+)\]\(docs/report\.png\)\n\n\*([^*]+)\*", README).groups()
    assert len(text.split()) > 10
    assert all(word in caption for word in ("curves", "accuracy", "captions", "OpenMoji", "CC BY-SA 4.0"))


def test_the_tour_links_six_files():
    tour = README.split("## A tour in six files")[1].split("\n## ")[0]
    files = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \|", tour, flags=re.MULTILINE)
    assert len(files) == 6
    assert all(name == target and (ROOT / target).is_file() for name, target in files)


def test_the_heart_of_the_code_is_three_hops_from_the_readme():
    found = reached([PAGE], hops=3)
    for path, definition in HEART.items():
        assert ROOT / path in found, path
        assert definition in (ROOT / path).read_text(encoding="utf-8")
    assert "def commit(" in (ROOT / "pipeline/dataset/manifest.py").read_text(encoding="utf-8")


def test_a_hop_is_a_link_or_a_path_that_is_named():
    assert reached([PAGE], hops=0) == {PAGE}
    assert ROOT / "training/trainer.py" in reached([PAGE], hops=1)
    assert ROOT / "pipeline/dataset/manifest.py" not in reached([PAGE], hops=1), "README links the format, not the module"
    assert ROOT / "pipeline/dataset/manifest.py" in reached([ROOT / "docs/decisions/0001-manifest.md"], hops=1)
    assert ROOT / "training/data/sample_order.py" in reached([ROOT / "training/trainer.py"], hops=1)
