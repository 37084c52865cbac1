"""Numbers for the captions of a batch: equal for equal token ids, whatever the padding, and the share that repeats."""

import pytest
import torch

from model.tokenizer import END_OF_TEXT, START_OF_TEXT, tokenize
from tests.support.runs import ALONE
from training.step.repeated_captions import _number_rows, number_captions, repeated_share


def numbers_of(captions, context_length=77):
    texts = tokenize(captions, context_length)
    return number_captions(texts, len(captions), ALONE)


def test_equal_captions_have_equal_numbers_without_gaps():
    numbers = numbers_of(["a dog", "a cat", "a dog", "two dogs", "a cat"]).tolist()
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[4]
    assert sorted(set(numbers)) == [0, 1, 2]


def test_padding_is_no_part_of_a_caption_and_the_token_zero_is():
    rows = [
        [START_OF_TEXT, 3, END_OF_TEXT, 0, 0],
        [START_OF_TEXT, 3, 0, END_OF_TEXT, 0],
        [START_OF_TEXT, 3, 0, 0, END_OF_TEXT],
        [START_OF_TEXT, 3, END_OF_TEXT, 0, 0],
    ]
    wide = number_captions(torch.tensor(rows), 4, ALONE)
    assert repeated_share(wide) == 1 / 4
    assert wide[0] == wide[3]
    narrow = number_captions(torch.tensor([row[:4] for row in rows[:2]]), 2, ALONE)
    assert repeated_share(narrow) == 0


@pytest.mark.parametrize(("captions", "share"), [("ab", 0), ("aa", 1 / 2), ("aab", 1 / 3), ("abab", 1 / 2), ("aaaa", 3 / 4)])
def test_the_share_counts_each_sample_whose_caption_was_there_before(captions, share):
    assert repeated_share(numbers_of(list(captions))) == share


def test_numbers_agree_with_the_distinct_rows_of_torch():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 100, 1000):
        rows = torch.randint(-5, 5, (size, 2), generator=generator)
        expected = torch.unique(rows, dim=0, return_inverse=True)[1]
        assert torch.equal(_number_rows(rows), expected)
