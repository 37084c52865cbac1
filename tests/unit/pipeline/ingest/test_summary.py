"""The text of a run's summary; tests/unit/jobs/test_ingest.py has it after whole runs."""

from pipeline.ingest.outcome import Held
from pipeline.ingest.summary import IngestSummary, _held_text


def test_a_summary_counts_rows_by_reason_with_successes_first():
    summary = IngestSummary("/data", 3, 0, {"http_404": 1, "success": 2, "timeout": 1}, 12, 2.0)
    lines = str(summary).splitlines()
    assert lines[0] == "4 rows in 2.0 s (2 a second)"
    assert [line.split()[0] for line in lines[1:4]] == ["success", "http_404", "timeout"]
    assert lines[-1] == "/data version 3: 12 samples"


def test_a_summary_says_when_there_was_nothing_to_do():
    assert str(IngestSummary("/data", 0, 0, {}, 0, 1.0)) == "nothing to do: the input has no rows yet"
    assert str(IngestSummary("/data", 2, 5, {}, 5, 1.0)) == "nothing to do: /data version 2 holds all 5 rows"
    assert "holds no row of the input, which has none yet" in str(IngestSummary("/data", 2, 0, {}, 5, 1.0))


def test_a_version_without_a_sample_says_so():
    assert str(IngestSummary("/data", 1, 0, {"dns": 5}, 0, 1.0)).splitlines()[-1] == (
        "/data version 1: 0 samples: there is nothing to train on"
    )
    again = IngestSummary("/data", 1, 5, {}, 0, 1.0, held_text=", of which 5 failed (dns 5)")
    assert str(again).splitlines() == [
        "nothing to do: /data version 1 holds all 5 rows, of which 5 failed (dns 5)",
        "/data version 1: 0 samples: there is nothing to train on",
    ]


def test_held_rows_without_a_sample_are_named_with_their_reasons():
    many = {"dns": 4, "timeout": 3, "http_404": 2, "decode": 1}
    assert _held_text(Held(9, 9, {}, True)) == ""
    assert _held_text(Held(20, 10, many, True)) == ", of which 10 failed (dns 4, timeout 3, http_404 2, ...)"
    assert _held_text(Held(9, 6, {"dns": 2, "too_small": 1}, False)) == (
        ", of which 2 failed, 1 dropped by a rule (dns 2, too_small 1)"
    )
    assert _held_text(Held(9, 8, {"too_small": 1}, False)) == ", of which 1 dropped by a rule (too_small 1)"
    assert _held_text(Held(9, 6, {}, True)) == ", of which 3 failed", "after a retry, records do not say which reasons are left"
    assert _held_text(Held(9, 6, {}, False)) == ", of which 3 failed, or dropped by a rule"
