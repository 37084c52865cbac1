"""The search for the largest micro-batch, with steps that run out of memory; test_qualify.py runs the sections."""

import pytest
import torch

from jobs.qualification import memory_fit
from jobs.qualification.judgement import SkipError
from jobs.qualification.scale import Scale

TINY = Scale("cpu", tiny=True)


@pytest.mark.parametrize(
    ("chosen", "fits", "verdict"), [(300, 320, "met"), (200, 320, "missed"), (400, 320, "missed"), (3, 0, "missed")]
)
def test_the_largest_that_fits_is_found_by_trial(monkeypatch, chosen, fits, verdict):
    tried = []

    def peak_bytes(setting, _batches):
        tried.append(setting.micro_batch_size)
        if setting.micro_batch_size > fits:
            raise torch.OutOfMemoryError
        return 0

    monkeypatch.setattr(memory_fit, "fitting_micro_batch", lambda _setting: chosen)
    monkeypatch.setattr(memory_fit, "ReadyBatches", lambda *_, **__: None)
    monkeypatch.setattr(memory_fit, "_peak_bytes", peak_bytes)
    figures = list(memory_fit._largest_that_fits(Scale("cpu"), 12))
    assert figures[0].value == chosen
    assert fits * 0.95 <= figures[1].value <= fits
    assert len(tried) < 20
    assert figures[2].verdict("cuda: any") == verdict


def test_the_allocator_is_measured_on_cuda_alone():
    with pytest.raises(SkipError):
        next(memory_fit.allocator(TINY))


def test_no_memory_is_occupied_on_a_cpu():
    with memory_fit.only_free(TINY, 1):
        memory_fit.free_memory()


def test_a_batch_is_halved_until_auto_takes_the_whole_of_it(monkeypatch):
    monkeypatch.setattr(memory_fit, "fitting_micro_batch", lambda setting: 300 if setting.batch_size > 300 else None)
    assert memory_fit.whole_batch(TINY, "debug-vit", 1024).batch_size == 256


@pytest.mark.parametrize(("free_gib", "sizes"), [(139.5, [8, 12]), (11.18, [8, 11.1]), (7.65, [7.6])])
def test_a_card_with_less_memory_is_measured_with_what_it_has(monkeypatch, free_gib, sizes):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_gib * 2**30), 0))
    assert memory_fit.sizes_gib(Scale("cuda"), 8, 12) == sizes
