"""The files that an input names are found, and what is left out is said."""

import pytest

from pipeline.errors import InputError
from pipeline.ingest.table_files import SUFFIXES, list_files, list_tables, tables_named


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("url,caption\nhttp://e.org/1.jpg,a dog\n")
    return str(path)


def test_a_file_a_folder_and_a_glob_name_tables(tmp_path):
    one, two = write(tmp_path / "a" / "1.csv"), write(tmp_path / "a" / "b" / "2.parquet")
    (tmp_path / "a" / "notes.txt").write_text("no table")
    assert list_tables(one) == [one]
    assert list_tables(str(tmp_path / "a")) == [one, two]
    assert list_tables(str(tmp_path / "a" / "*.csv")) == [one]
    assert list_tables(str(tmp_path / "a" / "*" / "*.parquet")) == [two]


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("_delta_log/0.json", "Delta Lake"),
        ("a/_delta_log/0.json", "Delta Lake"),
        (".hoodie/hoodie.properties", "Apache Hudi"),
        ("metadata/v1.metadata.json", "Apache Iceberg"),
    ],
)
def test_a_folder_that_also_holds_deleted_rows_is_refused(tmp_path, log, name):
    write(tmp_path / "part-0.parquet")
    (tmp_path / log).parent.mkdir(parents=True)
    (tmp_path / log).write_text("{}")
    with pytest.raises(InputError, match=f"is a table of {name}.*export its current version"):
        list_tables(str(tmp_path))


def test_a_linked_folder_that_is_not_followed_is_named(tmp_path, caplog):
    write(tmp_path / "in" / "t.csv")
    write(tmp_path / "elsewhere" / "u.csv")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    assert list_tables(str(tmp_path / "in")) == [str(tmp_path / "in" / "t.csv")]
    assert "skipped 1 folder that is only linked, and links are not followed: linked" in caplog.text


def test_a_path_with_brackets_is_a_path(tmp_path):
    table = write(tmp_path / "cats [v1]" / "t.csv")
    assert list_tables(table) == list_tables(str(tmp_path / "cats [v1]")) == [table]
    assert list_tables(str(tmp_path / "cats [[]v1]" / "*.csv")) == [table]


@pytest.mark.parametrize("name", ["none.parquet", "none/", "*.csv"])
def test_an_input_that_names_no_table_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"ingest\.input="):
        list_tables(str(tmp_path / name))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match="is not a supported file"):
        list_tables(str(tmp_path / "t.xlsx"))


def test_values_in_the_names_of_folders_are_said_to_become_no_columns(tmp_path, caplog):
    for language in ("en", "de"):
        write(tmp_path / f"lang={language}" / "part-0.parquet")
    assert len(list_tables(str(tmp_path))) == 2
    assert "the values in the names of folders (lang=...) become no columns; write them into the tables" in caplog.text


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.csv", ["0.csv"]),
        ("**/*.csv", ["0.csv", "a/1.csv", "a/b/2.csv"]),
        ("a/**", ["a/1.csv", "a/b/2.csv"]),
        ("**/b/*.csv", ["a/b/2.csv"]),
        ("*/*.csv", ["a/1.csv"]),
        ("a/**/[0-9].csv", ["a/1.csv", "a/b/2.csv"]),
        ("?.csv", ["0.csv"]),
    ],
)
def test_a_star_stays_within_a_folder_and_two_are_any_number_of_folders(tmp_path, glob, expected):
    for name in ("0.csv", "a/1.csv", "a/b/2.csv"):
        write(tmp_path / name)
    assert list_tables(f"{tmp_path}/{glob}") == [f"{tmp_path}/{name}" for name in expected]


def test_tables_further_down_than_a_star_reaches_are_named(tmp_path, caplog):
    write(tmp_path / "0.csv")
    write(tmp_path / "old" / "0.csv")
    list_tables(f"{tmp_path}/*.csv")
    assert "skipped 1 file that is further down, where * does not reach (** does): old/0.csv" in caplog.text


@pytest.mark.parametrize("pattern", ["", "/*.csv", "/**/*.csv"])
def test_a_table_that_is_a_link_to_nothing_is_refused(tmp_path, pattern):
    write(tmp_path / "in" / "0.csv")
    (tmp_path / "in" / "notes").symlink_to(tmp_path / "none")
    (tmp_path / "in" / ".1.csv").symlink_to(tmp_path / "none")
    assert len(list_tables(f"{tmp_path}/in{pattern}")) == 1
    (tmp_path / "in" / "1.csv").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match=r"in/1\.csv is a link to a file that is not there; fetch the file"):
        list_tables(f"{tmp_path}/in{pattern}")


@pytest.mark.parametrize(("pattern", "said"), [("in/*/t.csv", True), ("in/**", True), ("in/t.csv*", False)])
def test_a_linked_folder_that_a_glob_asks_for_is_named(tmp_path, caplog, pattern, said):
    write(tmp_path / "in" / "t.csv")
    write(tmp_path / "in" / "a" / "t.csv")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "in" / "a")
    list_tables(f"{tmp_path}/{pattern}")
    assert ("skipped 1 folder that is only linked, and links are not followed: b" in caplog.text) == said


@pytest.mark.parametrize("pattern", ["", "/**"])
def test_a_download_that_is_not_finished_is_named(tmp_path, pattern, caplog):
    for name in ("0.csv", "1.csv.part", "2.csv.crdownload", ".3.csv.swp", ".4.csv", "~5.csv.tmp"):
        write(tmp_path / "in" / name)
    if pattern:
        with pytest.raises(InputError, match="is not a supported file"):
            list_tables(f"{tmp_path}/in{pattern}")
        return
    assert list_tables(f"{tmp_path}/in") == [f"{tmp_path}/in/0.csv"]
    assert "skipped 5 files that are no tables: .3.csv.swp, .4.csv, 1.csv.part, ..." in caplog.text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{}/in", {"in/0.csv", "in/a/1.csv"}),
        ("{}/in/", {"in/0.csv", "in/a/1.csv"}),
        ("{}/in/0.csv", {"in/0.csv"}),
        ("{}/in/*.csv", {"in/0.csv"}),
        ("{}/in/**/*.csv", {"in/0.csv", "in/a/1.csv"}),
        ("{}/linked", {"in/0.csv", "in/a/1.csv"}),
        ("{}/i", set()),
        ("{}/in/0", set()),
        ("s3://bucket/t", {"s3://bucket/t/2.csv"}),
        ("s3://bucket/*/2.csv", {"s3://bucket/t/2.csv"}),
        ("s3://bucket/t/2.csv", {"s3://bucket/t/2.csv"}),
    ],
)
def test_tables_of_a_data_set_are_named_whether_or_not_they_are_there(tmp_path, pattern, expected):
    (tmp_path / "in").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    known = [f"{tmp_path}/in/0.csv", f"{tmp_path}/in/a/1.csv", "s3://bucket/t/2.csv"]
    found = tables_named(pattern.format(tmp_path), known)
    assert {address.removeprefix(f"{tmp_path}/") for address in found} == expected


def test_a_folder_of_ones_own_that_is_called_inputs_is_read(tmp_path):
    tables = [write(tmp_path / "inputs" / "t.csv"), write(tmp_path / "partitions" / "u.csv")]
    for folder in ("inputs", "partitions"):
        (tmp_path / folder / "meta.json").write_text("{}")
    assert list_tables(str(tmp_path)) == tables


@pytest.mark.parametrize(("suffixes", "what"), [(SUFFIXES, "no .parquet/"), ((".tar",), "no .tar; jobs/ingest")])
def test_a_folder_of_images_is_told_from_one_that_is_not_there(tmp_path, suffixes, what):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.JPG").touch()
    with pytest.raises(
        InputError, match=r"holds 3 images and .*(ingest\.captions_from=txt|makes a data set of images).*\(docs/pictures\.md\)"
    ) as caught:
        list_files(str(tmp_path / "pictures"), suffixes, "ingest.input")
    assert what in str(caught.value)
