"""The data sets that a run draws from: one, or a mixture of several with weights.

In: `data.*` of the configuration. Out: each one's storage, its pinned manifest and its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.manifest import Manifest, list_versions, read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.config import DataConfig
from training.data.order_layout import Source
from training.data.sample_order import SampleOrder

BATCHES_HELD = 32
"""Global batches that all blocks together hold with `data.block_size_samples=auto` (docs/decisions/0005-sample-order.md)."""


@dataclass(frozen=True)
class DataSet:
    """One opened version of a data set.

    Attributes:
        newest: the data set's newest version if a resumed run asks for `latest`; the run keeps the version it began with.
    """

    storage: Storage
    manifest: Manifest
    weight: float = 1.0
    newest: int | None = None

    @property
    def source(self) -> Source:
        """The data set's part of the sample order."""
        return Source(tuple(shard.num_samples for shard in self.manifest.shards), self.weight)

    @property
    def mean_sample_bytes(self) -> float:
        """Bytes of a sample in the tars, headers and padding included."""
        total = sum(shard.tar_size_bytes * shard.num_samples / max(1, shard.tar_samples) for shard in self.manifest.shards)
        return total / max(1, self.manifest.num_samples)

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint stores about it; with an equal `identity`, every sample has the same index."""
        return {"uri": self.storage.uri, "version": self.manifest.version, "identity": self.manifest.identity}

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f" x {self.weight:g}"
        return f"{self.storage.uri} version {self.manifest.version}{weight}"


def open_data_sets(config: DataConfig, held: Sequence[dict[str, Any]] = ()) -> tuple[DataSet, ...]:
    """Opens the data sets that `data.uri` or `data.mixture` names.

    Args:
        held: their identities in the run's checkpoint; `latest` then means the versions in there.

    Raises:
        ConfigError: no data set is named.
        ManifestError: the data set or the version does not exist.
    """
    opened = []
    for number, part in enumerate(config.parts):
        if not part.uri:
            raise ConfigError("data.uri: is empty; name a data set that jobs/ingest.py wrote")
        storage = open_storage(part.uri)
        begun = part.version == "latest" and number < len(held) and held[number]["uri"] == storage.uri
        manifest = read_manifest(storage, held[number]["version"] if begun else part.version)
        opened.append(DataSet(storage, manifest, part.weight, list_versions(storage)[-1] if begun else None))
    return tuple(opened)


def block_size_samples(config: DataConfig, global_batch_size: int) -> int:
    """Returns `data.block_size_samples`, with auto resolved."""
    if config.block_size_samples == "auto":
        return max(config.run_size_samples, BATCHES_HELD * global_batch_size // config.num_streams)
    return config.block_size_samples


def mean_sample_bytes(data_sets: Sequence[DataSet], order: SampleOrder) -> float:
    """Returns the mean over the data sets, by their weights."""
    pairs = zip(data_sets, order.sources, strict=True)
    return sum(one.mean_sample_bytes * source.epoch_samples for one, source in pairs) / order.epoch_samples


def check_prefetch(config: DataConfig, order: SampleOrder, sample_bytes: float, slice_length: int) -> None:
    """Checks that a rank may hold all blocks it needs: those of its streams, and its neighbours' at both ends.

    Args:
        sample_bytes: mean size of a sample.
        slice_length: samples of a step on this rank.

    Raises:
        ConfigError: the blocks would not fit into `data.prefetch_bytes`.
    """
    layout = order.layout
    share = layout.global_batch_size / max(1, slice_length)
    streams = min(layout.num_streams, int(layout.num_streams / share) + 2)
    block = min(layout.block_size_samples, layout.stream_length)
    needed = int(streams * block * sample_bytes)
    if needed > config.prefetch_bytes:
        raise ConfigError(
            f"data.prefetch_bytes={config.prefetch_bytes} is less than the {needed} bytes of the blocks that a worker with "
            f"{slice_length:,} samples of a step holds (about {streams} streams of {block} samples); raise it, take more "
            "workers, or lower data.num_streams or data.block_size_samples"
        )
