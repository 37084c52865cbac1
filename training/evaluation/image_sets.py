"""Images to evaluate on: data sets that jobs/ingest.py wrote, and folders that hold a folder of images for each class.

In: a storage. Out: an `ImageSet`: samples by their index, with captions or labels, so that each rank reads its slice alone.
training/evaluation/clip_benchmark.py adds tars of the clip-benchmark community; training/evaluation/evaluation_data.py finds
out which of these lies at an address.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.json_values import is_bytes, is_text
from pipeline.dataset.manifest import Manifest, ManifestError
from pipeline.errors import ConfigError
from pipeline.storage.base import Storage
from pipeline.storage.small_text import read_text
from training.data.shard_reader import RawSample, ShardReader
from training.evaluation.class_folders import ClassFolders
from training.evaluation.label_names import INTEGER, Kind

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
READ_THREADS = 8
NUMBER = re.compile(r"[-+]?[0-9]{1,15}(\.[0-9]*)?")
T = TypeVar("T")


class ImageSet(ABC):
    """Samples in a fixed order, by their index.

    Attributes:
        subject: KEY=ADDRESS, with which messages begin.
        num_samples: samples of all ranks together.
        class_names, templates: texts of the files beside the images; None if there is no such file.
        needs_names: only class names give the labels a meaning.
        empty_classes: labels without a sample.
        notes: what figures of these images depend on, beside the model; a sentence each.
    """

    subject: str
    num_samples: int
    class_names: str | None = None
    templates: str | None = None
    needs_names = False
    empty_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, first: int, stop: int) -> list[RawSample]:
        """Returns samples [first, stop), with their captions if the set was opened for captions."""

    @abstractmethod
    def labels(self) -> list[str]:
        """Returns the label of each sample, as it is stored. Raises ConfigError if one has none."""

    def label_kind(self, labels: Sequence[str]) -> Kind:
        """Returns what the labels are: numbers of classes, folders, or texts."""
        return "number" if all(map(INTEGER.fullmatch, labels)) else "text"


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
        samples = (sample for part in self._parts(first, stop) for sample in self._reader.read(*part))
        # A caption that several columns hold is one query.
        return [replace(sample, captions=tuple(dict.fromkeys(sample.captions))) for sample in samples]

    def columns(self, first: int, stop: int, names: Sequence[str]) -> dict[str, list[Any]]:
        """Returns sidecar columns of samples [first, stop). Raises ManifestError if a column is missing."""
        found: dict[str, list[Any]] = {name: [] for name in names}
        for shard, begin, end in self._parts(first, stop):
            table = self._reader.columns(shard, names).slice(begin, end - begin)
            for name in names:
                found[name] += table[name].to_pylist()
        return found

    def labels(self) -> list[str]:
        key = f"{self.subject.partition('=')[0].rpartition('.')[0]}.label_column"
        if not self._label_column:
            raise ConfigError(f"{key}: is empty; name the column that holds the class of each sample")
        labels: list[str] = []
        for shard, record in enumerate(self._manifest.shards):
            if record.num_samples:
                try:
                    column = self._reader.columns(shard, [self._label_column])[self._label_column]
                except ManifestError as error:
                    raise ManifestError(f"{key}={self._label_column}: {error}") from None
                labels += self._as_labels(column, record.name)
        self._refuse_equal_numbers(set(labels))
        return labels

    def _refuse_equal_numbers(self, labels: set[str]) -> None:
        """Raises ConfigError if labels differ only in how a value is written, as the columns of different shards may."""
        values: dict[float | str, str] = {}
        for label in sorted(labels):
            is_number = NUMBER.fullmatch(label) is not None
            if is_number or label.lower() in ("true", "false"):
                before = values.setdefault(float(label) if is_number else label.lower(), label)
                if before != label:
                    kind = "number" if is_number else "value"
                    raise ConfigError(
                        f"{self.subject}: the column {self._label_column} holds {before} and {label}, one {kind} in two forms; "
                        f"write the {kind}s in one form"
                    )

    def _as_labels(self, column: pa.ChunkedArray, shard: str) -> list[str]:
        """Returns a column's labels as text; whole numbers without a fraction. Raises ConfigError if one is missing."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind, subject = column.type, f"{self.subject}: the column {self._label_column} of {shard}"
        remedy = "name a column that holds one class for each sample"
        if pa.types.is_floating(kind):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        if is_bytes(kind) or is_text(kind):
            column = pa.chunked_array([pa.array(map(_stripped, column.to_pylist()), pa.large_binary())])
        if column.null_count:
            raise ConfigError(
                f"{self.subject}: {column.null_count} samples of {shard} have no {self._label_column}; remove "
                "them with jobs/curate.py, or name another column"
            )
        if pa.types.is_nested(kind):
            raise ConfigError(f"{subject} holds lists or structures; {remedy}")
        if pa.types.is_floating(kind):
            broken = next((value for value in column.to_pylist() if not float(value).is_integer()), None)
            if broken is not None:
                raise ConfigError(f"{subject} holds {broken}, which is not the number of a class; {remedy}")
            return [str(int(value)) for value in column.to_pylist()]
        values = column.to_pylist()
        if is_bytes(kind) or is_text(kind):
            try:
                values = [value.decode("utf-8") for value in values]
            except UnicodeDecodeError:
                raise ConfigError(f"{subject} holds bytes that are not UTF-8; {remedy}") from None
        return [str(value).strip() for value in values]

    def _parts(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields (shard, begin, end) of the shards that hold samples [first, stop)."""
        before = 0
        for shard, record in enumerate(self._manifest.shards):
            begin, end = max(first - before, 0), min(stop - before, record.num_samples)
            before += record.num_samples
            if begin < end:
                yield shard, begin, end


def _stripped(label: str | bytes | None) -> bytes | None:
    """A label without the space around it, and without the zeros that fill a field of fixed size; None for a blank one."""
    if label is None:
        return None
    return (label.strip().encode() if isinstance(label, str) else label.rstrip(b"\0").strip()) or None


class FolderImageSet(ImageSet):
    """A folder of images for each class, like torchvision's ImageFolder: classes and files in alphabetical order."""

    def __init__(self, subject: str, storage: Storage, folders: ClassFolders) -> None:
        self.subject, self._storage = subject, storage
        self._paths = folders.images
        self.num_samples = len(self._paths)
        self.empty_classes, self.notes = folders.empty, folders.notes
        self.class_names, self.templates = (read_text(storage, name) for name in (CLASS_NAMES, TEMPLATES))

    def read(self, first: int, stop: int) -> list[RawSample]:
        paths = self._paths[first:stop]
        return [RawSample(path, image, ()) for path, image in zip(paths, read_several(self._storage.read, paths), strict=True)]

    def labels(self) -> list[str]:
        return [path.partition("/")[0] for path in self._paths]

    def label_kind(self, labels: Sequence[str]) -> Kind:
        return "folder"


def read_several(read: Callable[[T], bytes], items: Sequence[T]) -> list[bytes]:
    """Reads items in several threads, since each read from object storage takes long."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, items))
