"""Rows count from 1 wherever a person reads their numbers."""

import pytest

from pipeline.ingest.row_numbers import row_range


@pytest.mark.parametrize(("first_row", "num_rows", "text"), [(0, 1, "row 1"), (0, 4, "rows 1 to 4"), (4, 4, "rows 5 to 8")])
def test_people_count_rows_from_1(first_row, num_rows, text):
    assert row_range(first_row, num_rows) == f"{text} (counted from 1, without a header)"
