"""Rules choose samples, in their order, and selections of selections count all drops."""

import hashlib
import io
import json

import pandas as pd
import pytest
from PIL import Image

from pipeline.config import CurateConfig
from pipeline.dataset.manifest import Manifest, read_manifest, read_samples
from pipeline.errors import InputError
from pipeline.ingest.retry import is_own_key
from pipeline.storage.address import open_storage
from pipeline.versions.curation import Rules, duplicates, judge, note_on_new_rows, read_rules, select
from tests.support.tars import Indexed, packed


@pytest.fixture
def storage(make_data_set, tmp_path):
    return open_storage(make_data_set(str(tmp_path / "data"), (8,)))


def test_the_first_rule_that_drops_a_sample_is_its_reason(storage):
    (shard,) = read_manifest(storage).shards
    captions = read_samples(storage, shard, ["caption"])["caption"].to_pylist()
    verdicts, hashes = judge(storage, shard, Rules(CurateConfig(max_caption_characters=20, where="shape == 'disc'")))
    assert [verdict == "long_caption" for verdict in verdicts] == [len(caption) > 20 for caption in captions]
    assert set(verdicts) <= {"", "long_caption", "where"}
    assert all(len(digest) == 64 for digest in hashes)


def test_a_selection_of_a_selection_counts_the_drops_of_both(storage):
    (shard,) = read_manifest(storage).shards
    first = select(storage, shard, ["", "where", "", "", "too_small", "", "", ""])
    second = select(storage, first, ["", "", "where", "", "", ""])
    assert (first.num_samples, second.num_samples) == (6, 5)
    assert second.selection.drops == {"too_small": 1, "where": 2}
    keys = read_samples(storage, shard, ["key"])["key"].to_pylist()
    assert read_samples(storage, second, ["key"])["key"].to_pylist() == [keys[place] for place in (0, 2, 5, 6, 7)]


def test_a_selection_without_drops_is_none(storage):
    (shard,) = read_manifest(storage).shards
    assert select(storage, shard, [""] * 8) == shard


@pytest.mark.parametrize(("where", "message"), [("nothing > 1", "write a condition"), ("width", "write a comparison")])
def test_a_condition_that_cannot_be_evaluated_is_named(storage, where, message):
    with pytest.raises(InputError, match=rf"^curate\.where={where}: .*{message}"):
        judge(storage, read_manifest(storage).shards[0], Rules(CurateConfig(where=where)))


def test_a_file_of_hashes_must_hold_hashes(tmp_path):
    (tmp_path / "hashes.txt").write_text(f"{'0' * 64}\nabc\n")
    with pytest.raises(InputError, match="'abc' is not a sha256"):
        read_rules(CurateConfig(exclude_hashes=str(tmp_path / "hashes.txt")))


def test_of_equal_rows_the_first_in_order_stays():
    rows = pd.DataFrame({"hash": ["x", "y", "x"], "place": [2, 1, 0]})
    assert duplicates(rows, "hash", ["place"]).tolist() == [True, False, False]


def image(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, height % 256, 0)).save(file, "png")
    return file.getvalue()


def index(folder, images, texts=()):
    """A data set of one tar with these images and json members, under the keys 0, 1, ..."""
    folder.mkdir(exist_ok=True)
    members = []
    for number, content in enumerate(images):
        members += [(f"{number}.png", content), (f"{number}.txt", b"a disc")]
        members += [(f"{number}.json", json.dumps(texts[number]).encode())] if texts else []
    return Indexed(folder, packed(members))


def kept(data_set, **config):
    verdicts, _ = judge(data_set.storage, data_set.manifest.shards[0], read_rules(CurateConfig(**config)))
    return [number for number, verdict in enumerate(verdicts) if not verdict]


SIDES = ((40, 40), (400, 400), (400, 20))


def test_the_stored_size_counts_where_a_tar_does_not_tell_the_original(tmp_path):
    data_set = index(tmp_path, [image(*size) for size in SIDES])
    assert kept(data_set, min_side_px=200) == [1]
    assert kept(data_set, max_aspect_ratio=3) == [0, 1]


def test_the_original_size_counts_where_a_tar_tells_it(tmp_path):
    texts = [{"original_width": 900, "original_height": 300}, {"original_width": 10}, {"width": 7}]
    data_set = index(tmp_path, [image(*size) for size in SIDES], texts)
    assert kept(data_set, min_side_px=200) == [0, 1]
    assert kept(data_set, max_aspect_ratio=2.9) == [1]


def test_a_list_of_hashes_holds_for_images_as_stored_and_as_the_tar_says_they_were_fetched(tmp_path):
    images = [image(40, 40), image(50, 50), image(60, 60)]
    texts = [{"sha256": "AB" * 32}, {"sha256": 5}, {"sha256": hashlib.sha256(images[2]).hexdigest()}]
    data_set = index(tmp_path, images, texts)
    for digest, rest in (("ab" * 32, [1, 2]), (hashlib.sha256(images[1]).hexdigest(), [0, 2]), (texts[2]["sha256"], [0, 1])):
        (tmp_path / "hashes.txt").write_text(f"{digest.upper()}\n")
        assert kept(data_set, exclude_hashes=str(tmp_path / "hashes.txt")) == rest


def test_a_share_of_tars_that_count_from_zero_is_not_the_same_keys_in_each(tmp_path):
    chosen = [kept(index(tmp_path / str(tar), [image(40 + tar, 40)]), sample_share=0.5, seed=0) for tar in range(24)]
    assert 4 < sum(map(len, chosen)) < 20


def test_a_share_of_ingested_samples_is_that_of_earlier_releases(storage):
    shard = read_manifest(storage).shards[0]
    keys = read_samples(storage, shard, ["key"])["key"].to_pylist()
    assert all(map(is_own_key, keys))
    draws = [int.from_bytes(hashlib.sha256(f"3/{key}".encode()).digest()[:8], "big") / 2**64 for key in keys]
    verdicts, _ = judge(storage, shard, Rules(CurateConfig(sample_share=0.5, seed=3)))
    assert [verdict == "" for verdict in verdicts] == [draw < 0.5 for draw in draws]


def test_new_rows_beside_selected_ones_are_said_with_the_rules_that_they_lack(storage):
    manifest = read_manifest(storage)
    (shard,) = manifest.shards
    assert note_on_new_rows(manifest) == ""
    for drops, words in (
        (["removed"], ""),
        (["where", "duplicate"], r"by jobs/curate.py (duplicate, where), and the new rows"),
    ):
        chosen = select(storage, shard, [*drops, *[""] * (8 - len(drops))])
        (partition,) = manifest.partitions
        changed = manifest.model_copy(update={"partitions": (partition.model_copy(update={"shards": (chosen,)}),)})
        note = note_on_new_rows(Manifest.model_validate_json(changed.model_dump_json()))
        assert (words in note, bool(note)) == (True, bool(words))
