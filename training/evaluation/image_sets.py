"""Pictures to evaluate on, wherever they come from: data sets of ours, and folders with a folder of pictures for each class.

In: a storage. Out: a `Source`: samples by their index, with captions or labels, so that each rank reads its slice alone. Tars
of others are in training/evaluation/clip_benchmark.py; training/evaluation/inputs.py finds out what lies at an address.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.base import Storage
from training.data.shard_reader import RawSample, ShardReader
from training.distributed import World, slice_bounds

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
READ_THREADS = 8
Item = TypeVar("Item")


class Source(ABC):
    """Samples in an order, by their index.

    Attributes:
        what: the key and the address, as a message begins.
        num_samples: of all ranks.
        class_names, templates: lines of the files that lie beside the pictures; none where there is no such file.
    """

    what: str
    num_samples: int
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @abstractmethod
    def read(self, first: int, stop: int) -> list[RawSample]:
        """Samples [first, stop), with their captions where the source was opened for those."""

    @abstractmethod
    def labels(self) -> list[str]:
        """What class each of all samples is of, as it is written there. Raises ConfigError where one has none."""

    def name(self, classes: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """label -> name of a file's class names; here a name is the label itself.

        Args:
            classes: the labels that pictures have, sorted.

        Raises:
            ConfigError: they do not fit together.
        """
        return {name: name for name in names}


class ManifestSource(Source):
    """A version of a data set of ours."""

    def __init__(self, what: str, storage: Storage, captions: tuple[str, ...], label_column: str, version: int) -> None:
        self.what, self._label_column = what, label_column
        self._manifest: Manifest = read_manifest(storage, version)
        self._reader = ShardReader(storage, self._manifest, captions, captions_key="evaluation.retrieval_captions")
        self.num_samples = self._manifest.num_samples

    def read(self, first: int, stop: int) -> list[RawSample]:
        found: list[RawSample] = []
        before = 0
        for shard, record in enumerate(self._manifest.shards):
            begin, end = max(first - before, 0), min(stop - before, record.num_samples)
            before += record.num_samples
            if begin < end:
                found += self._reader.read(shard, begin, end)
        return found

    def labels(self) -> list[str]:
        if not self._label_column:
            section = self.what.partition("=")[0].rpartition(".")[0]
            raise ConfigError(f"{section}.label_column: is empty; name the column that holds the class of each sample")
        labels: list[str] = []
        for shard, record in enumerate(self._manifest.shards):
            if record.num_samples:
                column = self._reader.columns(shard, [self._label_column])[self._label_column]
                if column.null_count:
                    raise ConfigError(
                        f"{self.what}: {column.null_count} samples of {record.name} have no {self._label_column}; leave "
                        "those out with jobs/curate.py, or name another column"
                    )
                labels += [str(value) for value in column.to_pylist()]
        return labels


class FolderSource(Source):
    """A folder of pictures for each class, as torchvision's ImageFolder has it: classes and files in alphabetical order."""

    def __init__(self, what: str, storage: Storage, pictures: list[str]) -> None:
        self.what, self._storage = what, storage
        self._paths = sorted(pictures, key=lambda path: (path.partition("/")[0], path))
        self.num_samples = len(self._paths)
        self.class_names, self.templates = (read_lines(storage, name) for name in (CLASS_NAMES, TEMPLATES))

    def read(self, first: int, stop: int) -> list[RawSample]:
        paths = self._paths[first:stop]
        return [RawSample(path, image, ()) for path, image in zip(paths, read_several(self._storage.read, paths), strict=True)]

    def labels(self) -> list[str]:
        return [path.partition("/")[0] for path in self._paths]

    def name(self, classes: Sequence[str], names: Sequence[str]) -> dict[str, str]:
        """Names are the folders' own, or one for each folder in the folders' order."""
        if set(classes) <= set(names):
            return super().name(classes, names)
        if len(names) != len(classes):
            raise ConfigError(
                f"{self.what}: holds {len(classes):,} folders of pictures, and {len(names):,} class names were given; give one "
                "for each, in the folders' alphabetical order, or lines of FOLDER, a tab and the name"
            )
        return dict(zip(classes, names, strict=True))


def read_lines(storage: Storage, path: str) -> tuple[str, ...]:
    """The lines of a text file, without blank ones at its end; none where there is no such file.

    Raises:
        ConfigError: one in between is blank: what lies after it may be meant by its number.
    """
    try:
        lines = storage.read(path).decode("utf-8").rstrip().splitlines()
    except FileNotFoundError:
        return ()
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        raise ConfigError(f"{storage.address(path)}: line {blank[0]} is blank; write what belongs there, or take it out")
    return tuple(line.strip() for line in lines)


def read_several(read: Callable[[Item], bytes], items: Sequence[Item]) -> list[bytes]:
    """Several reads at a time: object storage takes long for each."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, items))


def own_slice(source: Source, world: World) -> tuple[int, int]:
    """[first, stop) of this rank's samples."""
    return slice_bounds(source.num_samples, world.rank, world.world_size)
