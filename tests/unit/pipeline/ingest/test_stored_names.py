"""In one data set, source_NAME stands for one column."""

import pytest

from pipeline.dataset.manifest import commit
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from tests.unit.pipeline.ingest.test_plan import ROWS, plan, record_of, write

OURS = [row | {"alt": row["caption"]} for row in ROWS]
"""Rows whose column `caption` is not that of the captions, and is stored as source_caption."""
THEIRS = [{"url": row["url"], "alt": row["caption"], "source_caption": "mine"} for row in ROWS]
"""Rows with a column that is called so."""


@pytest.mark.parametrize(("first", "second"), [(OURS, THEIRS), (THEIRS, OURS)])
def test_two_columns_are_not_stored_under_one_name(tmp_path, first, second):
    output = tmp_path / "out"
    names = [next(name for name in rows[0] if name.endswith("caption")) for rows in (first, second)]
    for folder, rows in (("a", first), ("b", second)):
        write(tmp_path / folder / "t.csv", rows)
    message = f"b/t.csv: its column {names[1]} would be stored as source_caption, which stands for the column {names[0]} of "
    with pytest.raises(InputError, match=rf"{message}{tmp_path}/a/t\.csv; rename {names[1]}"):
        plan(f"{tmp_path}/*/t.csv", output, caption_column="alt", allow_copies=True)
    assert not output.exists() or not any(open_storage(str(output)).list("columns/"))
    planned = plan(tmp_path / "a" / "t.csv", output, caption_column="alt")
    commit(open_storage(str(output)), map(record_of, planned.partitions))
    with pytest.raises(InputError, match=rf"{message}other tables of the data set; rename {names[1]}"):
        plan(tmp_path / "b" / "t.csv", output, caption_column="alt", allow_copies=True)
    renamed = [{name if name == "alt" else name.replace("caption", "text"): row[name] for name in row} for row in second]
    write(tmp_path / "b" / "t.csv", renamed)
    assert plan(tmp_path / "b" / "t.csv", output, caption_column="alt", allow_copies=True).num_rows == 10, "the remedy works"


def test_a_data_set_of_an_earlier_release_grows_as_it_was(tmp_path):
    output = tmp_path / "out"
    table = write(tmp_path / "t.csv", THEIRS)
    commit(open_storage(str(output)), map(record_of, plan(table, output, caption_column="alt").partitions))
    open_storage(str(output)).delete("columns/source_caption")
    write(tmp_path / "t.csv", [*THEIRS, THEIRS[0]])
    assert plan(table, output, caption_column="alt").num_rows == 1
