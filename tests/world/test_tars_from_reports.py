"""Further tars from public reports; tests/world/README.md names them."""

import io
import json
import tarfile

import pytest

from pipeline.config import IndexConfig
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.foreign_tars import describe, read_tar
from tests.support.tars import info_of, packed, pairs, whole


@pytest.fixture
def lines_about(tmp_path):
    """Indexes a tar and returns what the command says about it."""

    def lines(content):
        (tmp_path / "t.tar").write_bytes(content)
        config = IndexConfig(input=str(tmp_path / "t.tar"), output=str(tmp_path / "data"))
        return "\n".join(describe([read_tar(config.input, config)]))

    return lines


def with_header(content, name, **fields):
    """The tar with other bytes in the header of a member: FIELD=(start, bytes)."""
    start = content.index(name.encode() + b"\0")
    header = bytearray(content[start : start + 512])
    for place, data in fields.values():
        header[place : place + len(data)] = data
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :]


def test_names_with_version_numbers_leave_no_sample_and_the_command_says_why(lines_about, image):
    said = lines_about(packed(pairs(image, "235342 Track 2.0 (Clean Version)", "235343 Track 2.1")))
    assert "no_image: 2 rows; the first is 235342 Track 2" in said
    assert "a key ends at the first dot" in said
    assert "WARNING" in said
    assert "t.tar has no sample" in said


def test_two_part_extensions_for_image_and_text_are_no_image(lines_about, image):
    said = lines_about(
        packed([("s0.input.jpg", image), ("s0.outputs.txt", b"x"), ("s1.left.jpg", image), ("s1.right.jpg", image)])
    )
    assert "the key has only .input.jpg, .outputs.txt" in said


def test_images_and_captions_under_different_names_are_rows(indexed, image):
    data_set = indexed(packed([("img1.png", image), ("caption1.txt", b"a dog"), ("img2.png", image), ("caption2.txt", b"two")]))
    assert data_set.reasons == [
        ("img1", "empty_caption"),
        ("caption1", "no_image"),
        ("img2", "empty_caption"),
        ("caption2", "no_image"),
    ]


def test_extensions_of_another_convention_are_named(lines_about, image):
    assert "the key has only .img, .cap" in lines_about(packed([("0.img", image), ("0.cap", b"a dog")]))


def test_a_dot_in_a_folder_is_of_the_key(indexed, image):
    assert indexed(packed(pairs(image, "train.v1/0001", "train.v1/0002"))).samples() == [
        (key, text, image) for key, text in whole("train.v1/0001", "train.v1/0002")
    ]


def test_a_file_of_the_full_size_whose_download_stopped_is_refused(indexed, image):
    content = packed([member for number in range(40) for member in pairs(image + bytes(60_000), f"{number:03d}")])
    half = content.index(b"020.jpg")
    with pytest.raises(InputError, match="as if a download had stopped"):
        indexed(content[:half].ljust(len(content), b"\0"))
    with pytest.raises(InputError, match="as if a download had stopped"):
        indexed(bytes(len(content)))


def test_blocks_of_zeros_after_the_end_are_no_damage(indexed, image):
    assert len(indexed(packed(pairs(image, "0")) + bytes(300_000)).samples()) == 1


def test_an_archive_with_one_empty_block_at_its_end_is_whole(indexed, image):
    content = packed(pairs(image, "0"))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.getmembers()
        end = tar.offset
    assert len(indexed(content[: end + 512]).samples()) == 1


def test_a_checksum_that_is_wrong_in_the_middle_loses_nothing_in_silence(indexed, image):
    content = bytearray(packed(pairs(image, "0", "1", "2")))
    content[content.index(b"1.jpg\0") + 148] = ord("7")
    with pytest.raises(InputError, match="is damaged"):
        indexed(bytes(content))


def test_a_sparse_file_with_a_size_in_its_pax_header_hides_no_later_member(indexed, image):
    block = f"1\n0\n{len(image)}\n".encode().ljust(512, b"\0")
    info = info_of("GNUSparseFile.0/0.jpg", len(block) + len(image))
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "0.jpg"}
    info.pax_headers |= {"GNU.sparse.realsize": str(len(image)), "size": str(len(block) + len(image))}
    content = packed([(info, block + image), ("0.txt", b"x"), *pairs(image, "1")], format=tarfile.PAX_FORMAT)
    try:
        found = indexed(content).reasons
    except InputError as error:  # Python's tarfile looks for the next header in a wrong place
        found = str(error)
    assert found == [("0", "sparse_member"), ("1", "success")] or "is not a complete tar" in found


def test_a_tar_of_the_first_unix_format_is_read(indexed, image):
    content = packed(pairs(image, "0"), format=tarfile.USTAR_FORMAT)
    for name in ("0.jpg", "0.txt"):
        content = with_header(content, name, type=(156, b"\0"), rest=(257, bytes(255)))
    assert indexed(content).samples() == [("0", ("a disc",), image)]


def test_times_in_a_gnu_header_are_no_part_of_the_name(indexed, image):
    content = packed(pairs(image, "0"), format=tarfile.GNU_FORMAT)
    for name, time in (("0.jpg", b"13455654047\0"), ("0.txt", b"13455654048\0")):
        content = with_header(content, name, atime=(345, time), ctime=(357, time))
    assert indexed(content).samples() == [("0", ("a disc",), image)]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + bytes(3) + b"\x10" + bytes(7)])
def test_a_size_that_cannot_be_is_refused_at_once(indexed, image, size):
    with pytest.raises(InputError, match="is not a complete tar"):
        indexed(with_header(packed(pairs(image, "0", "1"), format=tarfile.GNU_FORMAT), "0.txt", size=(124, size)))


def test_the_label_of_a_volume_and_the_rest_of_a_split_file_are_skipped_and_named(lines_about, image):
    label, rest = info_of("my volume", type=b"V"), info_of("9.jpg", 5, type=b"M")
    said = lines_about(packed([(label, b""), (rest, b"12345"), *pairs(image, "0")], format=tarfile.GNU_FORMAT))
    assert said.startswith("devices and other special files: 2 members skipped; the first is my volume in")


def test_json_members_that_cannot_be_read_are_counted_and_named(lines_about, image):
    odd = [("0.json", b'{"a": "caf\xe9"}'), ("1.json", b"[1]"), ("2.json", b"{}")]
    said = lines_about(packed([member for n, one in enumerate(odd) for member in (*pairs(image, str(n)), one)]))
    assert said.startswith("json members that are no object in UTF-8: 2 members skipped; the first is 0 in")


def test_hard_links_to_images_are_skipped_and_named(lines_about, image):
    link = info_of("1.jpg", type=tarfile.LNKTYPE, linkname="0.jpg")
    said = lines_about(packed([*pairs(image, "0"), (link, b""), ("1.txt", b"a disc")]))
    assert "links: 1 members skipped; the first is 1.jpg" in said
    assert "no_image: 1 rows; the first is 1" in said


def test_backslashes_of_windows_are_letters_of_the_key(indexed, image):
    assert indexed(packed(pairs(image, r"train\0001"))).samples() == [(r"train\0001", ("a disc",), image)]


def test_a_value_that_is_null_at_first_and_text_later_is_kept(indexed, image):
    values = [None, None, "x", ["a"], 5]
    members = [
        part for key, value in zip("01234", values, strict=True) for part in (*pairs(image, key), (f"{key}.json", value))
    ]
    members = [
        (name, data if isinstance(data, bytes) else json.dumps({"tag": data, "list": []}).encode()) for name, data in members
    ]
    assert [row["tag"] for row in indexed(packed(members)).rows] == [None, None, ["x"], ["a"], ["5"]]


def test_a_sample_of_another_program_in_each_part_is_still_one_sample(indexed, image):
    """A key's members in any order, with any others between them."""
    members = [
        ("0.cls", b"5"),
        ("0.txt", b"a disc"),
        ("0.npy", b"\0" * 3000),
        ("0.JPEG", image),
        ("0.json", b"{}"),
        ("0.seg.png", b"?"),
    ]
    assert indexed(packed(members)).samples() == [("0", ("a disc",), image)]


def test_a_data_set_that_lies_within_the_input_is_not_indexed_again(image, tmp_path):
    from pipeline.versions.foreign_tars import plan_index

    for path in ("a.tar", "index/shards/b.tar"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(packed(pairs(image, "0")))
    config = IndexConfig(input=str(tmp_path), output=str(tmp_path / "index"))
    assert plan_index(config, None) == [open_storage(str(tmp_path)).address("a.tar")]
