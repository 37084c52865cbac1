"""Tars that people have: each is indexed as it is, or refused by name, and training reads what the index says.

tests/world/README.md names the sources.
"""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile

import pytest

from pipeline.config import IndexConfig
from pipeline.dataset.manifest import ManifestError, commit, read_manifest, read_sidecar
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.versions.foreign_tars import index_tar, plan_index
from tests.support.tars import info_of, packed, pairs, whole
from training.data.shard_reader import ShardReader

# ------------------------------------------------------------------------------------------------------ names without a key


@pytest.mark.parametrize("before", ["._{0}", "__MACOSX/._{0}", "x/._{0}", "PaxHeader/{0}", ".DS_Store", "Thumbs"])
def test_leftovers_before_each_member_separate_no_sample(indexed, image, before):
    members = pairs(image, "000", "001", "002")
    mixed = [part for name, data in members for part in ((before.format(name), b"\0\5\x16\7" * 40), (name, data))]
    data_set = indexed(packed(mixed))
    assert data_set.samples() == [(key, text, image) for key, text in whole("000", "001", "002")]
    assert data_set.record.num_rows == 3


def test_links_folders_and_devices_between_members_separate_no_sample(indexed, image):
    (jpg, data), text = pairs(image, "a")
    others = [
        (info_of("a.d", type=tarfile.DIRTYPE), b""),
        (info_of("a.png", type=tarfile.SYMTYPE, linkname="a.jpg"), b""),
        (info_of("b.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"), b""),
        (info_of("c.jpg", type=tarfile.FIFOTYPE), b""),
        (info_of("d.jpg", type=tarfile.CHRTYPE), b""),
    ]
    assert indexed(packed([(jpg, data), *others, text])).samples() == [("a", ("a disc",), image)]


@pytest.mark.parametrize(
    "key",
    ["./000", "/data/000", "../000", "a.b/c.d/000", "ключ", "鍵 with spaces", "k" * 150, "d" * 99 + "/" + "k" * 99, "a+b&c%20"],
)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_key_is_the_name_up_to_its_first_dot(indexed, image, key, kind):
    assert indexed(packed(pairs(image, key, "last"), format=kind)).samples() == [
        (key, ("a disc",), image),
        ("last", ("a disc",), image),
    ]


def test_a_name_in_latin_1_is_a_key(indexed, image):
    content = packed(pairs(image, "caf\xe9", "caf\xe8"), format=tarfile.USTAR_FORMAT, encoding="latin-1")
    assert [key for key, *_ in indexed(content).samples()] == ["caf\\xe9", "caf\\xe8"]


def test_keys_with_dots_are_explained(indexed, image):
    data_set = indexed(packed(pairs(image, "22.05", "22.06")))
    assert data_set.reasons == [("22", "no_image")]
    assert "the key has only .05.jpg, .05.txt, .06.jpg" in data_set.rows[0]["error_message"]
    assert "first dot" in data_set.rows[0]["error_message"]


# ------------------------------------------------------------------------------------------- several members of one extension


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_images_of_a_key_training_reads_the_one_that_was_hashed(indexed, image, draw_shape, order):
    other = draw_shape("blue", "square", 0)
    images = [("0.jpg", image), ("0.png", other), ("0.webp", other)][::order]
    assert indexed(packed([*images, ("0.txt", b"a disc"), ("0.seg.png", other)])).samples() == [("0", ("a disc",), image)]


@pytest.mark.parametrize("again", ["0.jpg", "0.JPG"])
def test_a_member_that_comes_twice_is_a_row_with_its_reason(indexed, image, draw_shape, again):
    other = draw_shape("blue", "square", 0)
    data_set = indexed(packed([("0.jpg", image), (again, other), ("0.txt", b"a disc")]))
    assert data_set.reasons == [("0", "success"), ("0", "repeated_key")]
    assert data_set.samples() == [("0", ("a disc",), image)]


def test_a_key_that_comes_twice_side_by_side_is_a_row_with_its_reason(indexed, image, draw_shape):
    other = draw_shape("blue", "square", 0)
    members = [("0.jpg", image), ("0.txt", b"first"), ("0.jpg", other), ("0.txt", b"second"), *pairs(image, "1")]
    data_set = indexed(packed(members))
    assert data_set.reasons == [("0", "success"), ("0", "repeated_key"), ("1", "success")]
    assert data_set.samples() == [("0", ("first",), image), ("1", ("a disc",), image)]
    assert "more than once" in data_set.rows[1]["error_message"]


def test_a_key_that_comes_again_later_is_a_row_with_its_reason(indexed, image):
    data_set = indexed(packed([*pairs(image, "0", "1"), *pairs(image, "0"), ("1.json", b"{}")]))
    assert data_set.reasons == [("0", "success"), ("1", "success"), ("0", "repeated_key"), ("1", "scattered_key")]


def test_members_that_do_not_lie_together_are_named_and_the_remedy_works(indexed, image, tmp_path):
    jpgs, texts = pairs(image, "0", "1")[::2], pairs(image, "0", "1")[1::2]
    data_set = indexed(packed(jpgs + texts))
    assert data_set.reasons == [("0", "scattered_key"), ("1", "scattered_key")] * 2
    assert "(set -C; tar --sort=name -c -C FOLDER . > NEW.tar)" in data_set.rows[0]["error_message"]
    again = packed(sorted(jpgs + texts))
    shutil.rmtree(tmp_path / "data")  # a new index.output
    assert indexed(again).samples() == [(key, text, image) for key, text in whole("0", "1")]


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar program")
def test_gnu_tar_packs_scattered_members_side_by_side(indexed, image, tmp_path):
    if "GNU" not in subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("tar is not GNU tar")
    (tmp_path / "files").mkdir()
    for name, data in reversed(pairs(image, "a", "a-b", "aa", "b")):
        (tmp_path / "files" / name).write_bytes(data)
    subprocess.run("(set -C; tar --sort=name -c -C files . > NEW.tar)", shell=True, cwd=tmp_path, check=True)
    found = indexed((tmp_path / "NEW.tar").read_bytes()).samples()
    assert sorted(found) == [(f"./{key}", text, image) for key, text in whole("a", "a-b", "aa", "b")]


def test_the_same_key_in_two_tars_is_two_samples(image, tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(packed(pairs(image, "000000")))
    config = IndexConfig(input=str(tmp_path), output=str(tmp_path / "data"))
    manifest = commit(open_storage(config.output), [index_tar(tar, config) for tar in plan_index(config, None)])
    assert manifest.num_samples == 2


# ----------------------------------------------------------------------------------------- what ranges of a tar cannot serve


def sparse_image(image):
    """A PAX sparse file, as GNU tar --sparse writes it: a map, and the data between the holes."""
    block = f"1\n0\n{len(image)}\n".encode().ljust(512, b"\0")
    info = info_of("GNUSparseFile.0/0.jpg", len(block) + len(image))
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "0.jpg"}
    info.pax_headers["GNU.sparse.realsize"] = str(len(image) + 4096)
    return info, block + image


def test_a_sparse_image_is_a_row_with_its_reason(indexed, image):
    data_set = indexed(packed([sparse_image(image), ("0.txt", b"a disc"), *pairs(image, "1")], format=tarfile.PAX_FORMAT))
    assert data_set.reasons == [("0", "sparse_member"), ("1", "success")]
    assert "--sparse" in data_set.rows[0]["error_message"]
    assert data_set.samples() == [("1", ("a disc",), image)]


def test_a_size_in_the_pax_header_is_the_size(indexed, image):
    info = info_of("0.jpg", len(image), pax_headers={"size": str(len(image))})
    content = packed([(info, image), ("0.txt", b"a disc")], format=tarfile.PAX_FORMAT)
    place = content.index(b"0.jpg\0") + 124  # the size in the ustar header, which a reader must not use
    header = bytearray(content[place - 124 : place - 124 + 512])
    header[124:136] = b"00000000000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data_set = indexed(content[: place - 124] + bytes(header) + content[place - 124 + 512 :])
    assert data_set.samples() == [("0", ("a disc",), image)]


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar"])
def test_a_compressed_tar_is_planned_and_refused_by_its_name(image, tmp_path, name):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / name).write_bytes(gzip.compress(packed(pairs(image, "0"))))
    config = IndexConfig(input=str(tmp_path / "tars"), output=str(tmp_path / "data"))
    (tar,) = plan_index(config, None)
    with pytest.raises(InputError, match=rf"{name}: is compressed with gzip.* gzip -dc {name} > t\.plain\.tar"):
        index_tar(tar, config)


def test_braces_name_their_tars_exactly_and_double_colons_join_parts(image, tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("00000", "00001", "00002", "00010", "more/a", "more/b"):
        (tmp_path / f"{name}.tar").write_bytes(packed(pairs(image, name.replace("/", "-"))))

    def planned(text: str) -> list[str]:
        tars = plan_index(IndexConfig(input=text, output=str(tmp_path / "data")), None)
        return [tar.removeprefix(f"{tmp_path}/") for tar in tars]

    assert planned(f"{tmp_path}/{{00000..00002}}.tar") == ["00000.tar", "00001.tar", "00002.tar"]
    assert planned(f"{tmp_path}/{{00000,00010}}.tar::{tmp_path}/more") == ["00000.tar", "00010.tar", "more/a.tar", "more/b.tar"]
    assert planned(f"{tmp_path}/{{00000,more/{{a,b}}}}.tar") == ["00000.tar", "more/a.tar", "more/b.tar"]
    with pytest.raises(InputError, match=r"1 of the 4 tars .* are not there, such as .*00003\.tar; .* as in '.*/\*\.tar'"):
        planned(f"{tmp_path}/{{00000..00003}}.tar")
    with pytest.raises(InputError, match="its braces name more than 1,000,000 tars"):
        planned(f"{tmp_path}/{{00000..99999}}{{00000..99999}}.tar")


def test_a_folder_whose_own_name_has_braces_is_read_as_it_is(image, tmp_path):
    (tmp_path / "{1..2}").mkdir()
    (tmp_path / "{1..2}" / "a.tar").write_bytes(packed(pairs(image, "0")))
    tars = plan_index(IndexConfig(input=f"{tmp_path}/{{1..2}}", output=str(tmp_path / "data")), None)
    assert tars == [f"{tmp_path}/{{1..2}}/a.tar"]


def test_hidden_tars_are_skipped_and_upper_case_ones_are_not(image, tmp_path, caplog):
    for name in ("a.tar", "B.TAR", "._a.tar", ".ipynb_checkpoints/a.tar"):
        (tmp_path / "tars" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "tars" / name).write_bytes(packed(pairs(image, "0")))
    for pattern in (f"{tmp_path}/tars", f"{tmp_path}/tars/*"):
        config = IndexConfig(input=pattern, output=str(tmp_path / "data"))
        assert [tar.rpartition("/")[2] for tar in plan_index(config, None)] == ["B.TAR", "a.tar"]
    assert "._a.tar" in caplog.text


def test_a_link_to_a_tar_that_is_there_too_is_skipped(image, tmp_path, caplog):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(packed(pairs(image, "0")))
    (tmp_path / "elsewhere.tar").write_bytes(packed(pairs(image, "1")))
    (tmp_path / "tars" / "latest.tar").symlink_to("0.tar")
    (tmp_path / "tars" / "other.tar").symlink_to("../elsewhere.tar")
    config = IndexConfig(input=str(tmp_path / "tars"), output=str(tmp_path / "data"))
    assert [tar.rpartition("/")[2] for tar in plan_index(config, None)] == ["0.tar", "other.tar"]
    assert "skipped 1 links to tars that are there too, such as" in caplog.text


def test_of_links_to_one_tar_elsewhere_one_is_read(image, tmp_path, caplog):
    """As in a cache of Hugging Face's, where each revision of a data set links to the same blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(packed(pairs(image, "0")))
    for revision in ("r1", "r2"):
        (tmp_path / "snapshots" / revision).mkdir(parents=True)
        (tmp_path / "snapshots" / revision / "0.tar").symlink_to("../../blobs/abc")
    config = IndexConfig(input=str(tmp_path / "snapshots"), output=str(tmp_path / "data"))
    assert plan_index(config, None) == [f"{tmp_path}/snapshots/r1/0.tar"]
    assert f"such as {tmp_path}/snapshots/r2/0.tar, the same file as {tmp_path}/snapshots/r1/0.tar" in caplog.text


def test_a_tar_that_the_data_set_holds_under_another_path_is_not_read_again(indexed, image, tmp_path, caplog):
    from pipeline.versions.foreign_tars import count_newest_samples

    data_set = indexed(packed(pairs(image, "0")))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "u.tar").symlink_to("../t.tar")
    again = data_set.config.model_copy(update={"input": str(tmp_path / "linked")})
    assert plan_index(again, data_set.manifest) == []
    assert f"linked/u.tar, held as {tmp_path}/t.tar" in caplog.text
    assert count_newest_samples(again, data_set.storage) == 1
    keyed = data_set.record.model_copy(update={"options_fingerprint": "indexed title"})
    manifest = data_set.manifest.model_copy(update={"partitions": (keyed,)})
    with pytest.raises(InputError, match=r"index\.caption_key=: the data set holds .*u\.tar with index\.caption_key=title"):
        plan_index(again, manifest)


def test_tars_of_the_same_bytes_are_named(image, tmp_path):
    from pipeline.versions.foreign_tars import describe_copies, read_tar

    for name, key in (("0.tar", "0"), ("0 (1).tar", "0"), ("1.tar", "1")):
        (tmp_path / name).write_bytes(packed(pairs(image, key)))
    config = IndexConfig(input=str(tmp_path), output=str(tmp_path / "data"))
    done = [read_tar(tar, config) for tar in plan_index(config, None)]
    manifest = commit(open_storage(config.output), [one.record for one in done])
    (line,) = describe_copies(done, manifest)
    assert line.startswith(f"WARNING: {tmp_path}/0 (1).tar, {tmp_path}/0.tar: have the same bytes")
    assert "curate.drop_duplicates=true" in line
    assert describe_copies([one for one in done if one.record.input_path.endswith("/1.tar")], manifest) == []


def test_another_key_of_captions_is_no_reason_to_do_nothing(indexed, image, caplog):
    members = [*pairs(image, "0"), ("0.json", b'{"alt": "alt text"}')]
    keyed = indexed(packed(members), caption_key="alt")
    assert [row["caption"] for row in keyed.rows] == ["alt text"]
    assert plan_index(keyed.config, keyed.manifest) == []
    for key in ("", "title"):
        with pytest.raises(
            InputError, match=rf"index\.caption_key={key}: the data set holds .*t\.tar with index\.caption_key=alt"
        ):
            plan_index(keyed.config.model_copy(update={"caption_key": key}), keyed.manifest)
    old = keyed.manifest.model_copy(
        update={
            "partitions": tuple(one.model_copy(update={"options_fingerprint": "indexed"}) for one in keyed.manifest.partitions)
        }
    )
    assert plan_index(keyed.config, old) == []
    assert "index.caption_key=alt: changes nothing in tars that the data set holds already" in caplog.text


# ------------------------------------------------------------------------------------------------------------ whole or refused


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_tar_cut_within_a_member_is_refused(indexed, image, share):
    content = packed(pairs(image, *"abcdefghi"))
    with pytest.raises(InputError, match=r"t\.tar: is not a complete tar"):
        indexed(content[: int(share * len(content.rstrip(bytes(1))))])


@pytest.mark.parametrize("members", [2, 12, 17, 18])
def test_a_tar_cut_between_members_is_refused(indexed, image, members):
    content = packed(pairs(image, *"abcdefghi"))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = [*(info.offset for info in tar.getmembers()[1:]), tar.offset]
    with pytest.raises(InputError, match=r"t\.tar: is not a complete tar \(it has no end"):
        indexed(content[: ends[members - 1]])


def test_a_tar_that_was_never_closed_is_refused(indexed, image, tmp_path):
    file = io.BytesIO()
    tar = tarfile.open(fileobj=file, mode="w")  # noqa: SIM115
    tar.addfile(info_of("0.jpg", len(image)), io.BytesIO(image))
    with pytest.raises(InputError, match="it has no end"):
        indexed(file.getvalue())


def test_tars_one_after_the_other_in_one_file_are_refused(indexed, image):
    with pytest.raises(InputError, match="more follows"):
        indexed(packed(pairs(image, "a")) + packed(pairs(image, "b")))


def test_garbage_after_the_end_is_refused(indexed, image):
    with pytest.raises(InputError, match="more follows"):
        indexed(packed(pairs(image, "a")) + b"garbage")


def test_a_damaged_header_is_no_end(indexed, image):
    content = bytearray(packed(pairs(image, "a", "b")))
    content[content.index(b"b.jpg")] = ord("c")
    with pytest.raises(InputError, match=r"the header at byte .* is damaged"):
        indexed(bytes(content))


def test_an_empty_tar_and_one_of_folders_have_no_rows(indexed):
    assert indexed(packed([])).record.num_rows == 0


def test_a_file_of_no_bytes_is_refused(indexed):
    with pytest.raises(InputError, match=r"t\.tar: is empty"):
        indexed(b"")


# -------------------------------------------------------------------------------------------------------------- existing tars


def test_a_tar_that_was_replaced_is_named(indexed, image, tmp_path):
    from pipeline.versions.foreign_tars import find_replaced

    data_set = indexed(packed(pairs(image, "0")))
    assert find_replaced(data_set.config, data_set.manifest) == []
    (tmp_path / "t.tar").write_bytes(packed(pairs(image, *(str(number) for number in range(50)))))
    (message,) = find_replaced(data_set.config, read_manifest(data_set.storage))
    assert "new index.output" in message


def changed_in_place(tar, content):
    """Writes a tar of the same size."""
    assert len(content) == tar.stat().st_size
    tar.write_bytes(content)


@pytest.mark.parametrize("change", ["another sample", "another caption", "an older file"])
def test_a_tar_that_was_changed_and_kept_its_size_is_named(indexed, image, tmp_path, change):
    """tar pads to 10 KiB, so that there is room for more (`tar -r`)."""
    from pipeline.versions.foreign_tars import find_replaced

    data_set = indexed(packed(pairs(image, "0")))
    more = pairs(image, "0", "1") if change == "another sample" else [("0.jpg", image), ("0.txt", b"a ring, not a disc")]
    changed_in_place(tmp_path / "t.tar", packed(more))
    if change == "an older file":
        os.utime(tmp_path / "t.tar", (1, 1))
    (message,) = find_replaced(data_set.config, data_set.manifest)
    assert "t.tar: has as many bytes as when it was indexed, but others" in message
    assert "new index.output" in message


def test_a_tar_that_was_only_touched_is_read_again_and_is_the_same(indexed, image, tmp_path, caplog):
    from pipeline.versions.foreign_tars import find_replaced

    data_set = indexed(packed(pairs(image, "0")))
    os.utime(tmp_path / "t.tar")
    assert find_replaced(data_set.config, data_set.manifest) == []
    assert "reading 1 tars that may have changed since they were indexed" in caplog.text


def test_a_tar_that_an_earlier_release_has_indexed_is_compared_by_its_size(indexed, image, tmp_path, caplog):
    from pipeline.versions.foreign_tars import find_replaced

    data_set = indexed(packed(pairs(image, "0")))
    path = data_set.storage.local_path("manifests/00000001.json")
    record = json.loads(path.read_text())
    assert record["partitions"][0]["shards"][0].pop("etag")
    path.write_text(json.dumps(record))
    manifest = read_manifest(data_set.storage)
    assert "etag" not in manifest.model_dump_json()
    os.utime(tmp_path / "t.tar")
    assert (find_replaced(data_set.config, manifest), caplog.text) == ([], "")


def test_captions_that_were_edited_in_place_are_refused_when_they_are_read(indexed, image, tmp_path):
    """Training reads them by the places in the index: `a black disc` would be read as `a blac`."""
    data_set = indexed(packed(pairs(image, "0")))
    for text in (b"a black disc", b"disc", b"a ring"):
        changed_in_place(tmp_path / "t.tar", packed([("0.jpg", image), ("0.txt", text)]))
        with pytest.raises(ManifestError, match=r"t\.tar: sample 0: the caption is not the one in its sidecar; .* restore it"):
            data_set.samples()


def test_compact_shards_of_an_untidy_tar_hold_what_the_index_says(indexed, image, draw_shape, tmp_path):
    from pipeline.versions.rewrite import rewrite

    other = draw_shape("blue", "square", 0)
    members = [
        ("._0.jpg", b"x"),
        ("0.jpg", image),
        ("._0.png", b"x"),
        ("0.png", other),
        ("0.json", b'{"alt": "first"}'),
        ("0.txt", b"no"),
    ]
    members += [("1.jpg", image), ("1.json", b'{"alt": "second"}'), ("1.cls", b"5"), ("1.jpg", other), ("0.jpg", other)]
    data_set = indexed(packed(members), caption_key="alt")
    before = data_set.samples()
    shard = rewrite(data_set.storage, list(data_set.manifest.shards), f"{data_set.record.id}-000")
    manifest = commit(open_storage(str(tmp_path / "new")), [data_set.record.model_copy(update={"shards": (shard,)})])
    found = ShardReader(data_set.storage, manifest).read(0, 0, 2)
    assert (
        [(sample.key, sample.captions, sample.image) for sample in found]
        == before
        == [("0", ("first",), image), ("1", ("second",), image)]
    )
    with tarfile.open(data_set.storage.root / shard.tar_path) as tar:
        assert tar.getnames() == ["0.jpg", "0.json", "0.source.txt", "0.txt", "1.cls", "1.jpg", "1.json"]
        assert tar.extractfile("0.txt").read() == b"first"
    assert [row["jpg_offset"] for row in read_sidecar(data_set.storage, shard).to_pylist() if row["status"] != "success"] == [
        None,
        None,
    ]
