"""The demo's split leaks nothing."""

import io
import urllib.request

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demonstration.drawings import DUPLICATE_PX, NUM_BROKEN, TONES, render_pairs, serve, write_tables


@pytest.fixture(scope="module")
def pairs():
    return render_pairs()


def test_no_image_is_in_two_splits_by_its_pixels(pairs):
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


def test_no_image_of_a_held_out_concept_is_in_training(pairs):
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
    assert len(rows["train"]) == sum(pair.split == "train" for pair in pairs) + NUM_BROKEN
    assert len(rows["heldout"]) == sum(pair.split == "heldout" for pair in pairs)
    assert set(rows["heldout"][0]) == {"url", "caption", "concept", "tone"}


def test_the_server_has_every_image_and_the_broken_files(pairs):
    with serve(pairs[:2]) as address:
        for pair in pairs[:2]:
            with urllib.request.urlopen(f"{address}/{pair.name}.png") as answer:
                assert answer.read() == pair.png
        with urllib.request.urlopen(f"{address}/empty.png") as answer:
            assert answer.read() == b""
