"""A fixed probe: a few pairs that every evaluation looks at in the same way, so that one can see what a model has learned.

In: on every rank, the data set that is evaluated on (or trained on, where there is none) and the model as it is. Out: on rank
0 a `Look`: similarities of pictures and captions, and which pictures are found for some of the captions. The pairs are spread
over the data set, read once, and encoded by all ranks, each its slice.

It is there to be looked at: what goes wrong with it is said once, and no run ends by it.
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
from model.image_loading import load_eval_image, to_rgb
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
"""Among so many pictures those of a caption are looked for."""
NUM_SHOWN, NUM_QUERIES, NUM_FOUND = 16, 8, 5
"""Pairs whose similarities are shown; captions whose pictures are shown; pictures shown for each."""
NUM_SHARDS = 8
"""That the pairs come from, at most: each costs its sidecar."""
THUMBNAIL_PX, CAPTION_CHARACTERS = 96, 300


@dataclass(frozen=True)
class ProbePairs:
    """What the probe looks at; the same in every evaluation of a run.

    Attributes:
        uri, version: of the data set.
        held_out: whether it is what the run is evaluated on; else the model was trained on these pairs.
        captions: of each pair, long ones cut.
        thumbnails: JPEG of each picture, base64.
        shown: places of the pairs whose similarities are shown.
        queries: places of the captions whose pictures are shown.
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
        """For probe.json."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What a model made of the pairs.

    Attributes:
        similarity: cosine of each picture that is shown (rows) and each caption that is shown (columns).
        found: for each query the places of the most similar pictures, best first.
        rank: for each query, how many pictures score at least as high as its own; 0: it is the first.
    """

    similarity: list[list[float | None]]
    found: list[list[int]]
    rank: list[int]

    def as_row(self, step: int, pairs: Mapping[str, Any]) -> dict[str, Any]:
        """For probe.jsonl. `pairs`: those that were looked at (`ProbePairs.as_dict`)."""
        return {"step": step, "pairs": pairs_id(pairs), **asdict(self)}


@dataclass(frozen=True)
class _Own:
    """This rank's slice of the pairs, ready for the model."""

    pixels: Tensor
    texts: Tensor
    keys: list[str]
    captions: list[str]
    thumbnails: list[str]


class Probe:
    """The pairs of one run, on every rank. Nothing is read before the first look."""

    def __init__(self, config: TrainingConfig, trained_on: Sequence[DataSet], world: World) -> None:
        self._world = world
        self._held_out = config.evaluation.retrieval_uri
        self._trained_on, self._config = trained_on[0], config
        self._own: _Own | None = None
        self._source = ("", 0)  # address and version
        self.pairs: ProbePairs | None = None
        """On rank 0, after the first look."""

    @torch.no_grad()
    def look(self, clip: CLIP) -> Look | None:
        """What the model makes of the pairs, on rank 0; None elsewhere, and where the probe does not work.

        Every rank calls it, with its model in evaluation mode.
        """
        try:
            own: Any = self._encode(clip)
        except Exception as error:  # said to all ranks, which would wait for this one else
            own = f"{type(error).__name__}: {error}"
        parts = gather_objects(own, self._world)
        problems = [part for part in parts if isinstance(part, str)]
        keys = [] if problems else [key for part in parts for key in part["keys"]]
        if not keys:
            if self._world.is_main:
                logger.warning("the probe is left out: %s", problems[0] if problems else "there are no pairs")
            return None
        if not self._world.is_main:
            return None
        try:
            self.pairs = self.pairs or self._describe(parts)
            images, texts = (torch.cat([part[tower] for part in parts]) for tower in ("images", "texts"))
            return compare(images, texts, self.pairs.shown, self.pairs.queries)
        except Exception as error:
            logger.warning("the probe is left out: %s: %s", type(error).__name__, error)
            return None

    def _encode(self, clip: CLIP) -> dict[str, Any]:
        """This rank's features (B, E), and what else rank 0 is to know of its pairs."""
        row, device = clip.architecture, self._world.device
        own = self._own or self._read(row.image_size_px, row.context_length)
        self._own = own if own.keys else None  # what could not be read is tried again
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
            with contextlib.suppress(ValueError):  # damage is for the loader and the evaluation to report
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
        """(storage, manifest, where captions come from) of the data set of the pairs: one of ours, so that few are read."""
        if self._held_out is not None:
            storage = open_storage(self._held_out)
            if list_versions(storage):
                return storage, read_manifest(storage), self._config.evaluation.retrieval_captions
            self._held_out = None
        return self._trained_on.storage, self._trained_on.manifest, self._config.data.captions

    def _describe(self, parts: list[dict[str, Any]]) -> ProbePairs:
        known = {name: [one for part in parts for one in part[name]] for name in ("keys", "captions", "thumbnails")}
        places = range(len(known["keys"]))
        return ProbePairs(
            uri=self._source[0],
            version=self._source[1],
            held_out=self._held_out is not None,
            shown=evenly(places, NUM_SHOWN),
            queries=evenly(places, NUM_QUERIES),
            **known,
        )


def pairs_id(pairs: Mapping[str, Any]) -> str:
    """Tells the pairs of one probe from those of another: a run may go on with other data to look at."""
    content = json.dumps([pairs["uri"], pairs["version"], pairs["keys"]])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@torch.autocast("cpu", enabled=False)  # in bfloat16 scores tie that do not
def compare(images_NE: Tensor, texts_NE: Tensor, shown: Sequence[int], queries: Sequence[int]) -> Look:
    """Similarities of some pairs, and the pictures that are nearest to some captions among all N.

    Args:
        images_NE, texts_NE: normalised features.
    """
    scores = texts_NE[list(queries)] @ images_NE.T
    right = scores.gather(1, torch.tensor(list(queries))[:, None])
    # Not lower, rather than at least as high: a score that is no number must not count as a hit.
    rank = ((~(scores < right)).sum(dim=1) - 1).tolist()
    found = scores.topk(min(NUM_FOUND, len(images_NE)), dim=1).indices.tolist()
    similarity = (images_NE[list(shown)] @ texts_NE[list(shown)].T).tolist()
    cells = [[round(value, 4) if math.isfinite(value) else None for value in row] for row in similarity]
    return Look(similarity=cells, found=found, rank=rank)


def spread(counts: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """(shard, position) of some samples, evenly over a few shards that are evenly chosen; ascending, and the same always.

    Args:
        counts: samples of each shard.
    """
    shards = evenly([shard for shard, count in enumerate(counts) if count], NUM_SHARDS)
    places = [(shard, position) for shard in shards for position in range(counts[shard])]
    return evenly(places, wanted)


def evenly(things: Sequence[T], wanted: int) -> list[T]:
    """So many of the things, or all where there are fewer, at equal distances."""
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
