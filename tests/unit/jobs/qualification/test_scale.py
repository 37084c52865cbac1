"""Sizes by scale."""

import torch

from jobs.qualification.scale import Scale


def test_tiny_takes_the_second_size():
    assert Scale("cpu").size(4096, 8) == 4096
    assert Scale("cpu", tiny=True).size(4096, 8) == 8
    assert (Scale("cuda").model, Scale("cuda").precision) == ("ViT-B/32", "bfloat16")
    assert (Scale("cpu", tiny=True).model, Scale("cpu").precision) == ("debug-vit", "float32")


def test_the_card_of_a_cpu_is_cpu():
    assert Scale("cpu").card == "cpu"
    assert Scale("cpu").torch_device == torch.device("cpu")
