"""The terminal shows what workers say, but none of their tracebacks."""

from jobs.cli.worker_lines import WorkerLines

TRACEBACK = [
    "Error in training function:",
    "Traceback (most recent call last):",
    '  File "a.py", line 1, in work',
    "    fail()",
    "    ^^^^^^",
    "OSError: [Errno 28] No space left on device",
    "",
    "The above exception was the direct cause of the following exception:",
    "",
    "Traceback (most recent call last):",
    '  File "a.py", line 3, in work',
    "CheckpointError: it was not written",
]
SNIPPET = [
    "Error: failed",
    "[Rank 0 Error Snippet]:",
    '  File "/r...',
    "... (Output truncated.",
    'er.py", line 3, in _save',
    "go",
]


def test_of_a_traceback_the_line_that_names_the_error_is_shown_and_all_is_kept():
    lines = WorkerLines()
    shown = lines.to_print("w", ["step 1", *TRACEBACK, "step 2"])
    assert [line for line in shown if line.startswith(" ") or "Traceback" in line] == []
    assert shown[:2] == ["step 1", "Error in training function:"]
    assert shown[-2:] == ["CheckpointError: it was not written", "step 2"]
    assert all(f"(w) {line}" in lines.tracebacks() for line in TRACEBACK[1:6])
    assert lines.to_print("w", SNIPPET) == ["Error: failed", "go"]


def test_tracebacks_of_two_processes_may_arrive_in_pieces_and_mixed():
    lines = WorkerLines()
    assert lines.to_print("a", TRACEBACK[1:3]) == []
    assert lines.to_print("b", ["step 7"]) == ["step 7"]
    assert lines.to_print("a", TRACEBACK[3:6]) == [TRACEBACK[5]]


def test_nothing_is_printed_once_it_is_closed_but_tracebacks_are_kept():
    lines = WorkerLines()
    lines.close()
    assert lines.to_print("a", ["step 1", *TRACEBACK]) == []
    assert "CheckpointError" in lines.tracebacks()
