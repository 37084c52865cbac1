"""The demo's split leaks nothing, and its figures are what they say."""

import csv
import io

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.cli.config import load_config
from jobs.demo import MARKER, _start_afresh, arguments, job
from jobs.demonstration.drawings import BROKEN, DEAD_LINKS, DUPLICATE_PX, TONES, render_pairs, write_tables
from jobs.demonstration.results import Encoded, measure
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage


@pytest.fixture(scope="module")
def pairs():
    return render_pairs()


def test_no_picture_is_in_two_splits_by_its_pixels(pairs):
    seen = {}
    for pair in pairs:
        image = Image.open(io.BytesIO(pair.png)).convert("RGB")
        pixels = image.resize((DUPLICATE_PX, DUPLICATE_PX), Image.Resampling.BOX).tobytes()
        assert pixels not in seen, f"{pair.caption} looks like {seen[pixels]}"
        seen[pixels] = pair.caption


def test_every_held_out_pair_has_its_concept_and_its_tone_in_training(pairs):
    trained = [pair for pair in pairs if pair.split == "train"]
    concepts, tones = {pair.concept for pair in trained if pair.tone}, {pair.tone for pair in trained}
    held_out = [pair for pair in pairs if pair.split == "heldout"]
    assert len(held_out) > 250
    assert all(pair.concept in concepts and pair.tone in tones for pair in held_out)
    assert len({pair.concept for pair in held_out}) == len(held_out), "one tone of each concept"
    assert {pair.tone for pair in held_out} == set(TONES)
    assert {(pair.concept, pair.tone) for pair in held_out}.isdisjoint((pair.concept, pair.tone) for pair in trained)


def test_no_picture_of_a_held_out_concept_is_in_training(pairs):
    concepts = {pair.concept for pair in pairs if pair.split == "concepts"}
    assert len(concepts) > 50
    assert concepts.isdisjoint(pair.concept for pair in pairs if pair.split != "concepts")


def test_the_split_is_the_same_every_time_and_captions_are_names(pairs):
    captions = {pair.caption for pair in pairs}
    assert {"crossed swords", "Brazil", "man dancing medium skin tone"} <= captions
    assert not any(":" in caption or "_" in caption for caption in captions)
    few = render_pairs(max_concepts=3)
    assert few == render_pairs(max_concepts=3)
    assert len({pair.concept for pair in few if pair.tone}) == 3


def test_the_training_table_has_dead_links_and_broken_files(pairs, tmp_path):
    tables = write_tables(pairs, "http://127.0.0.1:1234", tmp_path)
    rows = {split: pq.read_table(table).to_pylist() for split, table in tables.items()}
    assert len(rows["train"]) == sum(pair.split == "train" for pair in pairs) + len(BROKEN) + 3 + len(DEAD_LINKS) + 1
    assert len(rows["heldout"]) == sum(pair.split == "heldout" for pair in pairs)
    assert set(rows["heldout"][0]) == {"url", "caption", "concept", "tone"}


def test_pictures_for_another_web_server_are_those_of_the_table_and_nothing_else_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = ["--concepts", "3", "--pictures-only", "pictures", "--served-at", "http://127.0.0.1:1234/"]
    job(load_config("demo"), arguments().parse_args(told))
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    with (tmp_path / "pictures" / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = render_pairs(3)
    trained = [pair for pair in pairs if pair.split == "train"]
    assert [row["caption"] for row in rows[: len(trained)]] == [pair.caption for pair in trained]
    assert len(rows) == len(trained) + len(BROKEN) + 3 + len(DEAD_LINKS) + 1
    names = [row["url"].removeprefix("http://127.0.0.1:1234/") for row in rows[: len(trained)]]
    assert [(tmp_path / "pictures" / name).read_bytes() for name in names] == [pair.png for pair in trained]
    assert (tmp_path / "pictures" / "html.png").read_bytes().startswith(b"<!doctype html>")
    assert not (tmp_path / "pictures" / "gone-1.png").exists()


def test_figures_of_a_tone_blind_model_are_its_baseline():
    concepts, tones = 40, TONES
    places = [(concept, tone) for concept in range(concepts) for tone in tones]
    images = torch.zeros(len(places), concepts)
    for at, (concept, _) in enumerate(places):
        images[at, concept] = 1
    texts = images + 1e-3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    encoded = Encoded(
        images,
        texts,
        split=["heldout" if tone == tones[concept % 5] else "train" for concept, tone in places],
        index=list(range(len(places))),
        caption=["" for _ in places],
        concept=[str(concept) for concept, _ in places],
        tone=[tone for _, tone in places],
    )
    rows = list(measure(encoded).rows.values())
    assert len(rows) == 2
    _, to_image, chance, blind = rows[0]
    assert chance == pytest.approx(1 / 200)
    assert blind == pytest.approx(0.2)
    assert to_image == 0.0, "equal scores within a concept are no hit"
    perfect = Encoded(torch.eye(200), torch.eye(200), *(getattr(encoded, name) for name in PLACES))
    assert all(row[:2] == (1.0, 1.0) for row in measure(perfect).rows.values())


PLACES = ("split", "index", "caption", "concept", "tone")


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    storage = open_storage(str(tmp_path / "mine"))
    storage.write("precious", b"1")
    with pytest.raises(ConfigError, match="not from an earlier demo"):
        _start_afresh(storage)
    assert storage.read("precious") == b"1"
    storage.write(MARKER, b"")
    _start_afresh(storage)
    assert [item.path for item in storage.list("")] == [MARKER]
