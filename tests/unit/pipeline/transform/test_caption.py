"""Captions are cleaned, or dropped with a reason."""

import pytest

from pipeline.config import CaptionConfig
from pipeline.errors import Failure
from pipeline.transform.caption import clean_caption, clean_captions, display_caption


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  two   words\n", "two words"),
        ("e\u0301te\u0301", "été"),
        ("bell\x07 and\x00 nul", "bell and nul"),
        ("don\x92t, 2010\x962012 \x93so\x94", "don’t, 2010–2012 “so”"),
        (42, "42"),
        ("Tom &amp; Jerry &amp;lt;3", "Tom & Jerry <3"),
        ("&nbsp;two&nbsp;words", "two words"),
        ("tab\tand\u2003wide", "tab and wide"),
    ],
)
def test_captions_are_one_line_of_nfc(text, clean):
    assert clean_caption(text, CaptionConfig()) == clean


@pytest.mark.parametrize("text", [None, "", "   ", "\x00\n", float("nan"), b"", b" "])
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


def test_bytes_are_decoded_and_dropped_if_they_are_not_utf8():
    assert clean_caption("Füße".encode(), CaptionConfig()) == "Füße"
    assert clean_caption(b"a\xff", CaptionConfig()) == Failure(
        "dropped", "bad_caption", "the caption is not UTF-8: invalid start byte at byte 1"
    )


@pytest.mark.parametrize(
    ("captions", "outcome"),
    [
        (["a  dog", None, "", "x"], ["a dog"]),
        ([], "empty_caption"),
        ([None, " "], "empty_caption"),
        (["", "x"], "short_caption"),
        (["a dog", b"\xff"], "bad_caption"),
        ("a  dog", "a dog"),
    ],
)
def test_a_list_keeps_the_captions_that_may_be_stored(captions, outcome):
    found = clean_captions(captions, CaptionConfig(min_words=2))
    assert (found.reason if isinstance(found, Failure) else found) == outcome


def test_a_caption_is_shown_as_it_came():
    assert display_caption(None) == display_caption(float("nan")) == ""
    assert display_caption(b"a\xff") == "a\ufffd"
    assert display_caption(["a", None, b"b"]) == ["a", "", "b"]
    assert display_caption(0.5) == "0.5"


@pytest.mark.parametrize(
    "text", ["&amp;amp;amp;lt;b&gt;", "&#38;#39;", "&am\0p;lt;", " &#32;a&nbsp;", "a&#8203;\u0301b", "&amp &ampamp;"]
)
def test_a_clean_caption_stays_as_it_is(text):
    """A row that is tried again has been cleaned before."""
    once = clean_caption(text, CaptionConfig())
    assert clean_caption(once, CaptionConfig()) == once


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Audi TT&GTS", "Audi TT&GTS"),
        ("see ?a=1&copy=2", "see ?a=1&copy=2"),
        ("NAME&REGION", "NAME&REGION"),
        ("x &notit; y", "x &notit; y"),
        ("fish &amp chips &copy 2020", "fish & chips © 2020"),
        ("&lt;&#65;&#x42&gt;=", "<AB>="),
        ("caf&eacute; R&D; &nosuch;", "café R&D; &nosuch;"),
        ("\u200bdog\u200d", "\u200bdog\u200d"),
    ],
)
def test_only_what_html_takes_for_an_entity_in_an_attribute_is_one(text, clean):
    assert clean_caption(text, CaptionConfig()) == clean


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u00ad", "&#8203; \u200d"])
def test_a_caption_that_nobody_can_see_is_empty(text):
    outcome = clean_caption(text.replace(" ", ""), CaptionConfig())
    assert isinstance(outcome, Failure)
    assert outcome.reason == "empty_caption"
