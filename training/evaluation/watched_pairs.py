"""A few fixed pairs whose similarity is watched: each evaluation shows in the same way what a model has learned.

In: on every rank, the data set that is evaluated on (or else trained on), and the model. Out: on rank 0 `PairSimilarities`: the
similarities of images and captions, and the images found for some captions. The pairs are spread over the data set, read
once, and encoded by all ranks, each its slice.

They are only for display: an error is logged and never stops a run.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.clip import CLIP
from model.image_files import to_rgb
from model.image_loading import load_eval_image
from model.preprocess import normalize_images
from model.tokenizer import tokenize
from pipeline.dataset.manifest import Manifest, list_versions, read_manifest
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from training.config import TrainingConfig
from training.data.data_sets import DataSet
from training.data.shard_reader import RawSample, ShardReader
from training.distributed import World, gather_objects, slice_bounds

logger = logging.getLogger(__name__)

T = TypeVar("T")
NUM_PAIRS = 64
"""Pairs, and so images that are searched for each caption."""
NUM_SHOWN, NUM_QUERIES, NUM_FOUND = 16, 8, 5
"""Pairs whose similarities are shown; captions whose images are shown; images shown for each."""
NUM_SHARDS = 8
"""Shards that the pairs come from at most, since the sidecar of each is read."""
THUMBNAIL_PX, CAPTION_CHARACTERS = 96, 300


@dataclass(frozen=True)
class WatchedPairs:
    """The pairs themselves; the same in every evaluation of a run.

    Attributes:
        uri, version: their data set.
        held_out: the run is evaluated on them; otherwise the model was trained on them.
        captions: one for each pair, long ones cut.
        thumbnails: JPEG of each image, base64.
        shown: indices of the pairs whose similarities are shown.
        queries: indices of the captions whose images are shown.
    """

    uri: str
    version: int
    held_out: bool
    keys: list[str]
    captions: list[str]
    thumbnails: list[str]
    shown: list[int]
    queries: list[int]

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of probe.json."""
        return asdict(self)


@dataclass(frozen=True)
class PairSimilarities:
    """The similarities of the pairs under one model.

    Attributes:
        similarity: cosine of each image (rows) and each caption (columns) that is shown; None if it is not finite.
        found: for each query, the indices of the most similar images, best first.
        rank: for each query, the number of other images that score at least as high as its own.
    """

    similarity: list[list[float | None]]
    found: list[list[int]]
    rank: list[int]

    def as_row(self, step: int, pairs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a row of probe.jsonl. `pairs` is `WatchedPairs.as_dict`."""
        return {"step": step, "pairs": pairs_id(pairs), **asdict(self)}


@dataclass(frozen=True)
class _Own:
    """This rank's slice of the pairs, as the model takes them."""

    pixels: Tensor
    texts: Tensor
    keys: list[str]
    captions: list[str]
    thumbnails: list[str]


class PairWatcher:
    """Reads the pairs of one run, and computes their similarities, on every rank. Nothing is read before the first time."""

    def __init__(self, config: TrainingConfig, trained_on: Sequence[DataSet], world: World) -> None:
        self._world = world
        self._held_out = config.evaluation.retrieval_uri
        self._trained_on, self._config = trained_on[0], config
        self._own: _Own | None = None
        self._source = ("", 0)  # address and version
        self.pairs: WatchedPairs | None = None
        """The pairs; on rank 0, after the first measurement."""

    @torch.no_grad()
    def measure(self, clip: CLIP) -> PairSimilarities | None:
        """Computes the pairs' similarities, on rank 0; returns None on other ranks, and after an error.

        Every rank calls it, with its model in evaluation mode.
        """
        try:
            own: Any = self._encode(clip)
        except Exception as error:  # told to the other ranks, which would wait for this one
            own = f"{type(error).__name__}: {error}"
        parts = gather_objects(own, self._world)
        problems = [part for part in parts if isinstance(part, str)]
        keys = [] if problems else [key for part in parts for key in part["keys"]]
        if not keys:
            if self._world.is_main:
                logger.warning("the watched pairs are skipped: %s", problems[0] if problems else "there are no pairs")
            return None
        if not self._world.is_main:
            return None
        try:
            self.pairs = self.pairs or self._describe(parts)
            images, texts = (torch.cat([part[tower] for part in parts]) for tower in ("images", "texts"))
            return compare(images, texts, self.pairs.shown, self.pairs.queries)
        except Exception as error:
            logger.warning("the watched pairs are skipped: %s: %s", type(error).__name__, error)
            return None

    def _encode(self, clip: CLIP) -> dict[str, Any]:
        """Returns this rank's features (B, E), and what rank 0 records of its pairs."""
        row, device = clip.architecture, self._world.device
        own = self._own or self._read(row.image_size_px, row.context_length)
        self._own = own if own.keys else None  # without pairs, try again next time
        features = [torch.zeros(0, row.embed_dim)] * 2
        if own.keys:
            pixels = normalize_images(own.pixels.to(device))
            features = [clip.encode_image(pixels, normalize=True), clip.encode_text(own.texts, normalize=True)]
        images, texts = (value.float().cpu() for value in features)
        known = {"keys": own.keys, "captions": own.captions, "thumbnails": own.thumbnails}
        return {"images": images, "texts": texts, **known}

    def _read(self, image_size_px: int, context_length: int) -> _Own:
        storage, manifest, captions = self._open()
        self._source = (storage.uri, manifest.version)
        reader = ShardReader(storage, manifest, captions)
        pairs = spread([shard.num_samples for shard in manifest.shards], NUM_PAIRS)
        first, stop = slice_bounds(len(pairs), self._world.rank, self._world.world_size)
        wanted: dict[int, list[int]] = defaultdict(list)
        for shard, position in pairs[first:stop]:
            wanted[shard].append(position)
        raw = [one for shard, positions in wanted.items() for one in reader.read_run(shard, positions)]
        samples, pixels = [], []
        for sample in raw:
            with contextlib.suppress(ValueError):  # the loader and the evaluation report damage
                if isinstance(sample, RawSample):
                    pixels.append(load_eval_image(sample.image, image_size_px))
                    samples.append(sample)
        stacked = np.stack(pixels) if pixels else np.zeros((0, image_size_px, image_size_px, 3), np.uint8)
        return _Own(
            pixels=torch.from_numpy(stacked).permute(0, 3, 1, 2),  # (B, H, W, 3) -> (B, 3, H, W)
            texts=tokenize([sample.caption for sample in samples], context_length),
            keys=[sample.key for sample in samples],
            captions=[_cut(sample.caption) for sample in samples],
            thumbnails=[_thumbnail(sample.image) for sample in samples],
        )

    def _open(self) -> tuple[Storage, Manifest, tuple[str, ...]]:
        """Returns (storage, manifest, places of captions) of the pairs' data set, which has a manifest to read by."""
        if self._held_out is not None:
            storage = open_storage(self._held_out)
            if list_versions(storage):
                return storage, read_manifest(storage), self._config.evaluation.retrieval_captions
            self._held_out = None
        return self._trained_on.storage, self._trained_on.manifest, self._config.data.captions

    def _describe(self, parts: list[dict[str, Any]]) -> WatchedPairs:
        known = {name: [one for part in parts for one in part[name]] for name in ("keys", "captions", "thumbnails")}
        places = range(len(known["keys"]))
        return WatchedPairs(
            uri=self._source[0],
            version=self._source[1],
            held_out=self._held_out is not None,
            shown=evenly(places, NUM_SHOWN),
            queries=evenly(places, NUM_QUERIES),
            **known,
        )


def pairs_id(pairs: Mapping[str, Any]) -> str:
    """Returns a short hash of the pairs: a resumed run may watch others."""
    content = json.dumps([pairs["uri"], pairs["version"], pairs["keys"]])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@torch.autocast("cpu", enabled=False)  # bfloat16 would create ties
def compare(images_NE: Tensor, texts_NE: Tensor, shown: Sequence[int], queries: Sequence[int]) -> PairSimilarities:
    """Computes the similarities of some pairs, and the images among all N that are nearest to some captions.

    Args:
        images_NE, texts_NE: normalised features.
    """
    scores = texts_NE[list(queries)] @ images_NE.T
    right = scores.gather(1, torch.tensor(list(queries))[:, None])
    # `not lower` instead of `at least as high`, so that a NaN score is no hit.
    rank = ((~(scores < right)).sum(dim=1) - 1).tolist()
    found = scores.topk(min(NUM_FOUND, len(images_NE)), dim=1).indices.tolist()
    similarity = (images_NE[list(shown)] @ texts_NE[list(shown)].T).tolist()
    cells = [[round(value, 4) if math.isfinite(value) else None for value in row] for row in similarity]
    return PairSimilarities(similarity=cells, found=found, rank=rank)


def spread(counts: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Chooses (shard, position) of samples, evenly spaced over a few evenly spaced shards; ascending and deterministic.

    Args:
        counts: samples of each shard.
    """
    shards = evenly([shard for shard, count in enumerate(counts) if count], NUM_SHARDS)
    places = [(shard, position) for shard in shards for position in range(counts[shard])]
    return evenly(places, wanted)


def evenly(things: Sequence[T], wanted: int) -> list[T]:
    """Returns `wanted` of the things at equal distances, or all if there are fewer."""
    count = min(wanted, len(things))
    return [things[number * len(things) // count] for number in range(count)]


def _cut(caption: str) -> str:
    return caption if len(caption) <= CAPTION_CHARACTERS else caption[: CAPTION_CHARACTERS - 1] + "…"


def _thumbnail(data: bytes) -> str:
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        small = to_rgb(image)
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        small.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode("ascii")
