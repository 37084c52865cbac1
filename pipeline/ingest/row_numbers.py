"""Names rows of a table for people, who count them from 1. Manifests, keys and code count from 0."""

from __future__ import annotations

COUNTED = "counted from 1, without a header"


def row_range(first_row: int, num_rows: int) -> str:
    """Names consecutive rows and says how they are counted.

    Args:
        first_row: counted from 0, as in a partition record.
    """
    rows = f"row {first_row + 1}" if num_rows == 1 else f"rows {first_row + 1} to {first_row + num_rows}"
    return f"{rows} ({COUNTED})"
