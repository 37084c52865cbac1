"""Versions and products of the machine; test_qualify.py runs the sections."""

import torch

from jobs.qualification.machine import products, versions
from jobs.qualification.scale import Scale

TINY = Scale("cpu", tiny=True)


def test_the_versions_are_those_that_run():
    found = {figure.name: figure.value for figure in versions(TINY)}
    assert found["torch"] == torch.__version__
    assert found["card"] == "cpu"
    assert found["CPUs"] >= 1


def test_rates_are_positive_and_tf32_is_set_for_its_own_product_only(monkeypatch):
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        figures = list(products(TINY))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert all(figure.value > 0 for figure in figures)
    assert [figure.name for figure in figures][-2:] == ["the loss's product, float32", "the loss's product, TF32"]
