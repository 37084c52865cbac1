"""What is done to a finished model changes what it costs, not what it computes."""

import contextlib
import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model.clip import build_clip
from model.tokenizer import tokenize
from tests.support.runs import ALONE
from training.config import ModelConfig, TrainConfig, TrainingConfig
from training.distributed import World, init_world
from training.loss import contrastive_loss
from training.optimizer import WeightAverage
from training.step.gradients import compute_gradients
from training.step.model_setup import autocast, checkpoint_activations, compile_towers, prepare_model
from training.step.patch_dropout import kept_patches

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


def _inputs_of(clip, count, longest, dropout):
    row, words = clip.architecture, ["a", "dog", "with", "two", "red", "balls"]
    texts_BL = tokenize([" ".join(words[place % 6] for place in range(1 + one % longest)) for one in range(count)])
    images_BCHW = torch.randint(0, 255, (count, row.image_size_px, row.image_size_px, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    if not dropout:
        return images_BCHW, texts_BL
    return images_BCHW, texts_BL, kept_patches(torch.arange(count), (row.image_size_px // row.patch_size_px) ** 2, dropout)


@pytest.mark.parametrize(
    ("name", "options", "graphs"),
    [
        ("debug-vit", {}, 2),
        ("debug-rn", {}, 2),
        ("debug-vit", {"checkpointing": ("image", "text"), "ddp": True}, 2),
        ("debug-vit", {"lock": ("image",), "dropout": 0.5}, 2),
        ("debug-vit", {"lock": ("text",), "precision": "bfloat16"}, 2),
        ("debug-vit", {"micro": 3}, 4),  # with gradients, and without
    ],
)
def test_each_encoder_is_one_graph_for_batches_and_captions_of_any_size(name, options, graphs, tmp_path):
    torch._dynamo.reset()
    torch.manual_seed(0)
    clip, plain = build_clip(name).train(), build_clip(name).train()
    plain.load_state_dict(clip.state_dict())
    found = []

    def backend(module, _inputs):
        found.append(module)
        return module.forward

    lock, checkpointing = options.get("lock", ()), options.get("checkpointing", ())
    train = TrainConfig(compile=True, activation_checkpointing=checkpointing, precision=options.get("precision", "float32"))
    config = TrainingConfig(model=ModelConfig(name=name, weights="some", lock=lock), train=train)
    models = []
    with contextlib.ExitStack() as stack:
        if options.get("ddp"):
            stack.callback(dist.destroy_process_group)
            world = init_world(0, 1, f"file://{tmp_path}/rendezvous", torch.device("cpu"))
        for model in (clip, plain):
            prepare_model(model, config)
            if model is clip:
                compile_towers(clip, train, backend)
            models.append(DistributedDataParallel(model) if options.get("ddp") else model)
        for count, longest in ((8, 2), (8, 9), (8, 70), (5, 4)):
            batch = _inputs_of(clip, count, longest, options.get("dropout", 0.0))
            losses = []
            for model in models:
                model.zero_grad()
                loss = functools.partial(_loss_alone, count)
                result = compute_gradients(model, batch, loss, options.get("micro"), lambda: autocast(train, ALONE.device))
                losses.append(result.loss.detach())
            torch.testing.assert_close(*losses)
            for one, other in zip(clip.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert len(found) == graphs
    assert options.get("ddp") is None or world.world_size == 1


def _loss_alone(count, *features):
    return contrastive_loss(*features, ALONE, count, 1024)
