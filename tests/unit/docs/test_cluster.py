"""docs/cluster.md matches the code: commands, options, keys, paths, links, messages, and computed figures."""

import ast
import importlib
import math
import os
import re
import shlex
import subprocess
import time
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from jobs.cli.config import key_names, load_config, recipe_names
from model.clip import CLIP
from model.config import get_architecture
from pipeline.errors import ConfigError
from tests.support.deploy_checks import PLACEHOLDER, filled_in, load_all
from tests.support.walkthrough import Shell, section, steps, unseen
from training.data.data_sets import block_size_samples, check_prefetch
from training.data.order_layout import Source
from training.data.sample_order import SampleOrder
from training.distributed import slice_bounds
from training.run_plan import plan_schedule

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
INFRA = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")
LINES = [line for step in steps(PAGE) for line in step.typed]
CRON = [line for block in re.findall(r"^```cron\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
ROWS = [re.split(r" \| ", line.strip("| ")) for line in section(PAGE, "Runbook").splitlines() if line.startswith("| ")][1:]
PROSE = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
QUOTED = re.findall(r"`([^`\n]+)`", PROSE)


def of_jobs(lines):
    """Return (job's name, its arguments) for every command that calls a job."""
    found = []
    for line in lines:
        match = re.search(r"(?:python (?:/opt/rayclip/)?jobs/(?!submit)(\w+)\.py|(train)\.sbatch)(.*)", filled_in(line))
        if match and "--help" not in line:
            tail = re.split(r"\"? \| ", match.group(3))[0]
            within = tail.count("'") % 2 or tail.count('"') % 2  # the closing quote around the command
            found.append((match.group(1) or match.group(2), shlex.split(tail[:-1] if within else tail)))
    return found


COMMANDS = of_jobs([*LINES, *CRON, *(text for text in QUOTED if text.startswith("python jobs/"))])


@pytest.mark.parametrize(
    ("job", "words"), COMMANDS, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else value
)
def test_a_jobs_command_has_options_a_recipe_and_keys_that_exist(job, words):
    module = importlib.import_module(f"jobs.{job}")
    options = module.arguments().parse_intermixed_args(words)
    assert options.config in recipe_names()
    config = load_config(options.config, options.overrides)
    if job == "train":
        assert plan_schedule(config, steps_per_epoch=1000).total_steps > 1


def test_submissions_have_options_that_exist():
    from jobs.submit import _arguments

    submitted = [line for line in [*LINES, *CRON] if "jobs/submit.py" in line]
    assert len(submitted) >= 12
    for line in submitted:
        words = line.partition("jobs/submit.py ")[2].partition("-- ")[0].split()
        assert _arguments().parse_args([*words, "--", "python"]).entrypoint == ["python"]


def test_ingestions_request_the_workers_that_the_deploy_files_have():
    for title, path in (("AWS", "aws/cluster.yaml"), ("Kubernetes", "kuberay/cronjob-ingest.yaml")):
        typed = set(re.findall(r"ingest\.num_workers=(\d+)", section(PAGE, title)))
        assert typed == set(re.findall(r"ingest\.num_workers=(\d+)", (ROOT / "infra" / path).read_text(encoding="utf-8")))


def test_commands_of_every_kind_were_found():
    assert {job for job, _ in COMMANDS} == {"demo", "ingest", "train", "evaluate", "export", "report", "embed"}
    assert len(COMMANDS) >= 25
    assert len(CRON) == 2


def test_every_ray_command_has_the_options_that_the_page_gives_it():
    from ray.scripts.scripts import cli

    given = [line for line in LINES if re.search(r"\bray [a-z]", line)] + [text for text in QUOTED if text.startswith("ray ")]
    assert len(given) > 30
    for line in given:
        words, command = re.split(r"[|>&)]|(?<= )-- ", line[re.search(r"\bray [a-z]", line).start() :])[0].split()[1:], cli
        while hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def test_every_line_is_a_command_that_bash_understands():
    result = subprocess.run(["bash", "-n"], input="\n".join(LINES), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not [line for line in LINES if line.endswith("\\") or "<<" in line], "a command is one line"


def test_output_that_is_missing_or_out_of_order_is_noticed():
    seen = ("version 1: ... samples", "...done")
    assert unseen(seen, "\x1b[1m  version 1: 80 samples\x1b[0m\nmore\nall done\n") is None
    assert unseen(seen, "version 2: 80 samples\nall done") == seen[0]
    assert unseen(seen, "all done\nversion 1: 80 samples") == seen[1], "it came before"
    page = "\n## One\n```sh\ntype\nthis\n```\n```text\nsee\n```\n```sh\nthat\n```\n## Two\n```sh\nno\n```\n"
    found = [(step.typed, step.seen) for step in steps(section(page, "One"))]
    assert found == [(("type", "this"), ("see",)), (("that",), ())]


def test_a_shell_gives_exit_codes_and_output_and_leaves_nothing_behind(tmp_path):
    shell = Shell(tmp_path, dict(os.environ), tmp_path / "log")
    try:
        assert shell.type("word=before; sleep 600 & false", 20) == (1, "")
        assert shell.type("echo $word; echo error >&2; (exit 3)", 20) == (3, "before\nerror\n")
        deadline = time.monotonic() + 20
        while list(shell.children().values()) != ["sleep 600 "]:  # until then it is still a bash
            assert time.monotonic() < deadline, shell.children()
        with pytest.raises(AssertionError, match="still at: sleep 30"):
            shell.type("sleep 30", 0.2)
    finally:
        shell.close()
    assert shell.children() == {}


def test_every_path_and_link_leads_somewhere():
    made = ("walk/", "~/", "/", "exports/", "data", "pairs/", "runs/", "features/", "tables/", "metrics.jsonl", "report.html")
    keys = set(key_names())
    for text in QUOTED:
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[\w-]+\.(md|yaml|py|json|sh|sbatch)", text) and not text.startswith(made):
            assert (ROOT / text).exists(), text
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        text = (ROOT / "docs" / path).read_text(encoding="utf-8") if path else PAGE
        headings = [
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.splitlines() if line[:1] == "#"
        ]
        assert not anchor or anchor in headings, target
    for text in QUOTED:
        key = re.match(
            r"((?:run|model|data|train|optimizer|checkpoint|tracking|evaluation|cluster|ingest|embed)\.[a-z_.]+)", text
        )
        if key and not text.startswith("train.sbatch"):
            assert key.group(1) in keys, text


def test_the_readme_links_the_page_and_its_introduction_links_every_section():
    assert "docs/cluster.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert titles == ["One machine", "AWS", "Kubernetes", "SLURM", "Submission", "What really ran", "Sizing", "Runbook"]
    introduction = PAGE.split("\n## ")[0]
    assert all(f"(#{title.lower().replace(' ', '-')})" in introduction for title in titles)


def test_every_placeholder_is_explained_where_the_deploy_files_are():
    explained = set(PLACEHOLDER.findall(INFRA))
    assert set(PLACEHOLDER.findall(PAGE)) - {"YOUR_FOLDER"} <= explained


def test_objects_of_kubernetes_have_the_names_that_are_typed():
    folder = ROOT / "infra" / "kuberay"
    documents = [one for path in folder.glob("*.yaml") for one in load_all(filled_in(path.read_text(encoding="utf-8")))]
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in documents}
    typed = "\n".join(line for line in LINES if line.startswith("kubectl"))
    found = set(re.findall(r"\b((?:raycluster|rayjob|cronjob)[ /]rayclip[\w-]*)", typed))
    assert len(found) == 3
    assert {name.replace(" ", "/") for name in found} <= names
    assert set(re.findall(r"service/(\S+)-head-svc", typed)) == {"rayclip"}


# ------------------------------------------------------------------------------------------------------------- the runbook


@lru_cache
def said_in(folders):
    """Return every string in the code of some folders, with NUL in place of each inserted value."""
    found = []
    for path in (path for folder in folders for path in Path(folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[sdf]", "\0", node.value))
    return found


def is_said(message, folders):
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in said_in(folders))


OURS = tuple(str(ROOT / room) for room in ("pipeline", "model", "training", "jobs"))
RAYS = tuple(
    str(Path(importlib.util.find_spec("ray").origin).parent / part)
    for part in ("_private/authentication", "dashboard/modules/job")
)
MESSAGES = [(row[0].startswith("Ray: "), message) for row in ROWS for message in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize(("of_ray", "message"), MESSAGES, ids=lambda value: str(value)[:50])
def test_a_message_of_the_runbook_exists_in_the_code(of_ray, message):
    assert is_said(message, RAYS if of_ray else OURS)


def test_a_message_that_no_code_has_is_noticed():
    assert not is_said("the disk is full of joy", OURS)
    assert not is_said("step ...: loss or gradient is a number", OURS)
    assert not is_said("a node of this run will be removed in ... h: saving a checkpoint", OURS)


def test_the_runbook_has_a_cause_and_a_remedy_for_each_of_many_symptoms():
    assert len(ROWS) >= 30
    assert all(len(row) == 3 and all(row) for row in ROWS), [row for row in ROWS if len(row) != 3]
    assert len(MESSAGES) >= 25


# --------------------------------------------------------------------------------------------------------------- the sizes


SIZING = " ".join(section(PAGE, "Sizing").split())
GLOBAL_BATCH, WORKERS, SAMPLE_BYTES, PER_GPU = 32_768, 8, 41_000, 7_000


def needed_gb(workers):
    """Return what the code requires before a rank reads: the blocks of ViT-B/32's recipe, in GB."""
    data = load_config("vit_b_32").data.model_copy(update={"prefetch_bytes": 1})
    block = block_size_samples(data, GLOBAL_BATCH)
    order = SampleOrder((Source((10_000,) * 400, 1.0),), 0, GLOBAL_BATCH, data.num_streams, block)
    start, stop = slice_bounds(GLOBAL_BATCH, 0, workers)
    with pytest.raises(ConfigError) as refused:
        check_prefetch(data, order, SAMPLE_BYTES, stop - start)
    return int(re.search(r"less than the (\d+) bytes", str(refused.value)).group(1)) / 1e9


def test_memory_for_the_order_is_what_the_code_requires():
    rows = [
        [cell.strip() for cell in line.strip(" |").split("|")] for line in section(PAGE, "Sizing").splitlines() if "|" in line
    ]
    table = dict(zip(rows[0][1:], rows[2][1:], strict=True))
    assert len(table) == 5
    assert {workers: f"{needed_gb(int(workers)):.1f}" for workers in table} == table
    recipe = load_config("vit_b_32").data
    assert needed_gb(7) * 1e9 <= recipe.prefetch_bytes < needed_gb(6) * 1e9
    assert "6 GiB are enough from 7 workers on" in SIZING
    given = {int(size) for size in re.findall(r"data\.prefetch_bytes=(\d{6,})", PAGE)}
    assert given == {48_000_000_000}
    assert needed_gb(1) * 1e9 < 48_000_000_000


def test_network_checkpoints_and_decoding_of_the_example_follow_from_the_model_and_its_recipe():
    with torch.device("meta"):
        parameters = sum(one.numel() for one in CLIP(get_architecture("ViT-B/32")).parameters())
        large = sum(one.numel() for one in CLIP(get_architecture("ViT-L/14")).parameters())
    recipe = load_config("vit_b_32")
    assert recipe.train.global_batch_size == GLOBAL_BATCH
    features, gradients = 4 * GLOBAL_BATCH * get_architecture("ViT-B/32").embed_dim * 4, 2 * parameters * 4
    step_s = GLOBAL_BATCH / (WORKERS * PER_GPU)
    rate = (features + gradients) / step_s
    images = GLOBAL_BATCH // WORKERS * 3 * get_architecture("ViT-B/32").image_size_px ** 2
    blocks, decoded, copy = (
        1.24 * needed_gb(WORKERS),
        (2 * recipe.data.prefetch_batches + 2) * images / 1e9,
        parameters * 12 / 1e9,
    )
    expected = [
        f"{features / 1e6:.0f} MB",
        f"{parameters:,} parameters, {gradients / 1e6:,.0f} MB",
        f"= {step_s:.1f} s, so {rate / 1e9:.2f} GB/s, {rate * 8 / 1e9:.1f} Gbit/s per worker",
        f"= {WORKERS * PER_GPU * SAMPLE_BYTES / 1e6:.0f} MB/s, {WORKERS * PER_GPU * SAMPLE_BYTES * 8 / 1e9:.1f} Gbit/s",
        f"{parameters * 12 / 1e9:.1f} GB for ViT-B/32, {large * 12 / 1e9:.1f} GB for ViT-L/14",
        f"{blocks:.1f} + {decoded:.1f} + 1.1 + 3 x 0.35 + {copy:.1f} = {blocks + decoded + 1.1 + 1.05 + copy:.1f} GB",
        f"for four on a node {4 * (blocks + decoded + 1.1 + 1.05) + copy:.0f} GB",
        f"3 of them here {2 * WORKERS / recipe.data.num_streams:.0%}",
        f"= {PER_GPU * 0.67e-3:.1f}, so 6 CPUs per GPU; at 512 px {PER_GPU * 1.87e-3:.1f}, so 15",
        f"feed {10 / 0.67e-3:,.0f} samples/s",
        f"costs {0.39 / 600:.2%} of the time",
    ]
    missing = [text for text in expected if text not in SIZING]
    assert not missing


def test_the_example_of_ingestion_follows_from_its_settings():
    fetch = load_config("default").ingest.fetch
    a_cpu, answers = math.floor(1000 / 2.87 / 10) * 10 + 10, fetch.concurrency / 0.5
    rate = min(a_cpu, answers) * 64
    assert f"`ingest.fetch.concurrency`={fetch.concurrency}" in SIZING
    assert f"{fetch.host_concurrency} to one host" in SIZING
    assert f"min({a_cpu:.0f}, {answers:.0f}) x 64 = {rate:,.0f} per second, {12e6 / rate / 60:.0f} minutes" in SIZING
    assert f"{rate * 78e3 / 1e9:.2f} GB/s" in SIZING


@pytest.mark.parametrize("figure", ["0.60", "1.71"])
def test_figures_of_decoding_are_those_of_the_decision(figure):
    assert figure in (ROOT / "docs" / "decisions" / "0004-decoding.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("figure", ["87%", "2.87", "2.17", "0.39 s", "396", "78 kB", "41 kB", "12.4", "1.1%"])
def test_other_figures_are_in_the_log(figure):
    assert figure in (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8")


def test_commands_write_only_where_the_nodes_may_write():
    written = [
        word for _, words in COMMANDS for word in words if re.match(r"(ingest|embed)\.output=s3|--output s3|run\.dir=s3", word)
    ]
    assert written
    allowed = re.findall(r"bucket/(\w+)/", filled_in((ROOT / "infra" / "aws" / "iam-policy.json").read_text(encoding="utf-8")))
    assert {word.partition("s3://bucket/")[2].split("/")[0] for word in written} <= set(allowed)
