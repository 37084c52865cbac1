"""Embedding on a real Ray: the same features as in evaluation, only missing shards, and curation by the scores."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import curate, embed
from jobs.cli.command_line import run
from model.clip import build_clip
from model.weights import save_weights
from pipeline.dataset.manifest import read_manifest, read_samples
from pipeline.storage.address import open_storage
from training.distributed import World
from training.evaluation.runner import encode_data_set

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of a small ViT."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    save_weights(build_clip("debug-vit"), path)
    return path


def command(weights, data, output, *more):
    settings = ["--weights", str(weights), "model.name=debug-vit", f"embed.data={data}", f"embed.output={output}"]
    return run(embed.arguments(), embed.job, [*settings, "embed.dtype=float32", "embed.batch_size=8", *more])


def expected(weights, data):
    """(image_features, text_features) of the data set, as evaluation computes them."""
    clip = build_clip("debug-vit").eval()
    from safetensors.torch import load_file

    clip.load_state_dict(load_file(weights))
    images, texts, _ = encode_data_set(clip, data, 16, World(0, 1, torch.device("cpu")))
    return images.numpy(), texts.numpy()


def rows_of(output):
    """All rows, in the order of the files in the record."""
    record = json.loads(output.read("embedding.json"))
    return [row for file in record["files"] for row in pq.read_table(output.local_path(file)).to_pylist()]


def check_features(output, weights, data):
    images, texts = expected(weights, data)
    rows, storage = rows_of(output), open_storage(data)
    keys = [key for shard in read_manifest(storage).shards for key in read_samples(storage, shard, ["key"])["key"].to_pylist()]
    assert [row["key"] for row in rows] == keys
    np.testing.assert_allclose([row["image_features"] for row in rows], images, atol=1e-5)
    np.testing.assert_allclose([row["text_features"] for row in rows], texts, atol=1e-5)
    np.testing.assert_allclose([row["clip_score"] for row in rows], np.einsum("ne,ne->n", images, texts), atol=1e-5)
    return {key: row["clip_score"] for key, row in zip(keys, rows, strict=True)}


def test_a_data_set_is_embedded_on_two_actors_resumed_and_curated_by_score(make_data_set, weights, tmp_path, capsys):
    data, output = make_data_set(str(tmp_path / "shapes"), (20, 13, 0, 31, 6), seed=7), open_storage(str(tmp_path / "features"))
    assert command(weights, data, output.uri, "embed.num_workers=2") == 0
    assert "70 samples in 4 shards, in " in capsys.readouterr().out
    scores = check_features(output, weights, data)
    record = json.loads(output.read("embedding.json"))
    assert record["data"] == {"uri": data, "version": 1, "identity": read_manifest(open_storage(data)).identity}
    assert record["model"]["address"] == str(weights)
    assert len(record["model"]["weights_sha256"]) == 64
    assert (record["dtype"], record["embed_dim"]) == ("float32", 32)

    written = {path: output.local_path(path).stat().st_mtime_ns for path in record["files"]}
    removed = record["files"][1:3]
    for path in removed:
        output.delete(path)
    assert command(weights, data, output.uri, "embed.num_workers=[1, 2]") == 0
    assert "44 samples in 2 shards, in " in capsys.readouterr().out
    again = {path: output.local_path(path).stat().st_mtime_ns for path in record["files"]}
    assert [path for path in written if again[path] != written[path]] == removed
    assert check_features(output, weights, data) == pytest.approx(scores)

    threshold = sorted(scores.values())[40]
    choice = [f"curate.data={data}", f"curate.scores={output.uri}", f"curate.where=clip_score > {threshold!r}"]
    assert run(curate.arguments(), curate.job, choice) == 0
    assert "29 samples in version 2" in capsys.readouterr().out
    storage = open_storage(data)
    kept = [key for one in read_manifest(storage).shards for key in read_samples(storage, one, ["key"])["key"].to_pylist()]
    assert kept == [key for key, score in scores.items() if score > threshold]

    make_data_set(data, (9,), seed=9)  # version 3, on top of the selection
    assert command(weights, data, output.uri, "embed.num_workers=1") == 0
    assert "9 samples in 1 shards, in " in capsys.readouterr().out, "the samples added since"
    assert json.loads(output.read("embedding.json"))["data"]["version"] == 3


def our_processes(words):
    """Process ids of this process's descendants whose command line contains `words`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (parent, (folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue  # it has ended

    def is_ours(pid):
        return pid == os.getpid() or (pid in found and is_ours(found[pid][0]))

    return [pid for pid, (_, line) in found.items() if words in line and is_ours(pid)]


@pytest.mark.soak
def test_a_killed_actor_loses_its_current_shard_and_nothing_else(make_data_set, weights, tmp_path, capfd):
    """Kill embedding actors one after another while shards are in flight."""
    data, output = make_data_set(str(tmp_path / "shapes"), (24,) * 40, seed=8), open_storage(str(tmp_path / "features"))
    codes, killed = [], set()
    settings = ("embed.num_workers=2", "embed.batch_size=1")
    job = threading.Thread(target=lambda: codes.append(command(weights, data, output.uri, *settings)))
    job.start()
    while job.is_alive():
        done = len(list(output.list("features/")))
        if len(killed) < 3 and done > 8 * len(killed):
            for actor in [pid for pid in our_processes("_EmbedActor") if pid not in killed][:1]:
                os.kill(actor, signal.SIGKILL)
                killed.add(actor)
        time.sleep(0.02)
    job.join()
    assert codes == [0]
    assert len(killed) == 3
    check_features(output, weights, data)
