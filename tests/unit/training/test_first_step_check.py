"""What a first step would meet: memory that is too small for the batch is found before the step is tried."""

from tests.support.runs import ALONE, config_of
from training.first_step_check import check_first_step
from training.step.micro_batch import _available_bytes

SAMPLE_BYTES = 100e6  # of a tiny ViT on pictures of 1,024 pixels


def test_a_batch_that_does_not_fit_is_found_with_its_remedy(make_data_set, tmp_path):
    batch = int(1.5 * _available_bytes() / SAMPLE_BYTES)
    uri = make_data_set(str(tmp_path / "data"), (batch + 8,))
    large = ("model.image_size_px=1024", f"train.global_batch_size={batch}", "data.block_size_samples=auto")
    (finding,) = check_first_step(config_of(uri, tmp_path, *large), ALONE)
    assert not finding.fine
    assert str(finding).startswith(f"FAIL  memory       train.global_batch_size={batch:,}: ")
    assert "set train.micro_batch_size=auto" in finding.text
    assert not (tmp_path / "debug_cpu").exists()


def test_a_batch_that_fits_is_tried_and_nothing_is_written(data_set, tmp_path):
    memory, step = check_first_step(config_of(data_set, tmp_path), ALONE)
    assert memory.fine
    assert step.fine
    assert "32 samples in" in step.text
    assert not (tmp_path / "debug_cpu").exists()
