"""Captions, JPEGs and a data set that are made on the machine, for measurements of speed. Needs none of the peers."""

from __future__ import annotations

import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

WORDS = [
    *("a", "the", "of", "and", "in", "on", "with", "dog", "cat", "man", "red", "blue", "old", "new", "house", "street", "car"),
    *("beach", "mountain", "photo", "night", "food", "table", "tree", "water", "boat", "bird", "flower", "city", "park"),
    *("snow", "rain", "small", "large", "two", "people", "playing", "holding"),
]


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions as long as those of web data: a median of 12 tokens, special tokens included, and a long tail."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=max(1, round(rng.lognormvariate(2.3, 0.5))))) for _ in range(count)]


def jpegs(count: int, width: int = 341, height: int = 256) -> list[bytes]:
    """Distinct JPEGs that cost as much to decode as photographs: smooth colours under fine grain, about 40 kB by default."""
    import io

    import numpy as np
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (height, width, 1))
        file = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    return files


def write_data_set(uri: str, samples: int, shard_samples: int = 1_000, distinct_images: int = 64) -> int:
    """Writes a data set whose images repeat and whose captions do not. Returns the bytes of its tars."""
    from pipeline.dataset.manifest import PartitionRecord, commit
    from pipeline.dataset.shard import Row, StoredImage, write_shard
    from pipeline.storage.address import open_storage

    storage, records = open_storage(uri), []
    width, height = 341, 256
    images, texts = jpegs(distinct_images, width, height), captions(samples)
    for number, first in enumerate(range(0, samples, shard_samples)):
        rows = [
            Row(
                key=f"{number:08x}-{place:06d}",
                url="",
                caption=texts[place],
                outcome=StoredImage(images[place % len(images)], width, height, width, height, "{}"),
            )
            for place in range(first, min(samples, first + shard_samples))
        ]
        with tempfile.TemporaryDirectory() as temporary:
            shard = write_shard(rows, f"{number:08x}-000", "jpg", datetime.now(UTC), Path(temporary))
            for path in (shard.tar_path, shard.sidecar_path):
                storage.write_file(path, Path(temporary) / Path(path).name)
        record = PartitionRecord(
            id=f"{number:08x}",
            input_path="synthetic",
            first_row=first,
            num_rows=len(rows),
            rows_sha256="",
            options_fingerprint="",
            counts={"success": len(rows)},
            shards=(shard,),
        )
        records.append(record)
    commit(storage, records)
    return sum(record.shards[0].tar_size_bytes for record in records)
