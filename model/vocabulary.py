"""CLIP's byte-pair vocabulary, from merges.txt beside this file: the first 48,894 merges of the published file.

In: nothing. Out: the symbols with their ids (vocab.json), and the merges in order (merges.txt).

A symbol is a sequence of bytes, each written as one printable character (as in GPT-2), with `</w>` at the end of a word. Ids
are in the order of the merges.
"""

from __future__ import annotations

import functools
from pathlib import Path

START_OF_TEXT = 49406
END_OF_TEXT = 49407
START_SYMBOL, END_SYMBOL = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MERGES = Path(__file__).with_name("merges.txt")
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


@functools.cache
def vocabulary() -> dict[str, int]:
    """Maps symbols to ids, in the order of the ids."""
    single = [*map(chr, _PRINTABLE), *map(chr, range(256, 512 - len(_PRINTABLE)))]
    learned = map("".join, merges())
    symbols = [*single, *(one + END_OF_WORD for one in single), *learned, START_SYMBOL, END_SYMBOL]
    return {symbol: place for place, symbol in enumerate(symbols)}


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """The pairs of symbols that byte-pair encoding joins, by priority."""
    _version, *lines = MERGES.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return tuple((first, second) for first, second in (line.split(" ") for line in lines))
