"""Captions are packed without padding, and the last block computes one token."""

import torch

from model.clip import build_clip
from model.layers import Attention, Captions
from model.tokenizer import tokenize


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
    padded_BLD = captions.pad(packed_TD)
    real_BL = texts[:, : captions.length] != 0
    torch.testing.assert_close(padded_BLD[real_BL], x_BLD[real_BL])
    assert not padded_BLD[~real_BL].any()
    torch.testing.assert_close(captions.last(packed_TD), x_BLD[torch.arange(2), captions.end_B])


def test_the_token_that_is_read_has_the_attention_of_all_tokens():
    torch.manual_seed(0)
    attention, x_BLD = Attention(64, 2), torch.randn(3, 5, 64)
    torch.nn.init.normal_(attention.out_proj.weight)
    torch.testing.assert_close(attention(x_BLD, None, read=True), attention(x_BLD, None, read=False)[:, 0])
