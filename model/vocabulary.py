"""The byte-pair vocabulary in the form that other tools read, recovered from the tokenizer that training uses.

In: nothing. Out: the symbols with their ids (vocab.json), and the merges in order (merges.txt). The tokenizer exposes its
vocabulary only by decoding ids. Recovering it avoids a second copy, which could differ from the one used in training.

A symbol is a sequence of bytes, each written as one printable character (as in GPT-2), with `</w>` at the end of a word. Ids
are in the order of the merges. So the pair that a merge joins is found by encoding its symbol's bytes with the earlier merges.
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
"""All bytes, in the order of their ids."""
_CHARACTERS = {
    byte: chr(byte) if byte in _PRINTABLE else chr(256 + place - len(_PRINTABLE)) for place, byte in enumerate(_BYTES)
}
_REPLACEMENT = "\ufffd"  # the result of decoding bytes that are not a complete character
# Bytes that complete a part of a character: before its continuation bytes, and after its leading byte; some leading bytes do
# not allow every continuation.
_BEFORE = (b"", b"\xc2", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
_AFTER = (b"", *(first + b"\x80" * count for first in (b"\x80", b"\x90", b"\xa0") for count in range(3)))


@functools.cache
def vocabulary() -> dict[str, int]:
    """Maps symbols to ids, in the order of the ids."""
    single = [_CHARACTERS[byte] for byte in _BYTES]
    learned = [_symbol(*piece) for piece in _learned_pieces()]
    symbols = [*single, *(one + END_OF_WORD for one in single), *learned, START_SYMBOL, END_SYMBOL]
    return {symbol: place for place, symbol in enumerate(symbols)}


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """The pairs of symbols that byte-pair encoding joins, by priority."""
    ranks: dict[tuple[str, str], int] = {}
    for content, ends_word in _learned_pieces():
        parts = [_CHARACTERS[byte] for byte in content]
        parts[-1] += END_OF_WORD if ends_word else ""
        pair = _encode(parts, ranks)
        ranks[pair] = len(ranks)
    return tuple(ranks)


def _encode(parts: list[str], ranks: dict[tuple[str, str], int]) -> tuple[str, str]:
    """Applies known merges to the next merge's symbol, until the two parts are left that it joins."""
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
    """Yields (bytes, True if they end a word) for every id created by a merge."""
    tokenizer = Tokenizer()
    for token in range(2 * len(_BYTES), min(START_OF_TEXT, END_OF_TEXT)):
        text = tokenizer.decode([token])
        ends_word = text.endswith(" ")
        yield (_incomplete(tokenizer, token, ends_word) if _REPLACEMENT in text else text.rstrip(" ").encode()), ends_word


def _incomplete(tokenizer: Tokenizer, token: int, ends_word: bool) -> bytes:
    """Bytes of an id that holds parts of characters: decoded together with bytes that complete them."""
    for before in _BEFORE:
        for after in _AFTER if not ends_word else (b"",):
            text = tokenizer.decode([*map(_BYTES.index, before), token, *map(_BYTES.index, after)])
            if _REPLACEMENT not in text:
                return text.rstrip(" ").encode()[len(before) :].removesuffix(after)
    return tokenizer.decode([token]).rstrip(" ").encode()  # it is the replacement character itself


def _symbol(content: bytes, ends_word: bool) -> str:
    return "".join(_CHARACTERS[byte] for byte in content) + (END_OF_WORD if ends_word else "")
