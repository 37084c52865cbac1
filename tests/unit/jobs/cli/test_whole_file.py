"""A file that an option names is there whole, as it was before, or not at all."""

import pytest

from jobs.cli.whole_file import whole_file, write_whole


def test_a_job_that_is_stopped_while_it_writes_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "figures.json"
    write_whole(str(path), "[1]")

    def stopped():
        with whole_file(str(path)) as part:
            part.write_text("[2, 3")
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        stopped()
    assert path.read_text() == "[1]"
    assert [one.name for one in tmp_path.iterdir()] == ["figures.json"]


def test_a_link_stays_a_link_and_what_is_no_file_is_written_to(tmp_path, capfd):
    (tmp_path / "link.json").symlink_to(tmp_path / "figures.json")
    write_whole(str(tmp_path / "link.json"), "[4]")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "figures.json").read_text() == "[4]"
    write_whole("/dev/stdout", "[5]\n")
    assert capfd.readouterr().out == "[5]\n"


def test_an_error_names_the_file_of_the_option(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(str(tmp_path / "none" / "figures.json"), "[6]")
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path / 'none' / 'figures.json'}'"
