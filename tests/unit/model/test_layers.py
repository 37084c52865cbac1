"""Captions are packed without padding, and the last block computes one token."""

import pytest
import torch

from model.clip import build_clip
from model.layers import MLP, Attention, Captions, LayerNorm, QuickGELU, ResidualAttentionBlock
from model.tokenizer import tokenize
from tests.support.operations import traffic


def test_a_batch_cut_to_its_longest_caption_has_the_same_features():
    torch.manual_seed(0)
    clip = build_clip("debug-vit").double().eval()
    texts = tokenize(["a diagram", "two dogs on a beach, one of them asleep", "Rock & roll"])
    longest = int((texts != 0).sum(1).max())
    assert longest < 77
    with torch.no_grad():
        cut = clip.encode_text(texts[:, :longest], normalize=True)
        alone = torch.cat([clip.encode_text(row[None], normalize=True) for row in texts])
        padded = clip.encode_text(torch.cat([texts, tokenize(["word " * 80])]), normalize=True)[:-1]
    torch.testing.assert_close(cut, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(cut, padded, rtol=0, atol=1e-12)


def test_no_token_after_end_of_text_changes_the_feature():
    torch.manual_seed(0)
    clip = build_clip("debug-vit").double().eval()
    texts = tokenize(["a dog", "word " * 80])
    noisy = texts.clone()
    noisy[0, 4:] = 320
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(noisy), clip.encode_text(texts), rtol=0, atol=1e-12)


def test_packed_tokens_are_those_before_the_padding_and_unpack_to_their_places():
    texts = tokenize(["a dog", "two dogs on a beach"])
    captions = Captions.of(texts, torch.device("cpu"))
    x_BLD = torch.randn(2, captions.length, 3)
    packed_TD = captions.pack(x_BLD)
    assert len(packed_TD) == int((texts != 0).sum())
    (padded_BLD,) = captions.pad(packed_TD)
    real_BL = texts[:, : captions.length] != 0
    torch.testing.assert_close(padded_BLD[real_BL], x_BLD[real_BL])
    assert not padded_BLD[~real_BL].any()
    torch.testing.assert_close(captions.last(packed_TD), x_BLD[torch.arange(2), captions.end_B])


def test_the_token_that_is_read_has_the_attention_of_all_tokens():
    torch.manual_seed(0)
    attention, x_BLD = Attention(64, 2), torch.randn(3, 5, 64)
    torch.nn.init.normal_(attention.out_proj.weight)
    torch.testing.assert_close(attention(x_BLD, None, read=True), attention(x_BLD, None, read=False)[:, 0])


def test_packing_and_padding_are_each_others_gradient():
    captions = Captions.of(tokenize(["a dog", "two dogs on a beach", "a"]), torch.device("cpu"))
    x_BLD = torch.randn(3, captions.length, 4, dtype=torch.float64, requires_grad=True)
    x_TD = captions.pack(x_BLD).detach().requires_grad_()
    assert torch.autograd.gradcheck(captions.pack, x_BLD)
    assert torch.autograd.gradcheck(lambda x: captions.pad(x, 2), x_TD)
    with torch.no_grad():
        assert torch.equal(torch.cat([captions.pack(part) for part in captions.pad(x_TD, 2)], dim=1), x_TD)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_training_and_evaluation_have_the_same_mlp_and_the_same_gradients(activation):
    torch.manual_seed(0)
    mlp, x_BD = MLP(8, activation).double(), torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for mode in (True, False):
        mlp.train(mode)
        out_BD = mlp(x_BD)
        found.append([out_BD, *torch.autograd.grad(out_BD.square().sum(), [x_BD, *mlp.parameters()])])
    for trained, evaluated in zip(*found, strict=True):
        torch.testing.assert_close(trained, evaluated, rtol=1e-12, atol=1e-14)


def test_a_layer_norm_has_the_precision_of_its_input_and_computes_in_float32():
    norm = LayerNorm(768)
    torch.nn.init.normal_(norm.weight)
    x_BD = 100 + torch.randn(64, 768)
    assert torch.equal(norm(x_BD), torch.nn.functional.layer_norm(x_BD, (768,), norm.weight, norm.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half_BD = norm(x_BD.bfloat16())
    assert half_BD.dtype == torch.bfloat16
    exact_BD = torch.nn.functional.layer_norm(x_BD.bfloat16().float(), (768,), norm.weight.bfloat16().float(), norm.bias)
    torch.testing.assert_close(half_BD.float(), exact_BD, rtol=2**-7, atol=2**-7)


class _BlockOfBefore(ResidualAttentionBlock):
    """A block whose layer norms and activation are PyTorch's and the formula's, as autocast runs them."""

    def __init__(self, width, heads):
        super().__init__(width, heads, "quick_gelu")
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(width, 4 * width), QuickGELU(), torch.nn.Linear(4 * width, width))


def test_pointwise_work_of_a_block_is_less_than_half_of_what_autocast_makes_of_the_formulas():
    x_BLD = torch.randn(64, 50, 768)

    def moved(make):
        found = []
        for blocks in (1, 2):
            stack = torch.nn.Sequential(*(make() for _ in range(blocks))).train()

            def work(stack=stack):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    start = x_BLD.detach().requires_grad_()
                    return stack(start if make is before else start.bfloat16()).float()

            found.append(sum(traffic(work).values()))
        weights = 2 * sum(one.numel() for one in stack[0].parameters()) * 6  # their casts, there and back, are once a batch
        return found[1] - found[0] - weights

    def before():
        return _BlockOfBefore(768, 12)

    def now():
        return ResidualAttentionBlock(768, 12, "quick_gelu")

    assert moved(now) < 0.5 * moved(before)


def test_captions_are_packed_and_padded_without_copies_of_the_rectangle():
    torch.manual_seed(0)
    clip = build_clip("debug-vit").train()
    texts_BL = tokenize(["a dog", "two dogs on a beach, one of them asleep", "a"] * 200)
    counts = traffic(lambda: clip.encode_text(texts_BL))
    width, tokens = clip.transformer.width, int((texts_BL != 0).sum())
    assert counts["stack"] == 0, "gradients of keys, queries and values are joined as packed tokens"
    assert counts["cat"] <= 4 * width * tokens * clip.transformer.layers * 2 * 3
    assert counts["index_add"] == 0, "places are all different"
    once = counts["embedding"] + counts["embedding_dense_backward"]
    assert once < 4 * width * (8 * tokens + 4 * (clip.architecture.vocab_size + clip.architecture.context_length)), "packed ids"
