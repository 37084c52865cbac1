"""The watched pairs: always the same few, similarities equal to brute force, and no run that ends because of them."""

import base64
import io
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model.clip import build_clip
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.runs import ALONE, config_of
from training.data.data_sets import DataSet
from training.evaluation.watched_pairs import NUM_PAIRS, PairWatcher, compare, evenly, spread
from training.record.tracking import read_metrics
from training.trainer import train


def watcher_of(uri, tmp_path, *overrides):
    storage = open_storage(uri)
    return PairWatcher(config_of(uri, tmp_path, *overrides), [DataSet(storage, read_manifest(storage))], ALONE)


def test_pairs_are_spread_over_the_data_set_and_over_few_of_its_shards():
    assert spread([3, 0, 2], 64) == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    pairs = spread([1000] * 40, 64)
    assert len(pairs) == 64
    assert pairs == sorted(set(pairs))
    assert [shard for shard, _ in pairs[::8]] == list(range(0, 40, 5)), "eight sidecars are read, not forty"
    assert [position for _, position in pairs[:8]] == list(range(0, 1000, 125))
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly([], 3) == []


def test_similarities_equal_brute_force_and_a_nan_score_is_no_hit():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(20, 4, generator=generator), dim=-1) for _ in range(2))
    similarities = compare(images, texts, shown=[0, 7], queries=[3, 11])
    assert similarities.similarity == [[pytest.approx(float(images[a] @ texts[b]), abs=1e-4) for b in (0, 7)] for a in (0, 7)]
    for query, found, rank in zip([3, 11], similarities.found, similarities.rank, strict=True):
        scores = [float(texts[query] @ image) for image in images]
        assert found == sorted(range(20), key=lambda place: -scores[place])[:5]
        assert rank == sum(score > scores[query] for score in scores)
    broken = compare(images * torch.nan, texts, [0, 7], [3])
    assert broken.similarity == [[None, None], [None, None]]
    assert broken.rank == [19]


def test_the_pairs_are_of_the_evaluated_data_set_or_else_of_the_training_one(data_set, make_data_set, tmp_path):
    held_out = make_data_set(str(tmp_path / "held_out"), (90, 5), seed=5)
    torch.manual_seed(0)
    clip = build_clip("debug-vit").eval()
    trained_on, evaluated_on = (
        watcher_of(data_set, tmp_path),
        watcher_of(data_set, tmp_path, f"evaluation.retrieval_uri={held_out}"),
    )
    similarities = trained_on.measure(clip)
    assert (trained_on.pairs.uri, trained_on.pairs.held_out) == (data_set, False)
    assert trained_on.measure(clip) == similarities, "the second time measures the same pairs"
    evaluated_on.measure(clip)
    assert (evaluated_on.pairs.uri, evaluated_on.pairs.held_out) == (held_out, True)
    assert len(evaluated_on.pairs.captions) == NUM_PAIRS
    assert len(set(evaluated_on.pairs.keys)) == NUM_PAIRS
    assert (len(similarities.similarity), len(similarities.found), len(similarities.found[0])) == (16, 8, 5)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(evaluated_on.pairs.thumbnails[0])))
    assert thumbnail.size == (40, 40)


def test_pairs_that_cannot_be_read_are_skipped_and_tried_again(data_set, make_data_set, tmp_path, caplog):
    held_out = make_data_set(str(tmp_path / "held_out"), (20,), seed=5)
    watcher = watcher_of(data_set, tmp_path, f"evaluation.retrieval_uri={held_out}")
    clip = build_clip("debug-vit").eval()
    sidecars = {path: path.read_bytes() for path in (tmp_path / "held_out" / "shards").glob("*.parquet")}
    for sidecar in sidecars:
        sidecar.unlink()
    assert watcher.measure(clip) is None
    assert "the watched pairs are skipped: there are no pairs" in caplog.text
    for sidecar, content in sidecars.items():
        sidecar.write_bytes(content)
    similarities = watcher.measure(clip)
    assert similarities is not None, "it is tried again"
    shutil.rmtree(tmp_path / "held_out")
    assert watcher.measure(clip) == similarities, "what was read is kept"
    elsewhere = watcher_of(data_set, tmp_path, f"evaluation.retrieval_uri={held_out}")
    assert elsewhere.measure(clip) is not None
    assert not elsewhere.pairs.held_out, "without a data set to evaluate on, the pairs are of the training one"


def test_a_run_records_the_similarities_and_continues_if_they_cannot_be_written(data_set, tmp_path, caplog):
    overrides = (f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=5")
    train(config_of(data_set, tmp_path, *overrides), ALONE)
    folder = tmp_path / "debug_cpu"
    rows = read_metrics(folder / "probe.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert json.loads((folder / "probe.json").read_text())["held_out"] is True
    (tmp_path / "full" / "debug_cpu" / "probe.json").mkdir(parents=True)
    result = train(config_of(data_set, tmp_path / "full", *overrides), ALONE)
    assert result.finished
    assert caplog.text.count("the watched pairs of step") == 3
