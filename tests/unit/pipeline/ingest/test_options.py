"""A data set keeps the options of its rows, and a later run is compared with them."""

import json

import pytest

from pipeline.config import IngestConfig
from pipeline.ingest.options import FOLDER, keep_options, options_fingerprint, other_options
from pipeline.storage.address import open_storage

SMALL = {"size_px": 64}


def config(**options) -> IngestConfig:
    return IngestConfig(input="t.csv", output="out", **options)


@pytest.mark.parametrize(
    ("kept", "now", "others"),
    [
        ({}, {}, []),
        ({"url_column": "image"}, {}, []),
        ({"column_names": ["url", "caption"]}, {}, []),
        ({"image": SMALL}, {}, ["ingest.image.size_px=64"]),
        ({"image": {"format": "png"}}, {"image": {"format": "png", "quality": 9}}, []),
        (
            {"image": {"format": "png", "quality": 9}},
            {"image": {"format": "webp"}},
            ['ingest.image.format="png"', "ingest.image.quality=9"],
        ),
        ({"caption": {"min_words": 3}, "image": SMALL}, {}, ["ingest.caption.min_words=3", "ingest.image.size_px=64"]),
    ],
)
def test_options_that_differ_are_named_with_their_values(tmp_path, kept, now, others):
    storage = open_storage(str(tmp_path))
    keep_options(storage, config(**kept))
    assert other_options(storage, [options_fingerprint(config(**kept))], config(**now)) == others


def test_a_data_set_without_the_file_does_not_tell(tmp_path):
    storage = open_storage(str(tmp_path))
    assert other_options(storage, ["0" * 16], config()) is None
    assert other_options(storage, [options_fingerprint(config())], config()) == []


def test_options_are_kept_once_and_can_be_read(tmp_path):
    storage = open_storage(str(tmp_path))
    for _ in range(2):
        keep_options(storage, config(image=SMALL))
    (path,) = (item.path for item in storage.list(f"{FOLDER}/"))
    assert json.loads(storage.read(path))["ingest.image.size_px"] == 64
