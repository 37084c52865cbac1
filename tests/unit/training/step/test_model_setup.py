"""What is done to a finished model changes what it costs, not what it computes."""

import copy
import functools

import pytest
import torch

from model.clip import build_clip
from model.tokenizer import tokenize
from training.config import ModelConfig, TrainConfig, TrainingConfig
from training.distributed import World
from training.loss import contrastive_loss
from training.optimizer import WeightAverage
from training.step.gradients import compute_gradients
from training.step.model_setup import checkpoint_activations, compile_towers, prepare_model

LOSS = functools.partial(
    contrastive_loss, world=World(rank=0, world_size=1, device=torch.device("cpu")), global_batch_size=6, tile_size=4
)
CAPTIONS = ["a dog", "two cats that sleep on a red sofa", "", "a photo of the sea", "rain", "an old map of a town by a river"]


def inputs(clip):
    size = clip.architecture.image_size_px
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, tokenize(CAPTIONS)


def step(clip, micro_batch_size=None):
    loss = compute_gradients(clip, inputs(clip), LOSS, micro_batch_size).loss
    return loss.detach(), {name: one.grad for name, one in clip.named_parameters()}, dict(clip.named_buffers())


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
@pytest.mark.parametrize("micro_batch_size", [None, 6])
def test_checkpointed_encoders_have_the_same_gradients_and_statistics(name, micro_batch_size):
    torch.manual_seed(1)
    plain = build_clip(name)
    saving = copy.deepcopy(plain)
    for tower in ("image", "text"):
        checkpoint_activations(saving, tower)
    assert list(saving.state_dict()) == list(plain.state_dict())
    loss, gradients, buffers = step(plain)
    found_loss, found, found_buffers = step(saving, micro_batch_size)
    torch.testing.assert_close(found_loss, loss)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, msg=key)
    for key, buffer in buffers.items():
        torch.testing.assert_close(found_buffers[key], buffer, msg=key)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_checkpointed_encoder_can_be_compiled(tower):
    torch.manual_seed(1)
    plain = build_clip("debug-vit")
    compiled = copy.deepcopy(plain)
    checkpoint_activations(compiled, tower)
    (compiled.visual if tower == "image" else compiled.transformer).compile(backend="aot_eager")
    loss, gradients, _ = step(plain)
    found_loss, found, _ = step(compiled)
    torch.testing.assert_close(found_loss, loss)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, msg=key, rtol=1e-4, atol=1e-5)


def test_a_checkpointed_encoder_keeps_less():
    kept = {}
    for saving in (False, True):
        clip = build_clip("debug-vit")
        if saving:
            checkpoint_activations(clip, "image")
        sizes = []

        def keep(value, sizes=sizes):
            sizes.append(value.nbytes)
            return value

        images, _ = inputs(clip)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            clip.encode_image(images)
        kept[saving] = sum(sizes)
    assert kept[True] < 0.3 * kept[False]


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_locked_encoder_keeps_nothing_for_a_backward_pass_and_does_not_change(name, tower):
    clip = build_clip(name)
    prepare_model(clip, TrainingConfig(model=ModelConfig(name=name, weights="some", lock=(tower,))))
    clip.eval()
    clip.train()
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    images, texts = inputs(clip)
    features = clip.encode_image(images) if tower == "image" else clip.encode_text(texts)
    assert not features.requires_grad
    _, gradients, _ = step(clip)
    locked = {id(one) for one in clip.tower_parameters(tower)}
    for key, parameter in clip.named_parameters():
        assert (gradients[key] is None) == (id(parameter) in locked), key
    if tower == "image":
        assert all(torch.equal(value, before[key]) for key, value in clip.state_dict().items()), "no batch-norm statistic moved"


def test_every_parameter_belongs_to_one_encoder_but_the_temperature():
    for name in ("debug-vit", "debug-rn"):
        clip = build_clip(name)
        towers = [*clip.tower_parameters("image"), *clip.tower_parameters("text")]
        assert len(towers) == len({id(one) for one in towers})
        assert {id(one) for one in clip.parameters()} - {id(one) for one in towers} == {id(clip.logit_scale)}


def test_a_prepared_model_can_be_averaged_and_the_average_computes_by_itself():
    clip = build_clip("debug-rn")
    config = TrainingConfig(model=ModelConfig(name="debug-rn"), train=TrainConfig(activation_checkpointing=("image", "text")))
    prepare_model(clip, config)
    average = WeightAverage(clip, 0.5).clip.eval()
    images, texts = inputs(clip)
    with torch.no_grad():
        expected = average.encode_image(images)
        for parameter in clip.parameters():
            parameter.zero_()
        torch.testing.assert_close(average.encode_image(images), expected)
        average.encode_text(texts)
    assert clip.visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_a_compiled_model_computes_the_same(name):
    torch.manual_seed(1)
    plain = build_clip(name)
    compiled = copy.deepcopy(plain)
    compile_towers(compiled, TrainConfig(compile=True))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    loss, gradients, _ = step(plain)
    found_loss, found, _ = step(compiled)
    torch.testing.assert_close(found_loss, loss)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, msg=key, rtol=1e-4, atol=1e-5)
