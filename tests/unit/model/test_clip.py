"""CLIP against open_clip under shared random weights, and against its own definition."""

import gc
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.clip import CLIP, build_clip, uninitialized_clip
from model.config import PUBLISHED, get_architecture
from model.tokenizer import tokenize
from model.weights import load_state
from tests.support.models import blobs, randomise

OPEN_CLIP_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
FAST = ("RN50", "ViT-B/32")
CAPTIONS = ["a diagram", "two dogs on a beach, one of them asleep", "Rock & roll"]


def compare(name: str, open_clip_name: str) -> tuple[float, float, CLIP]:
    """Largest differences of normalised image and text features between open_clip's model and ours."""
    import open_clip

    theirs = open_clip.create_model(open_clip_name, pretrained=None).eval()
    randomise(theirs, seed=1)
    with torch.device("meta"):
        ours = build_clip(name)
    ours = ours.to_empty(device="cpu")
    state = {key: value for key, value in theirs.state_dict().items() if key != "attn_mask"}
    load_state(ours, state, open_clip_name)
    ours.eval()
    size = ours.architecture.image_size_px
    images = blobs(size)
    texts = tokenize(CAPTIONS)
    with torch.no_grad():
        image_features, text_features, scale = ours(images, texts)
        their_images = theirs.encode_image(images, normalize=True)
        their_texts = theirs.encode_text(texts, normalize=True)
    assert float(scale) == pytest.approx(math.exp(3.0))
    # The inputs must be told apart, or agreement would be worth nothing.
    assert float((image_features[0] - image_features[1]).abs().max()) > 1e-2
    assert float((text_features[0] - text_features[1]).abs().max()) > 1e-2
    image_difference = float((image_features - their_images).abs().max())
    text_difference = float((text_features - their_texts).abs().max())
    del theirs
    gc.collect()
    return image_difference, text_difference, ours


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.soak) for name in PUBLISHED])
def test_features_agree_with_open_clips(name):
    image_difference, text_difference, _ = compare(name, OPEN_CLIP_NAMES[name])
    print(f"\n{name}: image {image_difference:.1e}, text {text_difference:.1e}")
    tolerance = 1e-5 if name.startswith("ViT") else 1e-4
    assert image_difference < tolerance
    assert text_difference < tolerance


def test_the_other_activation_gives_other_features():
    image_difference, text_difference, _ = compare("ViT-B/32", "ViT-B-32")
    assert image_difference > 1e-3
    assert text_difference > 1e-3


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    clip = build_clip("ViT-B/32")
    assert clip.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)

    def std(tensor: torch.Tensor) -> float:
        return float(tensor.std())

    width, layers = 512, 12
    block = clip.transformer.resblocks[3]
    assert std(clip.token_embedding.weight) == pytest.approx(0.02, rel=0.02)
    assert std(clip.positional_embedding) == pytest.approx(0.01, rel=0.02)
    assert std(clip.text_projection) == pytest.approx(width**-0.5, rel=0.02)
    assert std(block.attn.in_proj_weight) == pytest.approx(width**-0.5, rel=0.02)
    assert std(block.attn.out_proj.weight) == pytest.approx(width**-0.5 * (2 * layers) ** -0.5, rel=0.02)
    assert std(block.mlp.c_fc.weight) == pytest.approx((2 * width) ** -0.5, rel=0.02)
    assert std(block.mlp.c_proj.weight) == pytest.approx(width**-0.5 * (2 * layers) ** -0.5, rel=0.02)
    assert std(clip.visual.proj) == pytest.approx(768**-0.5, rel=0.02)
    assert std(clip.visual.positional_embedding) == pytest.approx(768**-0.5, rel=0.02)
    # PyTorch's defaults in the ViT's blocks: Xavier for the attention's input, Kaiming-uniform for linear layers.
    vision = clip.visual.transformer.resblocks[3]
    assert std(vision.attn.in_proj_weight) == pytest.approx((6 / (768 + 3 * 768)) ** 0.5 / 3**0.5, rel=0.02)
    assert std(vision.mlp.c_fc.weight) == pytest.approx(768**-0.5 / 3**0.5, rel=0.02)
    assert float(vision.attn.out_proj.bias.abs().max()) == 0


def test_features_are_normalised_in_float32_under_autocast():
    clip = build_clip("debug-vit").eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        image_features, text_features, _ = clip(torch.randn(2, 3, 32, 32), tokenize(CAPTIONS[:2]))
    for features in (image_features, text_features):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


class Drawn(TorchDispatchMode):
    """Names of the operations that fill a tensor with random values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names += [func.name()] if func.name() in ("aten::normal_", "aten::uniform_") else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["debug-vit", "debug-rn"])
def test_a_model_for_weights_that_are_loaded_draws_no_random_values_and_is_then_the_same(name):
    with Drawn() as drawn:
        initialised = build_clip(name)
    assert len(drawn.names) > 10
    with Drawn() as drawn:
        bare = uninitialized_clip(get_architecture(name))
    assert not drawn.names
    load_state(bare, initialised.state_dict(), name)
    assert all(torch.equal(value, bare.state_dict()[key]) for key, value in initialised.state_dict().items())
    assert all(one.requires_grad and one.device.type == "cpu" for one in bare.parameters())
