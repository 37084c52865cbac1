"""The probe: the same few pairs always, a brute-force look at them, and no run that ends by it."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model.clip import build_clip
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from tests.support.runs import ALONE, config_of
from training.data.data_sets import DataSet
from training.evaluation.watched_pair_images import CELL_PX, TILE_PX, draw_found, draw_similarity
from training.evaluation.watched_pairs import NUM_PAIRS, Probe, compare, evenly, spread
from training.record.tracking import read_metrics
from training.trainer import train


def probe_of(uri, tmp_path, *overrides):
    storage = open_storage(uri)
    return Probe(config_of(uri, tmp_path, *overrides), [DataSet(storage, read_manifest(storage))], ALONE)


def test_pairs_are_spread_over_the_data_set_and_over_few_of_its_shards():
    assert spread([3, 0, 2], 64) == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    pairs = spread([1000] * 40, 64)
    assert len(pairs) == 64
    assert pairs == sorted(set(pairs))
    assert [shard for shard, _ in pairs[::8]] == list(range(0, 40, 5)), "eight sidecars are read, not forty"
    assert [position for _, position in pairs[:8]] == list(range(0, 1000, 125))
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly([], 3) == []


def test_a_look_equals_brute_force_and_a_number_that_is_none_is_no_hit():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(20, 4, generator=generator), dim=-1) for _ in range(2))
    look = compare(images, texts, shown=[0, 7], queries=[3, 11])
    assert look.similarity == [[pytest.approx(float(images[a] @ texts[b]), abs=1e-4) for b in (0, 7)] for a in (0, 7)]
    for query, found, rank in zip([3, 11], look.found, look.rank, strict=True):
        scores = [float(texts[query] @ image) for image in images]
        assert found == sorted(range(20), key=lambda place: -scores[place])[:5]
        assert rank == sum(score > scores[query] for score in scores)
    broken = compare(images * torch.nan, texts, [0, 7], [3])
    assert broken.similarity == [[None, None], [None, None]]
    assert broken.rank == [19]


def test_the_probe_looks_at_what_is_evaluated_else_at_what_is_trained_on(data_set, make_data_set, tmp_path):
    held_out = make_data_set(str(tmp_path / "held_out"), (90, 5), seed=5)
    torch.manual_seed(0)
    clip = build_clip("debug-vit").eval()
    trained_on, evaluated_on = (
        probe_of(data_set, tmp_path),
        probe_of(data_set, tmp_path, f"evaluation.retrieval_uri={held_out}"),
    )
    look = trained_on.look(clip)
    assert (trained_on.pairs.uri, trained_on.pairs.held_out) == (data_set, False)
    assert trained_on.look(clip) == look, "it changes nothing and is drawn no other time"
    evaluated_on.look(clip)
    assert (evaluated_on.pairs.uri, evaluated_on.pairs.held_out) == (held_out, True)
    assert len(evaluated_on.pairs.captions) == NUM_PAIRS
    assert len(set(evaluated_on.pairs.keys)) == NUM_PAIRS
    assert (len(look.similarity), len(look.found), len(look.found[0])) == (16, 8, 5)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(evaluated_on.pairs.thumbnails[0])))
    assert thumbnail.size == (40, 40)


def test_a_probe_that_cannot_be_read_is_left_out_and_the_run_is_the_same(data_set, make_data_set, tmp_path, caplog):
    held_out = make_data_set(str(tmp_path / "held_out"), (20,), seed=5)
    probe = probe_of(data_set, tmp_path, f"evaluation.retrieval_uri={held_out}")
    clip = build_clip("debug-vit").eval()
    sidecars = {path: path.read_bytes() for path in (tmp_path / "held_out" / "shards").glob("*.parquet")}
    for sidecar in sidecars:
        sidecar.unlink()
    assert probe.look(clip) is None
    assert "the probe is left out: there are no pairs" in caplog.text
    for sidecar, content in sidecars.items():
        sidecar.write_bytes(content)
    look = probe.look(clip)
    assert look is not None, "it is tried again"
    shutil.rmtree(tmp_path / "held_out")
    assert probe.look(clip) == look, "what was read is kept"
    elsewhere = probe_of(data_set, tmp_path, f"evaluation.retrieval_uri={held_out}")
    assert elsewhere.look(clip) is not None
    assert not elsewhere.pairs.held_out, "where no data set of ours is evaluated on, it looks at what is trained on"


def test_a_run_records_its_looks_and_goes_on_where_they_cannot_be_written(data_set, tmp_path, caplog):
    overrides = (f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=5")
    train(config_of(data_set, tmp_path, *overrides), ALONE)
    folder = tmp_path / "debug_cpu"
    looks = read_metrics(folder / "probe.jsonl")
    assert [look["step"] for look in looks] == [5, 10, 12]
    assert json.loads((folder / "probe.json").read_text())["held_out"] is True
    (tmp_path / "full" / "debug_cpu" / "probe.json").mkdir(parents=True)
    result = train(config_of(data_set, tmp_path / "full", *overrides), ALONE)
    assert result.finished
    assert caplog.text.count("the watched pairs of step") == 3


def test_pictures_for_the_tracker_have_the_colours_of_their_numbers():
    picture = np.asarray(draw_similarity([[0.1, 0.9], [None, 0.5]]))
    assert picture.shape == (2 * CELL_PX, 2 * CELL_PX, 3)
    darkest, brightest, none, middle = (picture[y, x].tolist() for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)))
    assert sum(darkest) < sum(middle) < sum(brightest)
    assert none == [128, 128, 128]
    draw_similarity([[None]])
    file = io.BytesIO()
    Image.new("RGB", (96, 60), (200, 0, 0)).save(file, "JPEG")
    pairs = {"captions": ["a", "b"], "thumbnails": [base64.b64encode(file.getvalue()).decode()] * 2, "queries": [1]}
    ((strip, words),) = draw_found(pairs, {"found": [[0, 1]], "rank": [1]})
    assert words == "b (its own picture is number 2 of 2)"
    assert strip.size == (2 * TILE_PX, TILE_PX)
    assert strip.getpixel((TILE_PX, 0)) == (45, 164, 78)
    assert strip.getpixel((0, 0)) != strip.getpixel((TILE_PX, 0))
