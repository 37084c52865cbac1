"""Captions to token ids: CLIP's text cleaning, then a Rust implementation of its lower-cased byte-pair encoding."""

from __future__ import annotations

import html
import re

import ftfy
import numpy as np
import torch
from instant_clip_tokenizer import Tokenizer
from numpy.typing import NDArray
from torch import Tensor

START_OF_TEXT = 49406
END_OF_TEXT = 49407

_TOKENIZER = Tokenizer()
# Text in which the full cleaning changes only white space and case. `&` may start an HTML entity.
_PLAIN = re.compile(r"[ -%'-~\s]*", re.ASCII)
_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """Fixes mojibake, resolves HTML entities (twice: some are doubly escaped), collapses white space and lower-cases.

    Applied to every caption, whether or not ingestion has cleaned it for storage.
    """
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACE.sub(" ", text).strip().lower()


def tokenize(texts: list[str], context_length: int = 77) -> Tensor:
    """Token ids (B, context_length), int64, zero-padded.

    Each row is start-of-text, the caption, end-of-text; a longer caption is truncated, with end-of-text last.
    """
    return torch.from_numpy(token_ids(texts, context_length).astype(np.int64))


def token_ids(texts: list[str], context_length: int = 77) -> NDArray[np.uint16]:
    """The same ids as `tokenize`, as uint16."""
    if not texts:
        return np.zeros((0, context_length), dtype=np.uint16)
    return _TOKENIZER.tokenize_batch([clean(text) for text in texts], context_length=context_length)
