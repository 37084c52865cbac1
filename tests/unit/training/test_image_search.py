"""A search finds what was planted, in folders and data sets, whatever their files are called and whichever are broken."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from model.preprocess import eval_pixels
from pipeline.dataset.manifest import read_manifest, read_samples
from pipeline.errors import ConfigError, InputError
from pipeline.storage.address import open_storage
from tests.support.models import random_clip
from training.config import TrainConfig
from training.encoder import Encoder
from training.image_search import DataSetImages, FolderImages, open_images, search


@pytest.fixture(scope="module")
def encoder():
    return Encoder(random_clip("debug-vit"), torch.device("cpu"), TrainConfig())


def image(seed: int) -> bytes:
    """Smooth colours, which models tell apart."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(colours).resize((60, 48), Image.Resampling.BICUBIC).save(sink, "PNG")
    return sink.getvalue()


def query(encoder, data):
    return encoder.encode_pixels(eval_pixels(data, 32)[None])[0]


ODD_NAMES = ("a b.png", "ünï/日本 語.PNG", "semi;colon&amp.jpeg", "new\nline.webp", "#hash %41.gif", "-dash.png")


def test_a_planted_image_is_found_under_any_name(encoder, tmp_path):
    for seed, name in enumerate(ODD_NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(seed))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(image(0))
    images = FolderImages(open_storage(str(tmp_path)))
    assert images.num_images == len(ODD_NAMES)
    for seed, name in enumerate(ODD_NAMES):
        found = search(images, encoder, query(encoder, image(seed)), 2, batch_size=4)
        assert (found.hits[0].key, found.hits[0].address) == (name, str(tmp_path / name))
        assert found.hits[0].score == pytest.approx(1, abs=1e-5)
        assert found.hits[1].score < 0.999
        assert images.read(found.hits[0]) == image(seed)


def test_equal_scores_stand_in_the_order_of_the_images_in_any_batches(encoder, tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(image(number % 3))
    images = FolderImages(open_storage(str(tmp_path)))
    for batch_size in (1, 2, 4, 100):
        found = search(images, encoder, query(encoder, image(1)), 9, batch_size)
        assert [hit.key for hit in found.hits][:3] == ["1.png", "4.png", "7.png"]
        assert len({hit.score for hit in found.hits}) == 3


def test_what_cannot_be_read_is_named_counted_and_never_found(encoder, tmp_path):
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(image(seed))
    (tmp_path / "cut.png").write_bytes(image(1)[:60])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    (tmp_path / "gone.png").symlink_to(tmp_path / "none.png")
    steps = []
    found = search(FolderImages(open_storage(str(tmp_path))), encoder, query(encoder, image(1)), 10, 4, steps.append)
    assert found.num_images == 3
    assert found.hits[0].key == "1.png"
    assert sorted(line.partition(": ")[0] for line in found.problems) == [
        str(tmp_path / name) for name in ("cut.png", "gone.png", "page.jpg")
    ]
    assert steps == [4, 2]


def test_a_folder_without_images_says_what_lies_there_and_what_to_type(tmp_path):
    cases = {"empty": "", "tars": "00000.tar", "tables": "pairs.parquet"}
    for name, file in cases.items():
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_bytes(b"")
    (tmp_path / "one.png").write_bytes(image(0))
    expected = {
        "empty": "holds no image files, and there is no data set; make one with jobs/ingest.py",
        "tars": f"these are tars: make one with jobs/index.py index.input='{tmp_path}/tars' index.output=DATA",
        "tables": f"these are tables: make one with jobs/ingest.py ingest.input='{tmp_path}/tables'",
        "none": "there is no such folder",
        "one.png": "is an image file; name a data set, or a folder of image files",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=f"^{tmp_path}/{name}: .*") as error:
            FolderImages(open_storage(str(tmp_path / name)))
        assert message in str(error.value)


def test_a_sample_of_a_data_set_is_found_with_its_url_and_caption(encoder, data_set):
    storage = open_storage(data_set)
    images = DataSetImages(storage, read_manifest(storage))
    assert images.num_images == 64
    wanted = images.describe(40, 0.0)
    data = images.read(wanted)
    found = search(images, encoder, query(encoder, data), 64, batch_size=10)
    best = [hit for hit in found.hits if hit.score == found.hits[0].score]
    assert wanted.key in [hit.key for hit in best]
    assert (found.num_images, found.problems, len(found.hits)) == (64, [], 64)
    assert wanted.address.startswith("http://e.org/")
    assert wanted.caption.startswith("a ")
    assert len({hit.key for hit in found.hits}) == 64


def test_a_damaged_sample_of_a_data_set_is_named(encoder, make_data_set, tmp_path):
    storage = open_storage(make_data_set(str(tmp_path / "shapes"), (6, 5)))
    manifest = read_manifest(storage)
    tar = storage.local_path(manifest.shards[0].tar_path)
    data = bytearray(tar.read_bytes())
    data[read_samples(storage, manifest.shards[0], ["jpg_offset"])["jpg_offset"][2].as_py() + 30] ^= 1
    tar.write_bytes(data)
    (storage.local_path(manifest.shards[1].tar_path)).unlink()
    found = search(DataSetImages(storage, manifest), encoder, query(encoder, image(1)), 20)
    assert found.num_images == 5
    assert len(found.problems) == 6
    assert "does not match the sha256" in found.problems[0]
    assert all("is gone; restore it" in line for line in found.problems[1:])


def test_a_version_without_samples_and_features_for_a_folder_are_refused(encoder, make_data_set, tmp_path):
    storage = open_storage(make_data_set(str(tmp_path / "empty"), (0,)))
    with pytest.raises(InputError, match="version 1 holds no samples; name a data set that does"):
        open_images(storage, is_data_set=True)
    from tests.unit.pipeline.dataset.test_features import embed

    data = open_storage(make_data_set(str(tmp_path / "shapes"), (6,)))
    output = open_storage(str(tmp_path / "features"))
    embed(data, output, read_manifest(data))
    from pipeline.dataset.features import ImageFeatures

    with pytest.raises(ConfigError, match=r"^--features=.*: only a data set has stored features"):
        open_images(open_storage(str(tmp_path)), is_data_set=False, features=ImageFeatures(output))


def test_names_that_are_not_utf_8_are_searched_too(encoder, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(image(3))
    found = search(FolderImages(open_storage(str(tmp_path))), encoder, query(encoder, image(3)), 1)
    assert found.hits[0].key == name
