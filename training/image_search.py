"""Finds the images that are closest to a text or to another image.

In: an `Encoder`, a query's features, and images: a version of a data set, with features that jobs/embed.py stored or without,
or the files of a folder. Out: `Hit`s, best first, and the images that cannot be read. Knows no Ray: it is for what one machine
reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.image_loading import Pixels, load_eval_image
from pipeline.dataset.columns import captions_of
from pipeline.dataset.features import ImageFeatures
from pipeline.dataset.manifest import Manifest, how_to_make_one, read_manifest, read_samples
from pipeline.errors import ConfigError, InputError
from pipeline.storage.base import Storage
from training.data.shard_reader import CHANGED, Damage, RawSample, ShardReader, is_changed
from training.encoder import Encoder
from training.evaluation.class_folders import is_image, list_paths

READ_SAMPLES = 64
"""Samples of a shard that are read at once."""
DECIMALS = 6
"""Scores are rounded to so many, since those of equal images in different batches differ by some 1e-7."""


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        index: place among the searched images.
        score: cosine similarity with the query.
        key: the sample's key; in a folder, the path in it.
        address: the image's URL, else that of its shard; in a folder, the file.
        caption: the first one, or empty.
    """

    index: int
    score: float
    key: str
    address: str
    caption: str = ""


@dataclass(frozen=True)
class Scored:
    """Scores of neighbours, NaN for images that cannot be read; `problems` names those."""

    scores: NDArray[np.float32]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """The answer to a query.

    Attributes:
        hits: best first; among equal scores, in the order of the images.
        num_images: images that were compared, without those that cannot be read.
    """

    hits: list[Hit]
    num_images: int
    problems: list[str]


class SearchedImages(ABC):
    """Images in a fixed order."""

    num_images: int

    @abstractmethod
    def score(self, encoder: Encoder, query_E: Tensor, batch_size: int) -> Iterator[Scored]:
        """Yields the scores of all images, in order."""

    @abstractmethod
    def describe(self, index: int, score: float) -> Hit:
        """Returns an image as a hit."""

    @abstractmethod
    def read(self, hit: Hit) -> bytes:
        """Returns the encoded image of a hit."""


def search(
    images: SearchedImages,
    encoder: Encoder,
    query_E: Tensor,
    most: int,
    batch_size: int = 256,
    progress: Callable[[int], object] = lambda compared: None,
) -> Found:
    """Compares all images with a query.

    Args:
        query_E: its normalised features.
        most: the number of hits.
        progress: called after each batch, with its number of images.
    """
    parts, problems = [np.zeros(0, np.float32)], list[str]()
    for part in images.score(encoder, query_E, batch_size):
        parts.append(part.scores)
        problems += part.problems
        progress(len(part.scores))
    scores = np.concatenate(parts).round(DECIMALS)
    order = np.argsort(-scores, kind="stable")[:most]  # NaN is sorted behind all numbers
    hits = [
        images.describe(int(index), round(float(scores[index]), DECIMALS)) for index in order if not np.isnan(scores[index])
    ]
    return Found(hits, int(np.isfinite(scores).sum()), problems)


class FolderImages(SearchedImages):
    """The image files of a folder and the folders in it, local or in object storage; hidden ones are no data."""

    def __init__(self, storage: Storage) -> None:
        """Raises InputError if there are none."""
        self._storage = storage
        paths = list_paths(storage, storage.uri, with_broken_links=True)
        self._paths = [path for path in paths if is_image(path)]
        self.num_images = len(self._paths)
        if not self._paths:
            raise InputError(_no_images(storage))

    def score(self, encoder: Encoder, query_E: Tensor, batch_size: int) -> Iterator[Scored]:
        def read(path: str, size_px: int) -> Pixels:
            return load_eval_image(self._storage.read(path), size_px)

        for batch in encoder.encode_images(self._paths, read, batch_size):
            lines = {place: f"{self._storage.address(batch.images[place])}: {text}" for place, text in batch.problems.items()}
            yield _scored(batch.features_BE, query_E, lines)

    def describe(self, index: int, score: float) -> Hit:
        path = self._paths[index]
        file = self._storage.local_path(path)
        return Hit(index, score, path, self._storage.address(path) if file is None else str(file.absolute()))

    def read(self, hit: Hit) -> bytes:
        return self._storage.read(self._paths[hit.index])


class DataSetImages(SearchedImages):
    """A version of a data set."""

    def __init__(self, storage: Storage, manifest: Manifest, features: ImageFeatures | None = None) -> None:
        """
        Args:
            features: of its images, by the same model; None: computed from the images.

        Raises:
            InputError: the version has no samples, or some of its shards have no features.
        """
        self._storage, self._manifest, self._features = storage, manifest, features
        self._reader = ShardReader(storage, manifest, captions=())
        self._ends = list(accumulate(shard.num_samples for shard in manifest.shards))
        self.num_images = manifest.num_samples
        if not self.num_images:
            raise InputError(f"{storage.uri}: version {manifest.version} holds no samples; name a data set that does")
        if features is not None:
            features.check(storage, manifest)

    def score(self, encoder: Encoder, query_E: Tensor, batch_size: int) -> Iterator[Scored]:
        if self._features is not None:
            yield from self._score_stored(self._features, query_E)
            return
        for batch in encoder.encode_images(self._samples(), _decoded, batch_size):
            lines = {place: _complaint(*batch.images[place], text) for place, text in batch.problems.items()}
            yield _scored(batch.features_BE, query_E, lines)

    def _score_stored(self, features: ImageFeatures, query_E: Tensor) -> Iterator[Scored]:
        query = query_E.cpu().numpy()
        for number, shard in enumerate(self._manifest.shards):
            if shard.num_samples:
                keys = read_samples(self._storage, shard, ["key"])["key"].to_pylist()
                scores = features.of(self._storage, shard, keys) @ query
                damaged = np.flatnonzero(np.isnan(scores)).tolist()
                place = self._reader.address(number)
                yield Scored(scores, [f"{place}: sample {keys[row]}: has no features, since it was damaged" for row in damaged])

    def _samples(self) -> Iterator[tuple[RawSample | Damage, str]]:
        """Yields each sample with the address of its shard."""
        for number, shard in enumerate(self._manifest.shards):
            for first in range(0, shard.num_samples, READ_SAMPLES):
                run = range(first, min(first + READ_SAMPLES, shard.num_samples))
                for sample in self._reader.read_run(number, run):
                    yield sample, self._reader.address(number)

    def describe(self, index: int, score: float) -> Hit:
        number, position = self._place(index)
        table = read_samples(self._storage, self._manifest.shards[number], ["key", "url", "caption"]).slice(position, 1)
        (row,), (captions,) = table.select(["key", "url"]).to_pylist(), captions_of(table["caption"])
        return Hit(
            index, score, row["key"], row["url"] or self._reader.address(number), (captions[0] or "") if captions else ""
        )

    def read(self, hit: Hit) -> bytes:
        number, position = self._place(hit.index)
        (sample,) = self._reader.read(number, position, position + 1)
        return sample.image

    def _place(self, index: int) -> tuple[int, int]:
        """Returns (shard, position in it)."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)


def open_images(place: Storage, is_data_set: bool, features: ImageFeatures | None = None) -> SearchedImages:
    """Opens the newest version of a data set, or a folder of image files.

    Raises:
        InputError: there are no images; the message says what lies there instead.
        ConfigError: features were given for a folder.
    """
    if is_data_set:
        return DataSetImages(place, read_manifest(place), features)
    if features is not None:
        raise ConfigError(f"--features={features.storage.uri}: only a data set has stored features, not {place.uri}; omit it")
    return FolderImages(place)


def _decoded(read: tuple[RawSample | Damage, str], size_px: int) -> Pixels:
    sample = read[0]
    if isinstance(sample, Damage):
        raise ValueError(sample.problem)
    if is_changed(sample.image, sample.sha256):
        raise ValueError(CHANGED)
    return load_eval_image(sample.image, size_px)


def _complaint(sample: RawSample | Damage, address: str, problem: str) -> str:
    return problem if isinstance(sample, Damage) else f"{address}: sample {sample.key}: {problem}"


def _scored(features_BE: Tensor, query_E: Tensor, problems: dict[int, str]) -> Scored:
    scores = (features_BE @ query_E.to(features_BE.device)).cpu().numpy()
    scores[list(problems)] = np.nan
    return Scored(scores, list(problems.values()))


def _no_images(storage: Storage) -> str:
    """The message for a folder without images, with the line to type for what it holds."""
    uri, root = storage.uri, storage.local_path("")
    if root is not None and not root.exists():
        return f"{uri}: there is no such folder; name a data set, or a folder of image files"
    if root is not None and root.is_file() and is_image(root.name):
        return f"{uri}: is an image file; name a data set, or a folder of image files"
    return f"{uri}: holds no image files, and there is no data set; {how_to_make_one(storage)}, or name a folder of image files"
