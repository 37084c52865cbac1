"""Loaders of small data sets, their order, and samples damaged on purpose."""

import torch

from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from training.config import DataConfig
from training.data.data_sets import open_data_sets
from training.data.loader import Batch, TrainLoader
from training.data.sample_order import SampleOrder
from training.data.shard_reader import ShardReader
from training.distributed import World

BATCH = 12
ORDER = {"seed": 5, "global_batch_size": BATCH, "num_streams": 2, "block_size_samples": 24, "run_size_samples": 4}


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank, world_size, torch.device("cpu"))


def order_of(config: DataConfig, **changes) -> SampleOrder:
    return SampleOrder(sources=tuple(one.source for one in open_data_sets(config)), **(ORDER | changes))


def open_loader(config: DataConfig, rank=0, world_size=1, start=0, **changes) -> TrainLoader:
    order = order_of(config, **changes)
    return TrainLoader(open_data_sets(config), order, world(rank, world_size), 32, 77, config, start)


def batches(uri: str | DataConfig, count: int, rank=0, world_size=1, start=0, **options) -> list[Batch]:
    """The first batches after `start` samples; `options` are keys of `data.*`."""
    config = uri if isinstance(uri, DataConfig) else DataConfig(uri=uri, **options)
    loader = open_loader(config, rank, world_size, start)
    try:
        return [batch for batch, _ in zip(loader, range(count), strict=False)]
    finally:
        loader.close()


def keys_of(uri: str) -> list[str]:
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    reader = ShardReader(storage, manifest)
    return [sample.key for shard, record in enumerate(manifest.shards) for sample in reader.read(shard, 0, record.num_samples)]


def damage(uri: str, shard: int, *samples: int) -> list[str]:
    """Flips a byte in the images of samples; returns their keys."""
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    tar = storage.local_path(manifest.shards[shard].tar_path)
    content = bytearray(tar.read_bytes())
    found = []
    for sample in ShardReader(storage, manifest).read(shard, 0, manifest.shards[shard].num_samples):
        if len(found) in samples:
            content[content.index(sample.image) + len(sample.image) // 2] ^= 1
        found.append(sample.key)
    tar.write_bytes(content)
    return [found[number] for number in samples]
