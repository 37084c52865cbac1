"""A section in a process of its own: every way in which it can end leaves an outcome, and what it had measured."""

import json
import os
import time

import pytest

from jobs.qualification.guarded import START, read_outcome, run_guarded
from jobs.qualification.scale import Scale
from tests.support.odd_sections import odd_section

TINY = Scale("cpu", tiny=True)


def test_figures_of_a_section_are_in_its_file(tmp_path):
    found = run_guarded(odd_section("works"), TINY, tmp_path, 60)
    assert (found.status, found.card, found.tiny) == ("done", "cpu", True)
    row = json.loads((tmp_path / "works.json").read_text())
    assert row["figures"][0] | {"aim": None} == {"name": "size", "value": 1, "unit": "", "aim": None, "verdict": "met"}
    assert read_outcome(tmp_path, "works") == found
    assert (tmp_path / "works.log").read_text() == "said on the way\n"


def test_a_process_that_starts_as_those_on_cuda_do_works_too(tmp_path, monkeypatch):
    monkeypatch.setitem(START, "cpu", START["cuda"])
    assert run_guarded(odd_section("works"), TINY, tmp_path, 60).status == "done"


def test_an_exception_is_the_outcome_with_its_traceback_and_the_last_output(tmp_path):
    found = run_guarded(odd_section("raises"), TINY, tmp_path, 60)
    assert (found.status, found.reason) == ("failed", "ValueError: a bad value")
    assert "odd_sections.py" in found.traceback
    assert found.log == "said before the end\n"
    assert [figure.name for figure in found.figures] == ["before"]


def test_a_crash_of_the_process_keeps_the_figures_before_it(tmp_path):
    found = run_guarded(odd_section("crashes"), TINY, tmp_path, 60)
    assert (found.status, found.reason) == ("died", "exit code -6")
    assert [figure.name for figure in found.figures] == ["before"]


def test_a_section_that_hangs_is_ended_with_its_children(tmp_path):
    began = time.monotonic()
    found = run_guarded(odd_section("hangs"), TINY, tmp_path, 8)
    assert time.monotonic() - began < 30
    assert (found.status, found.reason) == ("timed out", "after 8 s")
    (child,) = found.figures
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        _check_lives(int(child.value))


@pytest.mark.parametrize(
    ("place", "status", "reason"),
    [
        ("lacks_pytest", "skipped", "ModuleNotFoundError: No module named 'pytest'"),
        ("lacks_one_of_ours", "failed", "ModuleNotFoundError: No module named 'training.gone'"),
        ("does_not_apply", "skipped", "no such card"),
    ],
)
def test_only_a_stated_reason_or_an_optional_package_skips(tmp_path, place, status, reason):
    found = run_guarded(odd_section(place), TINY, tmp_path, 60)
    assert (found.status, found.reason) == (status, reason)


def test_a_section_that_never_ran_has_no_outcome(tmp_path):
    assert read_outcome(tmp_path, "works") is None


def _check_lives(pid):
    """Raises ProcessLookupError for a process that is gone, or has ended and was not waited for."""
    with open(f"/proc/{pid}/stat") if os.path.exists(f"/proc/{pid}/stat") else _gone() as file:  # noqa: PTH110, PTH123
        if file.read().split()[2] == "Z":
            raise ProcessLookupError


def _gone():
    raise ProcessLookupError
