"""The tiled, distributed loss equals one process with the full matrix, in value and in every gradient."""

import importlib.util
import math
import subprocess
import sys
from dataclasses import replace
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


def positive_pairs(size, captions=""):
    """The matrix of positive pairs, 1 or 0: own pairs, or pairs of samples whose captions are the same letter."""
    numbers = torch.tensor([ord(letter) for letter in captions]) if captions else torch.arange(size)
    return (numbers[:, None] == numbers).double()


def full_matrix_sigmoid_loss(image_features, text_features, scale, bias, captions=""):
    """SigLIP's pseudo-code, on all pairs at once."""
    logits = scale * image_features @ text_features.T + bias
    labels = 2 * positive_pairs(len(logits), captions) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def full_matrix_loss(image_features, text_features, scale, captions=""):
    """The paper's pseudo-code, on all pairs at once; with captions, a term for each positive among the negatives."""
    logits = scale * image_features @ text_features.T
    if not captions:
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    positives = positive_pairs(len(logits), captions).bool()
    return (mean_over_positives(logits, positives) + mean_over_positives(logits.T, positives)) / 2


def mean_over_positives(logits, positives):
    """For each row and each of its positives, the cross-entropy between that positive and the row's negatives."""
    if positives.all():  # no row has a negative
        return 0 * logits.sum()
    negatives = logits.masked_fill(positives, -torch.inf).logsumexp(1, keepdim=True)
    terms = torch.logaddexp(logits, negatives) - logits
    return ((terms * positives).sum(1) / positives.sum(1)).mean()


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
        expected = full_matrix_sigmoid_loss(image_features, text_features, scale, model.logit_bias, asked.captions)
    else:
        expected = full_matrix_loss(image_features, text_features, scale, asked.captions)
    expected.backward()
    torch.testing.assert_close(found["loss"], expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["mean of the ranks' losses"], expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found["features"], image_features.detach(), rtol=0, atol=1e-12)
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found["gradients"]) == set(names)
    for name, parameter in names.items():
        without_negatives = asked.loss == "contrastive" and len(set(asked.captions)) == 1
        assert (float(parameter.grad.abs().max()) > 1e-6) != without_negatives, f"{name} has a gradient to compare"
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
@pytest.mark.parametrize("case", ["even", "some captions repeat", "all captions are the same"])
def test_in_batch_accuracy_is_the_share_of_rows_and_columns_whose_maximum_is_a_positive(results, world_size, case):
    asked = loss_worker.CASES[case]
    image_features, text_features, _ = loss_worker.Towers()(*loss_worker.batch(asked.size))
    similarity, positives = image_features @ text_features.T, positive_pairs(asked.size, asked.captions)
    each = torch.arange(asked.size)
    expected = torch.stack([positives[each, similarity.argmax(1)].mean(), positives[similarity.argmax(0), each].mean()])
    torch.testing.assert_close(results[world_size][case]["accuracy"], expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("loss", ["", ", sigmoid"])
def test_without_repeats_the_option_is_the_ordinary_loss(results, world_size, loss):
    found = results[world_size][f"no caption repeats{loss}"]
    asked = loss_worker.CASES[f"no caption repeats{loss}"]
    check_against_one_process(replace(asked, captions=""), found)
    assert found["repeated"] == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_share_of_repeats_is_that_of_the_global_batch_at_any_world_size(results, world_size):
    assert results[world_size]["some captions repeat"]["repeated"] == 4 / 11
    assert results[world_size]["all captions are the same"]["repeated"] == 7 / 8


@pytest.mark.parametrize("captions", ["abcde", "abacb", "aaaaa"])
def test_gradients_pass_the_numerical_check(captions):
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.5, -0.5))
    numbers = torch.tensor([ord(letter) - ord("a") for letter in captions])
    assert torch.autograd.gradcheck(
        lambda *values: contrastive_loss(*values, ALONE, 5, 2, numbers).loss, (images, texts, scale)
    )
    assert torch.autograd.gradcheck(
        lambda *values: sigmoid_loss(*values, ALONE, 5, 2, numbers).loss, (images, texts, scale, bias)
    )


REPEATS = torch.tensor([0, 1, 0, 2, 0])


def test_a_perfect_model_reaches_loss_zero_and_accuracy_one_only_where_repeats_are_positives():
    features = torch.eye(3, dtype=torch.float64)[REPEATS]
    scale = torch.tensor(100.0, dtype=torch.float64)
    apart = contrastive_loss(features, features, scale, ALONE, 5, 2)
    assert float(apart.accuracy_image_to_text) == float(apart.accuracy_text_to_image) == 3 / 5, "the first of three wins"
    assert float(apart.loss) == pytest.approx(3 * math.log(3) / 5, abs=1e-12)
    together = contrastive_loss(features, features, scale, ALONE, 5, 2, REPEATS)
    assert float(together.accuracy_image_to_text) == float(together.accuracy_text_to_image) == 1
    assert float(together.loss) == pytest.approx(0, abs=1e-12)


def images_that_share_a_caption():
    """(images, texts, scale): equal texts for equal captions, and images at different distances from them."""
    generator = torch.Generator().manual_seed(3)
    texts = torch.eye(3, dtype=torch.float64)[REPEATS].requires_grad_()
    images = F.normalize(texts.detach() + 0.5 * torch.randn(5, 3, generator=generator, dtype=torch.float64), dim=-1)
    return images.requires_grad_(), texts, torch.tensor(5.0, dtype=torch.float64, requires_grad=True)


def test_a_uniform_target_over_exact_repeats_would_change_nothing():
    images, texts, scale = images_that_share_a_caption()
    target = (REPEATS[:, None] == REPEATS).double()
    target /= target.sum(1, keepdim=True)
    logits = scale * images @ texts.T
    uniform = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    ordinary = contrastive_loss(images, texts, scale, ALONE, 5, 2).loss
    torch.testing.assert_close(uniform, ordinary)
    by_uniform, by_ordinary = (torch.autograd.grad(one, (images, texts, scale)) for one in (uniform, ordinary))
    torch.testing.assert_close(by_uniform[0], by_ordinary[0])
    torch.testing.assert_close(by_uniform[2], by_ordinary[2])
    of_captions = [
        torch.zeros(3, 3, dtype=torch.float64).index_add(0, REPEATS, found[1]) for found in (by_uniform, by_ordinary)
    ]
    torch.testing.assert_close(*of_captions)


def test_no_image_is_pushed_away_from_a_caption_that_it_shares():
    images, texts, scale = images_that_share_a_caption()
    pushed = {}
    for name, numbers in (("negatives", None), ("positives", REPEATS)):
        loss = contrastive_loss(images, texts, scale, ALONE, 5, 2, numbers).loss
        (gradient,) = torch.autograd.grad(loss, images)
        pushed[name] = [bool(along > 0) for along in (gradient * texts).sum(1).detach()]
    assert any(pushed["negatives"]), "the nearest image of a caption is held back"
    assert not any(pushed["positives"])


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


@pytest.mark.parametrize("captions", [None, torch.arange(256) % 100])
def test_no_tensor_larger_than_a_tile_or_the_features_ever_exists(captions):
    size, width, tile = 256, 8, 16
    images, texts = (F.normalize(torch.randn(size, width), dim=-1).requires_grad_() for _ in range(2))
    with LargestTensor() as largest:
        contrastive_loss(images, texts, torch.tensor(14.3, requires_grad=True), ALONE, size, tile, captions).loss.backward()
    assert largest.elements <= size * max(tile, width)
    with LargestTensor() as whole:
        full_matrix_loss(images, texts, 14.3)
    assert whole.elements >= size * size, "the instrument sees a full matrix where there is one"


def test_a_slice_of_the_wrong_size_is_refused():
    features = torch.eye(4)
    with pytest.raises(ValueError, match="rank 0 of 1 holds 8 samples"):
        contrastive_loss(features, features, torch.tensor(1.0), ALONE, 8, 4)
