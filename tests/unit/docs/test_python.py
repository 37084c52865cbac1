"""docs/python.md: every block runs, in the order of the page. Those that need Ray run in tests/system/test_python.py."""

import ast
import json
import re

import pandas as pd
import pytest

import rayclip
from tests.support.pages import ROOT
from tests.support.python_page import BLOCKS, NOTEBOOK, PAGE, make_place, needs_ray


def test_the_page_shows_every_public_name_and_is_short():
    assert len(PAGE.splitlines()) <= 90
    shown = set(re.findall(r"rayclip\.(\w+)", PAGE))
    results = {"Model", "Sample", "IngestSummary", "TrainResult"}
    assert shown - {"md"} == set(rayclip.__all__) - results
    assert len(BLOCKS) >= 5
    assert 0 < sum(map(needs_ray, BLOCKS)) < len(BLOCKS)


def test_the_blocks_run_in_the_order_of_the_page(data_set, tmp_path, monkeypatch):
    make_place(tmp_path, data_set)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in BLOCKS:
        if not needs_ray(block):
            exec(compile(block, "docs/python.md", "exec"), names)
    assert names["probabilities"].shape == (1, 2)
    assert names["cosines"].shape == (1, 2)
    assert len(names["loss_inputs"]) == 3


def test_the_block_of_the_first_page_runs(data_set, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    make_place(tmp_path, data_set)
    (tmp_path / "runs" / "mine").rename(tmp_path / "runs" / "vit_b_32")
    (tmp_path / "photos" / "a.jpg").rename(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert re.fullmatch(r"\[\[ ?-?0\.\d+ +-?0\.\d+\]\]\n", capsys.readouterr().out)


def test_the_split_of_the_page_on_pictures_gives_each_row_to_one_table(tmp_path, monkeypatch):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "pictures.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rows = [f"picture {number}.jpg,a caption" for number in range(300)]
    (tmp_path / "captions.csv").write_text("\n".join(["file,text", *rows]) + "\n")
    exec(compile(block, "docs/pictures.md", "exec"), {})
    first, second = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("pairs", "heldout"))
    assert (len(first), len(second)) == (241, 61)
    assert sorted([*first[1:], *second[1:]]) == sorted(rows)


def test_the_split_of_the_page_on_evaluation_shares_no_image(tmp_path, monkeypatch):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "evaluate.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    urls = [f"https://e.org/{number % 6000}.jpg" for number in range(7000)]
    pd.DataFrame({"url": urls, "caption": "a"}).to_parquet("all.parquet")
    exec(compile(block, "docs/evaluate.md", "exec"), {})
    pairs, heldout = (set(pd.read_parquet(f"{name}.parquet")["url"]) for name in ("pairs", "heldout"))
    assert (len(pairs), len(heldout), pairs & heldout) == (1000, 5000, set())


@pytest.mark.parametrize("cell", NOTEBOOK["cells"], ids=lambda cell: cell["id"])
def test_a_cell_of_the_notebook_is_code_that_parses_or_text_and_stores_no_output(cell):
    assert cell["cell_type"] in ("markdown", "code")
    assert cell["metadata"] == {}
    if cell["cell_type"] == "code":
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        ast.parse("".join(cell["source"]))


def test_the_notebook_is_of_a_format_that_jupyter_reads():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert json.dumps(NOTEBOOK)
