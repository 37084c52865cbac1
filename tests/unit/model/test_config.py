"""Every number of the published table, counted on the meta device."""

import pytest
import torch

from model.clip import build_clip
from model.config import ARCHITECTURES, PUBLISHED, get_architecture

# name: parameters in all, of the visual tower, of the text side; batch-norm buffers; state-dict keys
COUNTS = {
    "RN50": (102_007_137, 38_316_896, 63_690_240, 53_303, 489),
    "RN101": (119_688_033, 56_259_936, 63_428_096, 105_578, 795),
    "RN50x4": (178_300_601, 87_137_080, 91_163_520, 109_845, 669),
    "RN50x16": (290_979_217, 167_328_912, 123_650_304, 194_047, 921),
    "RN50x64": (623_258_305, 420_380_352, 202_877_952, 410_823, 1353),
    "ViT-B/32": (151_277_313, 87_849_216, 63_428_096, 0, 302),
    "ViT-B/16": (149_620_737, 86_192_640, 63_428_096, 0, 302),
    "ViT-L/14": (427_616_513, 303_966_208, 123_650_304, 0, 446),
    "ViT-L/14@336px": (427_944_193, 304_293_888, 123_650_304, 0, 446),
}
HEADS = {"RN50": 32, "RN50x4": 40, "RN50x16": 48, "RN50x64": 64, "ViT-B/32": 12, "ViT-L/14": 16}
POSITIONS = {"ViT-B/32": 50, "ViT-B/16": 197, "ViT-L/14": 257, "ViT-L/14@336px": 577}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_buffers_and_keys_are_the_published_ones(name):
    with torch.device("meta"):
        clip = build_clip(name)
    visual = sum(parameter.numel() for parameter in clip.visual.parameters())
    total = sum(parameter.numel() for parameter in clip.parameters())
    buffers = sum(buffer.numel() for buffer in clip.buffers())
    assert (total, visual, total - visual - 1, buffers, len(clip.state_dict())) == COUNTS[name]


def test_the_nine_of_the_paper_are_in_the_table():
    assert set(PUBLISHED) == set(COUNTS)


@pytest.mark.parametrize("name", HEADS)
def test_heads_follow_the_width(name):
    assert get_architecture(name).vision_heads == HEADS[name]


@pytest.mark.parametrize("name", POSITIONS)
def test_position_tables_have_a_row_for_every_patch_and_the_class_token(name):
    with torch.device("meta"):
        assert len(build_clip(name).visual.positional_embedding) == POSITIONS[name]


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean ViT-B/32"):
        get_architecture("ViT-B-32")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_fits_the_published_vocabulary(name):
    assert get_architecture(name).vocab_size == 49_408
