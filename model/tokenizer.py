"""Captions to token ids: CLIP's text cleaning, then its lower-cased byte-pair encoding, by the library `tokenizers`."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence

import ftfy
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from model.vocabulary import END_OF_TEXT, END_OF_WORD, START_OF_TEXT, merges, vocabulary

# CLIP's division of cleaned text into words, each of which is encoded by itself.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The same for plain text, by Python's own engine.
_PLAIN_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^ a-z0-9]+")
# Text in which the full cleaning changes only white space and case. `&` may start an HTML entity.
_PLAIN = re.compile(r"[ -%'-~\s]*", re.ASCII)
_SPACE = re.compile(r"\s+")


@functools.cache
def _byte_pair_encoding() -> Tokenizer:
    result = Tokenizer(models.BPE(vocabulary(), list(merges()), end_of_word_suffix=END_OF_WORD))
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    result.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return result


def clean(text: str) -> str:
    """Fixes mojibake, resolves HTML entities (twice: some are doubly escaped), collapses white space and lower-cases.

    Applied to every caption, whether or not ingestion has cleaned it for storage.
    """
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACE.sub(" ", text).strip().lower()


def tokenize(texts: str | Sequence[str], context_length: int = 77) -> Tensor:
    """Token ids (B, context_length), int64, zero-padded; a single text is a batch of one.

    Each row is start-of-text, the caption, end-of-text; a longer caption is truncated, with end-of-text last.
    """
    return torch.from_numpy(token_ids(texts, context_length).astype(np.int64))


def token_ids(texts: str | Sequence[str], context_length: int = 77) -> NDArray[np.uint16]:
    """The same ids as `tokenize`, as uint16."""
    texts = [texts] if isinstance(texts, str) else texts
    result = np.zeros((len(texts), context_length), dtype=np.uint16)
    for row, text in zip(result, texts, strict=True):
        ids = [START_OF_TEXT, *_encode(clean(text))[: context_length - 2], END_OF_TEXT]
        row[: len(ids)] = ids
    return result


def _encode(text: str) -> list[int]:
    """The ids of cleaned text."""
    if not _PLAIN.fullmatch(text):
        return list(_byte_pair_encoding().encode(text).ids)
    return [one for word in _PLAIN_WORDS.findall(text) for one in _word_ids(word)]


@functools.lru_cache(maxsize=1 << 17)
def _word_ids(word: str) -> list[int]:
    """The ids of one word of plain text; captions repeat a few thousand words, and a look-up costs a tenth of an encoding."""
    return list(_byte_pair_encoding().encode(word).ids)
