"""Token ids equal open_clip's, but for the characters named here."""

import random
import unicodedata

import ftfy
import pytest

from model.tokenizer import END_OF_TEXT, START_OF_TEXT, clean, tokenize

ORACLES = {
    "a diagram": [49406, 320, 22697, 49407],
    "a dog": [49406, 320, 1929, 49407],
    "": [49406, 49407],
    "Hello, World!  It's 2021 &amp; we're   testing CLIP 🚀": (
        [49406, 3306, 267, 1002, 256, 585, 568, 273, 271, 273, 272, 261, 649, 982, 4967, 9289, 13542, 49407]
    ),
}
PIECES = [
    *[
        "a",
        "photo",
        "of",
        "the",
        "Big",
        "red",
        "DOG",
        "sitting",
        "beside",
        "Élodie's",
        "naïve",
        "café",
        "über",
        "straße",
        "İstanbul",
        "ǅ",
        "ﬁne",
    ],
    *["&amp;", "&lt;b&gt;", "&amp;quot;", "&#39;", "&nbsp;", "&", "&unknown;", "<br/>", "AT&T"],
    *["🚀", "👩🏽‍🚀", "❤️", "🇧🇷", "🏳️‍🌈", "☃"],
    *["日本語のテキスト", "中文描述", "한국어", "ภาษาไทย", "हिन्दी", "العربية", "עברית", "Ελληνικά", "русский"],
    *["schÃ¶n", "â€œquotedâ€\x9d", "Ã©tÃ©", "don’t", "“curly”", "naı̈ve", "e\u0301", "ñ"],
    *["\x00", "\x07", "\x1b[31m", "\x7f", "\u200b", "\u200d", "\ufeff", "\u202e", "\x85", "\u00ad"],
    *["2021", "3.14", "1,000", "x²", "½", "①", "Ⅷ", "٣", "100%"],
    *["it's", "we're", "I'LL", "they'd", "'s", "''", "l'été", "o'clock"],
    *[
        "...",
        "!!!",
        "?!",
        "--",
        "—",
        "#tag",
        "@user",
        "http://a.b/c?d=e&f=g",
        "a_b",
        "C++",
        "\\n",
        "$5",
        "€",
        "^_^",
        "{}[]",
    ],
    *["supercalifragilisticexpialidocious", "x" * 200, "ＦＵＬＬＷＩＤＴＨ", "𝔣𝔯𝔞𝔨𝔱𝔲𝔯", "ﾊﾝｶｸ", "ß", "ŉ", "ĳ"],
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "", "\u2028"]


def strings(count: int, seed: int) -> list[str]:
    """Random strings of every kind: words, entities, emoji, scripts, mojibake, control characters, over-long ones."""
    rng = random.Random(seed)
    result = []
    for index in range(count):
        length = rng.choice([1, 2, 3, 5, 8, 12, 20]) if index % 10 else rng.randint(80, 160)
        result.append("".join(rng.choice(PIECES) + rng.choice(SPACES) for _ in range(length)))
    # And any characters at all, but the named differences, and code points that one Unicode version has and another has not:
    # the two tokenizers are built against different ones (U+A7CE is a letter to one of them alone).
    for _ in range(count // 4):
        points = [rng.choice([rng.randint(1, 0x7F), rng.randint(0x80, 0x24F), rng.randint(0x250, 0xFFFF)]) for _ in range(12)]
        characters = [chr(point) for point in points if point not in (0x17F, 0xFB05)]
        result.append("".join(text for text in characters if unicodedata.category(text) not in ("Cn", "Cs")))
    return result


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    import open_clip

    return open_clip.tokenizer.SimpleTokenizer()


@pytest.mark.parametrize("text", ORACLES)
def test_the_published_ids(text):
    ids = tokenize([text])[0].tolist()
    expected = ORACLES[text]
    assert ids == expected + [0] * (77 - len(expected))


def test_ids_equal_open_clips_on_strings_of_every_kind(open_clip_tokenizer):
    texts = strings(2_000, seed=0)
    assert len(texts) >= 2_500
    ours, theirs = tokenize(texts), open_clip_tokenizer(texts)
    different = [text for text, same in zip(texts, (ours == theirs).all(dim=1).tolist(), strict=True) if not same]
    assert different == []


@pytest.mark.parametrize("text", ["it'\u017f", "it'\ufb05"])
def test_the_named_differences_are_still_differences(open_clip_tokenizer, text):
    # U+017F (long s) and the ligature U+FB05, each after an apostrophe: the two fold case differently where they look for 's.
    assert tokenize([text]).tolist() != open_clip_tokenizer([text]).tolist()


def test_a_long_caption_is_cut_and_keeps_end_of_text_last():
    ids = tokenize(["word " * 200, "a dog"], context_length=10)
    assert ids.shape == (2, 10)
    assert ids[0, 0] == START_OF_TEXT
    assert ids[0, -1] == END_OF_TEXT
    assert ids[1].tolist() == [49406, 320, 1929, 49407, 0, 0, 0, 0, 0, 0]


def test_a_single_text_is_a_batch_of_one():
    assert tokenize("a dog").tolist() == tokenize(["a dog"]).tolist()


def test_names_of_the_special_tokens_in_a_caption_are_text():
    ids = tokenize(["a <|endoftext|> b"])[0].tolist()
    assert ids.count(END_OF_TEXT) == 1
    assert ids[ids.index(END_OF_TEXT) :] == [END_OF_TEXT] + [0] * (77 - ids.index(END_OF_TEXT) - 1)


def test_no_texts_give_no_rows():
    assert tokenize([]).shape == (0, 77)


def test_plain_text_has_the_ids_of_any_text():
    """A word that is no plain text, at the end, has the whole text encoded by the library's own division into words."""
    plain = [text for text in strings(3_000, seed=2) if text.isascii() and "&" not in text and text.isprintable()]
    assert len(plain) > 50
    whole = tokenize([f"{text} \u00e9t\u00e9" for text in plain], context_length=2_000)
    ending = tokenize("\u00e9t\u00e9")[0].tolist().index(END_OF_TEXT)  # start-of-text and its own tokens
    for ids, text in zip(whole.tolist(), plain, strict=True):
        end = ids.index(END_OF_TEXT)
        assert tokenize(text, context_length=2_000)[0, : end - ending + 1].tolist() == ids[: end - ending + 1], text


def test_the_gate_for_plain_text_changes_nothing():
    import html
    import re

    for text in strings(500, seed=1):
        full = re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()
        assert clean(text) == full
