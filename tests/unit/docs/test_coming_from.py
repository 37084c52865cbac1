"""docs/coming-from.md lists every option of open_clip and img2dataset, and only keys that exist."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jobs.cli.config import key_names, load_config

TEXT = (Path(__file__).parents[3] / "docs" / "coming-from.md").read_text(encoding="utf-8")
PEERS = ("open_clip", "img2dataset")
KEY = re.compile(r"`([a-z_]+(?:\.[a-z0-9_]+)+)(?:=[^`]*)?`")


def table(peer):
    """Return [(their option, our key or verdict, remark)] of a peer's table."""
    begin = TEXT.index(f"| {peer} | here | remark |\n|---|---|---|\n")
    lines = TEXT[begin:].split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def source(module):
    """Parse an installed module without importing it: img2dataset's imports check for updates on the web."""
    package, _, name = module.partition(".")
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    return ast.walk(ast.parse((Path(folder) / f"{name}.py").read_text(encoding="utf-8")))


def options(peer):
    """Return the options of the peer's command, in its order."""
    if peer == "open_clip":
        calls = [node for node in source("open_clip_train.params") if isinstance(node, ast.Call)]
        return [call.args[0].value for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    functions = [node for node in source("img2dataset.main") if isinstance(node, ast.FunctionDef)]
    return [argument.arg for function in functions if function.name == "download" for argument in function.args.args]


@pytest.mark.parametrize("peer", PEERS)
def test_the_table_has_one_row_per_option_of_the_peer(peer):
    expected = options(peer)
    assert len(expected) > 30
    assert [row[0] for row in table(peer)] == [f"`{option}`" for option in expected]


@pytest.mark.parametrize("peer", PEERS)
def test_every_key_exists_and_a_missing_equivalent_is_explained(peer):
    known = set(key_names())
    for option, here, remark in table(peer):
        keys = KEY.findall(here)
        assert set(KEY.findall(remark)) <= known, option
        if keys:
            assert set(keys) <= known, option
            assert here == ", ".join(f"`{key}`" for key in keys), option
        else:
            assert here in ("not needed", "no equivalent"), option
            assert remark, option


def test_the_commands_that_replace_the_peers_are_valid():
    blocks = re.findall(r"^```\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("python jobs/")]
    assert len(commands) == 3
    for line in commands:
        words = shlex.split(line)[2:]
        recipe = words[words.index("--config") + 1] if "--config" in words else "default"
        load_config(recipe, [word for word in words if "=" in word])


def test_the_batch_of_the_example_is_the_peers_over_all_gpus():
    theirs = re.search(r"--nproc_per_node (\d+) .*?--batch-size (\d+)", TEXT, flags=re.DOTALL)
    ours = int(re.search(r"train\.global_batch_size=(\d+)", TEXT).group(1))
    assert ours == int(theirs.group(1)) * int(theirs.group(2))
