"""docs/exit-codes.md has the exit codes that the code has."""

import re

from jobs.cli.command_line import EXIT_CODES, EXIT_DONE, EXIT_FAILED
from tests.support.kuberay_rules import FINAL
from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
OTHER_PAGES = ("cluster.md", "ingest.md", "train.md")


def test_the_table_has_each_code_with_the_meaning_that_the_code_gives_it():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES
    assert [int(code) for code, _ in rows] == sorted(EXIT_CODES)


def test_all_codes_but_done_and_try_again_are_final_for_kubernetes():
    assert set(FINAL) == set(EXIT_CODES) - {EXIT_DONE, EXIT_FAILED}
    named = re.search(r"^((?:\d+, )*\d+ and \d+) are final", PAGE, re.MULTILINE)
    assert [int(code) for code in re.findall(r"\d+", named[1])] == FINAL


def test_pages_link_to_the_one_table():
    for name in OTHER_PAGES:
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert "(exit-codes.md)" in text, name
        assert not re.search(r"0 done; 1 failed", text), name
