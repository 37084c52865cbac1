"""A model, images and image sets that the tests of evaluation share; figures of several world sizes."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.clip import build_clip
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support import evaluation_worker as worker
from tests.support.evaluation_sets import convert, write_benchmark
from tests.support.runs import ALONE
from training.data.shard_reader import ShardReader

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def clip():
    torch.manual_seed(3)
    return build_clip("debug-vit").eval()


@pytest.fixture(scope="session")
def drawn_images(draw_shape):
    """(image, number of its class), 48 of them in no order."""
    colours, shapes = ("red", "green", "blue", "yellow"), ("disc", "square", "bar", "ring")
    drawn = [(draw_shape(colours[place % 4], shapes[place * 7 % 4], place), place * 5 % 6) for place in range(48)]
    return [(convert(image, ("webp", "png", "jpg")[place % 3]), label) for place, (image, label) in enumerate(drawn)]


@pytest.fixture
def benchmark(tmp_path, drawn_images):
    return write_benchmark(
        tmp_path / "wds_shapes", [{extension: image, "cls": str(label).encode()} for (extension, image), label in drawn_images]
    )


@pytest.fixture
def as_folders(data_set, tmp_path):
    """The images of a data set of ours, in a folder for each class; a hidden folder and a note among them."""
    storage = open_storage(data_set)
    manifest = read_manifest(storage)
    reader, number = ShardReader(storage, manifest), 0
    for shard, record in enumerate(manifest.shards):
        shapes = reader.columns(shard, ["shape"])["shape"].to_pylist()
        for sample, shape in zip(reader.read(shard, 0, record.num_samples), shapes, strict=True):
            folder = tmp_path / "folders" / shape
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:04d}.PNG").write_bytes(sample.image)
            number += 1
    (tmp_path / "folders" / ".cache").mkdir()
    (tmp_path / "folders" / ".cache" / "0.png").write_bytes(b"")
    (tmp_path / "folders" / "README.md").write_text("shapes")
    return str(tmp_path / "folders")


@pytest.fixture
def one_thread():
    """Features to the last bit: the number of threads changes how a batch is rounded."""
    with threads(1):
        yield


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def results(data_set, tmp_path_factory):
    """World size -> the figures and ranks of its rank 0."""
    folder = tmp_path_factory.mktemp("evaluation")
    probe = {"train_uri": data_set, "test_uri": data_set, "label_column": "shape"}
    zero_shot = {"uri": data_set, "label_column": "shape", "templates": ["a {}", "drawn: {c}", "{}"]}
    config = {"batch_size": 10, "retrieval_uri": data_set, "zero_shot": zero_shot, "linear_probe": probe}
    (folder / "evaluation.json").write_text(json.dumps(config))
    found = {1: {name: worker.ranks_of(name, ALONE) for name in worker.NAMES}}
    with threads(1):
        found[1]["evaluated"] = worker.evaluated(folder, ALONE)
    command = [sys.executable, "-m", "tests.support.evaluation_worker", str(folder), "2", "3"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=220)
    found |= {size: torch.load(folder / f"results-{size}.pt", weights_only=True) for size in (2, 3)}
    return found
