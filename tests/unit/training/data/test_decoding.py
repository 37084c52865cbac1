"""Threads decode into the caller's memory, and name what they cannot decode by its place."""

import numpy as np
import pytest

from model.tokenizer import END_OF_TEXT, token_ids
from training.data.decoding import Decoder, Encoded, Transform, cut_to_longest, decode

TRANSFORM = Transform(image_size_px=32, context_length=77, crop_scale_min=0.9)


@pytest.fixture(scope="module")
def samples(draw_shape):
    captions = ["a disc", "a red square that was drawn by hand", "a bar"]
    return [Encoded(draw_shape("red", "disc", number), captions[number % 3], f"0/0/{number}") for number in range(40)]


@pytest.fixture(params=[1, 3])
def decoder(request):
    decoder = Decoder(TRANSFORM, request.param)
    yield decoder
    decoder.close()


def pixels_of(samples):
    return np.zeros((len(samples), 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [40, 17, 1])
def test_threads_give_what_one_call_gives(samples, decoder, size):
    expected, found = pixels_of(samples[:size]), pixels_of(samples[:size])
    expected_texts, _ = decode(samples[:size], TRANSFORM, expected)
    texts, problems = decoder.submit(samples[:size], found).result()
    assert np.array_equal(found, expected)
    assert np.array_equal(texts, expected_texts)
    assert texts.shape[1] == max(int((row != 0).sum()) for row in texts)
    assert not problems


def test_the_token_zero_within_the_longest_caption_does_not_cost_its_end():
    texts = token_ids(["a disc", "$!$ sale"])
    assert 0 in texts[1, : texts[1].argmax()].tolist(), "the tokenizer still makes a zero of this exclamation mark"
    cut = cut_to_longest(texts)
    assert cut.shape[1] == int(texts.argmax(axis=1).max()) + 1
    assert (cut.max(axis=1) == END_OF_TEXT).all()
    assert cut_to_longest(texts[:0]).shape == (0, 1)


def test_a_sample_that_cannot_be_decoded_or_was_changed_is_named_by_its_place(samples, decoder):
    broken = Encoded(b"no image", "caption", "seed")
    changed = Encoded(samples[0].image, "caption", "seed", sha256=b"another")
    all_of_them = [*samples[:20], broken, samples[20], changed]
    texts, problems = decoder.submit(all_of_them, pixels_of(all_of_them)).result()
    assert set(problems) == {20, 22}
    assert "cannot be decoded" in problems[20]
    assert "sha256" in problems[22]
    assert len(texts) == 23
