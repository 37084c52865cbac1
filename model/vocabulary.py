"""The byte-pair vocabulary as files that other tools read, recovered from the tokenizer that training uses.

In: nothing. Out: the symbols with their ids (vocab.json) and the merges in their order (merges.txt). The tokenizer offers its
vocabulary only by decoding ids; so there is no second copy of it that could differ from what a model was trained with.

A symbol is bytes, each written as one printable character (GPT-2's way), with `</w>` at the end of a word. Ids are in the order
of the merges, so the merge that made a symbol is what byte-pair encoding leaves of its bytes with the earlier merges alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from instant_clip_tokenizer import Tokenizer

from model.tokenizer import END_OF_TEXT, START_OF_TEXT

START_SYMBOL, END_SYMBOL = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))
"""Bytes in the order of their ids."""
_CHARACTERS = {
    byte: chr(byte) if byte in _PRINTABLE else chr(256 + place - len(_PRINTABLE)) for place, byte in enumerate(_BYTES)
}
_REPLACEMENT = "\ufffd"  # what decoding gives for bytes that are no whole character
# What makes a piece of a character whole: bytes before a piece's continuation bytes, and after its leading byte, of which some
# take not every continuation.
_BEFORE = (b"", b"\xc2", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
_AFTER = (b"", *(first + b"\x80" * count for first in (b"\x80", b"\x90", b"\xa0") for count in range(3)))


@functools.cache
def vocabulary() -> dict[str, int]:
    """symbol -> id, in the order of the ids."""
    single = [_CHARACTERS[byte] for byte in _BYTES]
    learned = [_symbol(*piece) for piece in _learned_pieces()]
    symbols = [*single, *(one + END_OF_WORD for one in single), *learned, START_SYMBOL, END_SYMBOL]
    return {symbol: place for place, symbol in enumerate(symbols)}


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """The pairs of symbols that byte-pair encoding joins, first ones first."""
    ranks: dict[tuple[str, str], int] = {}
    for content, ends_word in _learned_pieces():
        parts = [_CHARACTERS[byte] for byte in content]
        parts[-1] += END_OF_WORD if ends_word else ""
        pair = _encode(parts, ranks)
        ranks[pair] = len(ranks)
    return tuple(ranks)


def _encode(parts: list[str], ranks: dict[tuple[str, str], int]) -> tuple[str, str]:
    """Byte-pair encoding, of a symbol that the next merge makes: down to the two parts that it joins."""
    while len(parts) > 2:
        known = (pair for pair in itertools.pairwise(parts) if pair in ranks)
        first, second = min(known, key=ranks.__getitem__)
        joined: list[str] = []
        for part in parts:
            if joined and joined[-1] == first and part == second:
                joined[-1] = first + second
            else:
                joined.append(part)
        parts = joined
    return parts[0], parts[1]


def _learned_pieces() -> Iterator[tuple[bytes, bool]]:
    """(bytes, whether they end a word) of every id that a merge made."""
    tokenizer = Tokenizer()
    for token in range(2 * len(_BYTES), min(START_OF_TEXT, END_OF_TEXT)):
        text = tokenizer.decode([token])
        ends_word = text.endswith(" ")
        yield (_incomplete(tokenizer, token, ends_word) if _REPLACEMENT in text else text.rstrip(" ").encode()), ends_word


def _incomplete(tokenizer: Tokenizer, token: int, ends_word: bool) -> bytes:
    """Bytes of an id that holds pieces of characters: decoded among others that make them whole."""
    for before in _BEFORE:
        for after in _AFTER if not ends_word else (b"",):
            text = tokenizer.decode([*map(_BYTES.index, before), token, *map(_BYTES.index, after)])
            if _REPLACEMENT not in text:
                return text.rstrip(" ").encode()[len(before) :].removesuffix(after)
    return tokenizer.decode([token]).rstrip(" ").encode()  # it is the replacement character itself


def _symbol(content: bytes, ends_word: bool) -> str:
    return "".join(_CHARACTERS[byte] for byte in content) + (END_OF_WORD if ends_word else "")
