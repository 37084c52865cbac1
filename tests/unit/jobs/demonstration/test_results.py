"""The demo's figures are what they say."""

import pytest
import torch

from jobs.demonstration.drawings import TONES
from jobs.demonstration.results import Encoded, Figures, draw_curves, measure


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


def test_the_table_and_the_file_hold_the_same_figures():
    figures = Figures({"tone": (0.5, 0.25, 0.2, None)})
    assert figures.as_dict() == {"tone": {"image_to_text": 0.5, "text_to_image": 0.25, "chance": 0.2, "tone_blind": None}}
    assert figures.table().splitlines()[1].split() == ["tone", "50.0%", "25.0%", "20.0%", "-"]


def test_curves_become_an_image_file(tmp_path):
    rows = [{"step": step, "loss": 1.0 / step, "temperature": 0.07, "learning_rate": 1e-3} for step in (1, 2, 3)]
    draw_curves([*rows, {"step": 3, "evaluation/r1": 0.5}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
