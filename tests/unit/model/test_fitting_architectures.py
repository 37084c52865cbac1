"""Shapes tell the architecture, but not the image size."""

import torch

from model.clip import CLIP
from model.config import ARCHITECTURES
from model.fitting_architectures import fitting_architectures


def state_of(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return CLIP(ARCHITECTURES[name]).state_dict()


def test_an_architecture_is_known_by_its_shapes():
    for name in ("debug-vit", "debug-rn", "demo"):
        assert fitting_architectures(state_of(name)) == (name,)
    assert fitting_architectures(state_of("ViT-L/14")) == ("ViT-L/14", "ViT-L/14@336px")


def test_shapes_of_no_row_fit_none():
    state = state_of("debug-vit")
    assert fitting_architectures(state | {"token_embedding.weight": torch.ones(7, 64)}) == ()
    assert fitting_architectures({}) == ()
    del state["visual.conv1.weight"]
    assert fitting_architectures(state) == ()


def test_shapes_of_another_rank_fit_none():
    state = state_of("debug-vit")
    for key in ("text_projection", "positional_embedding", "visual.conv1.weight", "token_embedding.weight"):
        assert fitting_architectures(state | {key: torch.ones(())}) == ()
