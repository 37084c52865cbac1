"""Sizes by scale."""

import pytest
import torch

from jobs.qualification.scale import Scale


def test_tiny_takes_the_second_size():
    assert Scale("cpu").size(4096, 8) == 4096
    assert Scale("cpu", tiny=True).size(4096, 8) == 8
    assert Scale("cuda").model == "ViT-B/32"
    assert (Scale("cpu", tiny=True).model, Scale("cpu").precision) == ("debug-vit", "float32")


@pytest.mark.parametrize(("has_it", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_card_without_bfloat16_is_measured_in_float32(monkeypatch, has_it, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert Scale("cuda").precision == precision


def test_the_card_of_a_cpu_is_cpu():
    assert Scale("cpu").card == "cpu"
    assert Scale("cpu").torch_device == torch.device("cpu")
