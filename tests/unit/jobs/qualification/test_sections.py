"""The table of sections: each exists, has a name of its own, and is described in docs/gpu.md."""

import inspect
import re
from pathlib import Path

import pytest

from jobs.qualification.sections import SECTIONS

PAGE = (Path(__file__).parents[4] / "docs" / "gpu.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_section_is_a_generator_of_figures_with_a_time_limit(section):
    assert inspect.isgeneratorfunction(section.load())
    assert 0 < section.minutes <= 10


def test_names_are_different():
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)


def test_the_page_describes_each_section_in_their_order():
    described = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, flags=re.MULTILINE)
    assert described == [section.name for section in SECTIONS]
