"""A data set as torch's DataLoader takes it: (pixels, token ids) by index, with one read for the neighbours of a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from model.preprocess import AnImage, Preprocess
from model.tokenizer import tokenize as clips_tokenize
from pipeline.errors import InputError
from rayclip.data_set import DataSet, Sample

IMAGE_SIZE_PX = 224
"""That of most published models."""


class TorchPairs(Dataset[tuple[Any, Any]]):
    """Pairs of a data set, decoded when they are asked for, in this process or in the workers of a DataLoader."""

    def __init__(
        self,
        data: DataSet,
        preprocess: Callable[[AnImage], Any] | None,
        tokenize: Callable[[list[str]], Any] | None,
        caption_column: str,
    ) -> None:
        self._data, self._caption_column = data, caption_column
        self._preprocess = preprocess or Preprocess(IMAGE_SIZE_PX)
        self._tokenize = tokenize or clips_tokenize

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """The pairs of a batch, in the order of the indices. Raises InputError if a sample is damaged."""
        size = len(self)
        odd = next((index for index in indices if not -size <= index < size), None)
        if odd is not None:
            raise IndexError(f"sample {odd}: the data set has {size:,}")
        wanted = [self._data.place(index % size) for index in indices]
        of_shard: dict[int, set[int]] = defaultdict(set)
        for number, position in wanted:
            of_shard[number].add(position)
        found: dict[tuple[int, int], Sample] = {}
        for number, positions in of_shard.items():
            ordered = sorted(positions)
            samples = self._data.read(number, ordered, [self._caption_column])
            found |= {(number, position): sample for position, sample in zip(ordered, samples, strict=True)}
        return [self._pair(found[place]) for place in wanted]

    def _pair(self, sample: Sample) -> tuple[Any, Any]:
        try:
            pixels = self._preprocess(sample.image)
        except ValueError as error:
            raise InputError(f"{self._data.uri}: sample {sample.key}: {error}; remove it with jobs/curate.py") from None
        value = sample.captions if self._caption_column == "caption" else sample.columns[self._caption_column]
        texts = [value] if isinstance(value, str) else list(value or ())
        return pixels, self._tokenize([str(texts[0]) if texts else ""])[0]
