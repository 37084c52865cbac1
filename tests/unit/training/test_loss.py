"""The tiled, distributed loss equals one process with the full matrix, in value and in every gradient."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from training.distributed import World, slice_bounds
from training.loss import contrastive_loss, sigmoid_loss

SCRIPT = Path(__file__).parents[2] / "support" / "loss_worker.py"
ALONE = World(rank=0, world_size=1, device=torch.device("cpu"))

specification = importlib.util.spec_from_file_location("loss_worker", SCRIPT)
loss_worker = importlib.util.module_from_spec(specification)
specification.loader.exec_module(loss_worker)


def full_matrix_sigmoid_loss(image_features, text_features, scale, bias):
    """SigLIP's pseudo-code, on all pairs at once."""
    logits = scale * image_features @ text_features.T + bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def full_matrix_loss(image_features, text_features, scale):
    """The paper's pseudo-code, on all pairs at once."""
    logits = scale * image_features @ text_features.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """World size -> what its rank 0 stored."""
    return run_workers(tmp_path_factory.mktemp("loss"))


def run_workers(folder, *options):
    command = [sys.executable, "-m", "tests.support.loss_worker", str(folder), *options]
    subprocess.run(command, cwd=SCRIPT.parents[2], check=True, timeout=220)
    return {size: torch.load(folder / f"results-{size}.pt", weights_only=True) for size in loss_worker.WORLD_SIZES}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("case", loss_worker.CASES)
def test_loss_and_every_gradient_equal_one_process_with_the_global_batch(results, world_size, case):
    check_against_one_process(loss_worker.CASES[case], results[world_size][case])


@pytest.mark.soak
def test_large_batches_equal_one_process_too(tmp_path):
    for world_size, cases in run_workers(tmp_path, "large").items():
        for case, asked in loss_worker.LARGE_CASES.items():
            print(world_size, case)
            check_against_one_process(asked, cases[case])


def check_against_one_process(asked, found):
    model = loss_worker.Towers(asked.loss, asked.frozen)
    image_features, text_features, scale, *_ = model(*loss_worker.batch(asked.size))
    if asked.loss == "sigmoid":
        expected = full_matrix_sigmoid_loss(image_features, text_features, scale, model.logit_bias)
    else:
        expected = full_matrix_loss(image_features, text_features, scale)
    expected.backward()
    torch.testing.assert_close(found["loss"], expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["mean of the ranks' losses"], expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["features"], image_features.detach(), rtol=0, atol=1e-12)
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found["gradients"]) == set(names)
    for name, parameter in names.items():
        assert float(parameter.grad.abs().max()) > 1e-6, f"{name} has a gradient to compare"
        torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", ["even", "cached, uneven", "sigmoid"])
def test_a_step_moves_features_once_around_and_gradients_once_around(results, world_size, case):
    asked = loss_worker.CASES[case]
    towers = 1 if asked.loss == "sigmoid" else 2  # SigLIP's images stay where they are
    slices = [stop - first for first, stop in (slice_bounds(asked.size, rank, world_size) for rank in range(world_size))]
    model = loss_worker.Towers(asked.loss)
    assert results[world_size][case]["traffic"] == {
        "features": towers * max(slices) * world_size * 10 * 8,  # a slice that is one shorter is padded
        "feature gradients": towers * asked.size * 10 * 8,
        "gradients": sum(parameter.nbytes for parameter in model.parameters()),
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_both_ways_to_scatter_gradients_sum_over_ranks(results, world_size):
    for by_reduction, by_exchange, expected in results[world_size]["scatters"]:
        torch.testing.assert_close(by_reduction, expected)
        torch.testing.assert_close(by_exchange, expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_in_batch_accuracy_is_that_of_the_full_matrix(results, world_size):
    model = loss_worker.Towers()
    image_features, text_features, _ = model(*loss_worker.batch(8))
    similarity = image_features @ text_features.T
    labels = torch.arange(8)
    expected = torch.stack([(similarity.argmax(1) == labels).double().mean(), (similarity.argmax(0) == labels).double().mean()])
    torch.testing.assert_close(results[world_size]["even"]["accuracy"], expected)


@pytest.mark.parametrize("size", [2, 7, 64])
def test_equal_features_give_ln_n_at_any_scale(size):
    features = F.normalize(torch.ones(size, 5, dtype=torch.float64), dim=-1)
    for scale in (1.0, 14.3, 100.0):
        loss = contrastive_loss(features, features, torch.tensor(scale, dtype=torch.float64), ALONE, size, 3).loss
        assert float(loss) == pytest.approx(math.log(size), abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_orthonormal_pairs_have_the_closed_form(scale):
    size = 16
    features = torch.eye(size, dtype=torch.float64)
    loss = contrastive_loss(features, features, torch.tensor(scale, dtype=torch.float64), ALONE, size, 5).loss
    assert float(loss) == pytest.approx(math.log1p((size - 1) * math.exp(-scale)), abs=1e-12)


def test_sigmoid_loss_has_its_closed_form_for_equal_features():
    size, scale, bias = 7, 3.0, -2.0
    features = F.normalize(torch.ones(size, 5, dtype=torch.float64), dim=-1)
    found = sigmoid_loss(features, features, *torch.tensor([scale, bias], dtype=torch.float64), ALONE, size, 3).loss
    expected = math.log1p(math.exp(-(scale + bias))) + (size - 1) * math.log1p(math.exp(scale + bias))
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_permuting_pairs_or_swapping_towers_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    one, other = (F.normalize(torch.randn(9, 4, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    scale = torch.tensor(20.0, dtype=torch.float64)
    loss = contrastive_loss(one, other, scale, ALONE, 9, 4).loss
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(contrastive_loss(one[order], other[order], scale, ALONE, 9, 4).loss, loss)
    torch.testing.assert_close(contrastive_loss(other, one, scale, ALONE, 9, 4).loss, loss)


def test_extreme_scores_stay_finite_in_float32():
    features = F.normalize(torch.randn(32, 8), dim=-1).requires_grad_()
    scale = torch.tensor(100.0, requires_grad=True)
    loss = contrastive_loss(features, -features, scale, ALONE, 32, 7).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(scale.grad)


def test_half_precision_features_are_computed_in_float32():
    features = F.normalize(torch.randn(8, 8), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(features.bfloat16(), features.bfloat16(), torch.tensor(14.3), ALONE, 8, 3).loss
    expected = full_matrix_loss(features.bfloat16().float(), features.bfloat16().float(), 14.3)
    torch.testing.assert_close(loss, expected)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_no_tensor_larger_than_a_tile_or_the_features_ever_exists():
    size, width, tile = 256, 8, 16
    images, texts = (F.normalize(torch.randn(size, width), dim=-1).requires_grad_() for _ in range(2))
    with LargestTensor() as largest:
        contrastive_loss(images, texts, torch.tensor(14.3, requires_grad=True), ALONE, size, tile).loss.backward()
    assert largest.elements <= size * max(tile, width)
    with LargestTensor() as whole:
        full_matrix_loss(images, texts, 14.3)
    assert whole.elements >= size * size, "the instrument sees a full matrix where there is one"


def test_a_slice_of_the_wrong_size_is_refused():
    features = torch.eye(4)
    with pytest.raises(ValueError, match="rank 0 of 1 holds 8 samples"):
        contrastive_loss(features, features, torch.tensor(1.0), ALONE, 8, 4)
