"""Tells from the shapes of weights which architectures of model/config.py they are of.

In: a state dict with the published keys. Out: names; none if no row fits or the shapes do not tell.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from model.config import ARCHITECTURES

_STAGE = re.compile(r"visual\.layer([1-4])\.(\d+)\.")
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.")


def fitting_architectures(state: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the rows that have the shapes of these weights, at any image size."""
    try:
        facts = _facts(state)
    except (KeyError, IndexError, ValueError):
        return ()
    return tuple(name for name, row in ARCHITECTURES.items() if all(getattr(row, key) == one for key, one in facts.items()))


def _facts(state: dict[str, Tensor]) -> dict[str, Any]:
    """Fields of `Architecture` that shapes tell."""
    conv = state["visual.conv1.weight"].shape
    stages: dict[str, int] = {}
    blocks = {"": 0, "visual.": 0}
    for key in state:
        stage, block = _STAGE.match(key), _BLOCK.match(key)
        if stage is not None:
            stages[stage[1]] = max(stages[stage[1]] if stage[1] in stages else 0, int(stage[2]) + 1)
        if block is not None:
            tower = block[1] or ""
            blocks[tower] = max(blocks[tower], int(block[2]) + 1)
    embed_dim = state["text_projection"].shape[1]
    context_length, text_width = state["positional_embedding"].shape
    vision: dict[str, Any] = {"vision_layers": blocks["visual."], "vision_width": conv[0], "patch_size_px": conv[-1]}
    if stages:
        layers = tuple(stages[stage] for stage in "1234")
        vision = {"vision_layers": layers, "vision_width": 2 * conv[0], "patch_size_px": None}
    return {
        **vision,
        "embed_dim": embed_dim,
        "text_layers": blocks[""],
        "text_width": text_width,
        "context_length": context_length,
        "vocab_size": state["token_embedding.weight"].shape[0],
    }
