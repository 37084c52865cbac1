"""Images to evaluate on: data sets that jobs/ingest.py wrote, and folders that hold a folder of images for each class.

In: a storage. Out: an `ImageSet`: samples by their index, with captions or labels, so that each rank reads its slice alone.
training/evaluation/clip_benchmark.py adds tars of the clip-benchmark community; training/evaluation/evaluation_data.py finds
out which of these lies at an address.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError
from pipeline.storage.base import Storage
from training.data.shard_reader import RawSample, ShardReader

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
READ_THREADS = 8
T = TypeVar("T")


class ImageSet(ABC):
    """Samples in a fixed order, by their index.

    Attributes:
        subject: KEY=ADDRESS, with which messages begin.
        num_samples: samples of all ranks together.
        class_names, templates: lines of the files beside the images; empty if there is no such file.
        numbered_classes: labels are numbers, which only class names give a meaning.
    """

    subject: str
    num_samples: int
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    numbered_classes = False

    @abstractmethod
    def read(self, first: int, stop: int) -> list[RawSample]:
        """Returns samples [first, stop), with their captions if the set was opened for captions."""

    @abstractmethod
    def labels(self) -> list[str]:
        """Returns the label of each sample, as it is stored. Raises ConfigError if one has none."""

    def match_names(self, labels: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """Returns label -> class name for the names of a file; by default a name is the label itself.

        Args:
            labels: the labels that occur, sorted.

        Raises:
            ConfigError: labels and names do not fit together.
        """
        return {name: name for name in names}


class ManifestImageSet(ImageSet):
    """A version of a data set that jobs/ingest.py wrote."""

    def __init__(
        self, subject: str, storage: Storage, manifest: Manifest, captions: tuple[str, ...], label_column: str = ""
    ) -> None:
        self.subject, self._label_column = subject, label_column
        self._manifest = manifest
        self._reader = ShardReader(storage, manifest, captions, captions_key="evaluation.retrieval_captions")
        self.num_samples = manifest.num_samples

    def read(self, first: int, stop: int) -> list[RawSample]:
        return [sample for shard, begin, end in self._parts(first, stop) for sample in self._reader.read(shard, begin, end)]

    def columns(self, first: int, stop: int, names: Sequence[str]) -> dict[str, list[Any]]:
        """Returns sidecar columns of samples [first, stop). Raises ManifestError if a column is missing."""
        found: dict[str, list[Any]] = {name: [] for name in names}
        for shard, begin, end in self._parts(first, stop):
            table = self._reader.columns(shard, names).slice(begin, end - begin)
            for name in names:
                found[name] += table[name].to_pylist()
        return found

    def labels(self) -> list[str]:
        if not self._label_column:
            section = self.subject.partition("=")[0].rpartition(".")[0]
            raise ConfigError(f"{section}.label_column: is empty; name the column that holds the class of each sample")
        labels: list[str] = []
        for shard, record in enumerate(self._manifest.shards):
            if record.num_samples:
                column = self._reader.columns(shard, [self._label_column])[self._label_column]
                if column.null_count:
                    raise ConfigError(
                        f"{self.subject}: {column.null_count} samples of {record.name} have no {self._label_column}; remove "
                        "them with jobs/curate.py, or name another column"
                    )
                labels += [str(value) for value in column.to_pylist()]
        return labels

    def _parts(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields (shard, begin, end) of the shards that hold samples [first, stop)."""
        before = 0
        for shard, record in enumerate(self._manifest.shards):
            begin, end = max(first - before, 0), min(stop - before, record.num_samples)
            before += record.num_samples
            if begin < end:
                yield shard, begin, end


class FolderImageSet(ImageSet):
    """A folder of images for each class, like torchvision's ImageFolder: classes and files in alphabetical order."""

    def __init__(self, subject: str, storage: Storage, paths: list[str]) -> None:
        self.subject, self._storage = subject, storage
        self._paths = sorted(paths, key=lambda path: (path.partition("/")[0], path))
        self.num_samples = len(self._paths)
        self.class_names, self.templates = (read_lines(storage, name) for name in (CLASS_NAMES, TEMPLATES))

    def read(self, first: int, stop: int) -> list[RawSample]:
        paths = self._paths[first:stop]
        return [RawSample(path, image, ()) for path, image in zip(paths, read_several(self._storage.read, paths), strict=True)]

    def labels(self) -> list[str]:
        return [path.partition("/")[0] for path in self._paths]

    def match_names(self, labels: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """Names are the folders' own, or one for each folder in alphabetical order of the folders."""
        if set(labels) <= set(names):
            return super().match_names(labels, names)
        if len(names) != len(labels):
            raise ConfigError(
                f"{self.subject}: holds {len(labels):,} folders of images, but {len(names):,} class names were given; give one "
                "for each, in alphabetical order of the folders, or lines of FOLDER, a tab and the name"
            )
        return dict(zip(labels, names, strict=True))


def read_lines(storage: Storage, path: str) -> tuple[str, ...]:
    """Returns the stripped lines of a text file, without blank ones at its end; empty if there is no such file.

    Raises:
        ConfigError: a line in between is blank, so the line number of a later one might be wrong.
    """
    try:
        lines = storage.read(path).decode("utf-8").rstrip().splitlines()
    except FileNotFoundError:
        return ()
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        raise ConfigError(f"{storage.address(path)}: line {blank[0]} is blank; write what belongs there, or remove the line")
    return tuple(line.strip() for line in lines)


def read_several(read: Callable[[T], bytes], items: Sequence[T]) -> list[bytes]:
    """Reads items in several threads, since each read from object storage takes long."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, items))
