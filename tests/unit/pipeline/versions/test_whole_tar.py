"""A tar that is not whole is refused with what is wrong, and each remedy that a message prints works."""

import gzip
import io
import subprocess
import tarfile

import pytest

from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.whole_tar import MAX_PADDING_BYTES, HashedTar, open_whole


def tar_of(*names, size=700):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"x" * size))
    return file.getvalue()


WHOLE = tar_of("a.jpg", "b.jpg")
END = 2 * (512 + 1024)
"""The end of the last member."""


@pytest.fixture
def names_of(tmp_path):
    """Writes a tar and returns the names of its members, read by `open_whole`."""

    def names(content, name="t.tar"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        stream = HashedTar(open_storage(str(tmp_path)), name)
        with open_whole(stream, f"{tmp_path}/{name}") as tar:
            found = [member.name for member in tar]
        assert stream.size_bytes == (tmp_path / name).stat().st_size
        return found

    return names


@pytest.mark.parametrize("size", [END + 512, END + 1024, len(WHOLE), END + MAX_PADDING_BYTES])
def test_a_tar_with_one_empty_block_or_more_at_its_end_is_whole(names_of, size):
    assert names_of(WHOLE[:size].ljust(size, b"\0")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (WHOLE[:100], "is not a complete tar"),
        (WHOLE[: END // 2], "has no end"),
        (WHOLE[:END], "has no end"),
        (WHOLE[: END + 100], "has no end"),
        (WHOLE[: END - 100], "unexpected end of data"),
        (WHOLE[: END // 2 + 300], "cut in a header"),
        (WHOLE[: END // 2] + b"?" + WHOLE[END // 2 + 1 :], "the header at byte 1,536 is damaged"),
        (WHOLE[:END] + bytes(MAX_PADDING_BYTES + 1), "a download had stopped"),
        (WHOLE + WHOLE, "more follows"),
        (WHOLE + b"garbage", "more follows"),
        (b"no tar" * 1000, "is not a complete tar"),
        (b"PK\x03\x04" + bytes(3000), "a zip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
    ],
)
def test_what_is_not_whole_is_refused(names_of, content, message):
    with pytest.raises(InputError, match=message) as caught:
        names_of(content)
    assert "t.tar: is" in str(caught.value) or "t.tar: ends" in str(caught.value)


@pytest.fixture
def follow(tmp_path):
    """Runs the command in the message of an error, in the folder of the tar."""

    def run(error):
        command = str(error.value).rpartition(": ")[2]
        return subprocess.run(command, shell=True, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False).returncode

    return run


@pytest.mark.parametrize("content", [WHOLE[:END], WHOLE[:END] + bytes(2 * MAX_PADDING_BYTES)])
def test_the_remedy_in_the_message_works(names_of, follow, content):
    with pytest.raises(InputError) as caught:
        names_of(content, "a b.tar")
    assert follow(caught) == 0
    assert names_of(None, "a b.tar") == ["a.jpg", "b.jpg"]


def test_the_remedies_for_three_joined_tars_keep_the_samples_of_all(names_of, follow):
    for content, name in ((WHOLE + tar_of("c.jpg") + tar_of("d.jpg"), "t 1.tar"), (None, "t 1.rest.tar")):
        with pytest.raises(InputError, match="more follows") as caught:
            names_of(content, name)
        assert follow(caught) == 0
    parts = [names_of(None, f"t 1.{part}.tar") for part in ("first", "rest.first", "rest.rest")]
    assert parts == [["a.jpg", "b.jpg"], ["c.jpg"], ["d.jpg"]]


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "T.TGZ", "t"])
def test_no_remedy_writes_over_a_file_and_each_tar_has_names_of_its_own(names_of, follow, tmp_path, name):
    for content in (WHOLE + WHOLE, gzip.compress(WHOLE)):
        with pytest.raises(InputError) as caught:
            names_of(content, name)
        written = [part for part in str(caught.value).split() if part.rstrip(")").endswith((".first.tar", ".plain.tar"))]
        (target,) = {tmp_path / part.rstrip(")") for part in written}
        assert target.name.partition(".")[0] == name.partition(".")[0]
        target.write_bytes(b"mine")
        assert follow(caught) != 0
        assert target.read_bytes() == b"mine"


def test_a_compressed_tar_is_refused_with_the_command_that_decompresses_it(names_of, follow):
    with pytest.raises(InputError, match="compressed with gzip") as caught:
        names_of(gzip.compress(WHOLE), "a b.tar")
    assert follow(caught) == 0
    assert names_of(None, "a b.plain.tar") == ["a.jpg", "b.jpg"]
