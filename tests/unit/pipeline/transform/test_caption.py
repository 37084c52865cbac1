"""Captions are cleaned, or dropped with a reason."""

import pytest

from pipeline.config import CaptionConfig
from pipeline.errors import Failure
from pipeline.transform.caption import clean_caption


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  two   words\n", "two words"),
        ("e\u0301te\u0301", "été"),
        ("bell\x07 and\x00 nul", "bell and nul"),
        (42, "42"),
        ("Tom &amp; Jerry &amp;lt;3", "Tom & Jerry <3"),
        ("&nbsp;two&nbsp;words", "two words"),
        ("tab\tand\u2003wide", "tab and wide"),
    ],
)
def test_captions_are_one_line_of_nfc(text, clean):
    assert clean_caption(text, CaptionConfig()) == clean


@pytest.mark.parametrize("text", [None, "", "   ", "\x00\n"])
def test_an_empty_caption_is_a_reason_to_drop(text):
    outcome = clean_caption(text, CaptionConfig())
    assert isinstance(outcome, Failure)
    assert (outcome.status, outcome.reason) == ("dropped", "empty_caption")


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("one two", {"min_words": 3}, "short_caption"),
        ("abcd", {"min_characters": 5}, "short_caption"),
        ("&lt;&gt;", {"min_characters": 3}, "short_caption"),
        ("abcdef", {"max_characters": 5}, "long_caption"),
    ],
)
def test_captions_of_other_lengths_are_dropped_when_asked(text, options, reason):
    outcome = clean_caption(text, CaptionConfig(**options))
    assert isinstance(outcome, Failure)
    assert (outcome.status, outcome.reason) == ("dropped", reason)
