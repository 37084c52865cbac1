"""Features of a shard's images and captions: threads read and decode ahead while the model computes in one.

In: a `ShardReader` and a model. Out: a shard's `ShardFeatures`. Knows no Ray: jobs/embed.py gives actors their shards. Threads
suffice, since decoders and the model's kernels release Python's lock while they work.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.clip import CLIP
from model.image_loading import load_eval_image
from model.tokenizer import token_ids
from model.weights import state_sha256
from pipeline.dataset.manifest import read_samples
from training.config import TrainConfig
from training.data.damaged_samples import damage_error
from training.data.decoding import cut_to_longest
from training.data.shard_reader import CHANGED, Damage, ShardReader, is_changed
from training.encoder import Encoder


@dataclass(frozen=True)
class ShardFeatures:
    """Features of one shard's N samples, in their order.

    Attributes:
        image_features_NE, text_features_NE: normalised.
        clip_score_N: their cosine similarity.
        problems: place in the shard -> problem of a damaged sample, whose features are meaningless.
        decode_s, forward_s: seconds of reading and decoding, summed over threads, and of the model.
    """

    keys: list[str]
    urls: list[str | None]
    image_features_NE: NDArray[np.float32]
    text_features_NE: NDArray[np.float32]
    clip_score_N: NDArray[np.float32]
    problems: dict[int, str]
    decode_s: float
    forward_s: float


@dataclass(frozen=True)
class DecodedBatch:
    """Neighbours of a shard.

    Attributes:
        pixels: uint8 (B, size, size, 3), centre crop.
        texts: token ids, int64 (B, L), cut to the longest.
        problems: place in the batch -> problem of a damaged sample, whose image is black.
        duration_s: seconds of reading and decoding.
    """

    pixels: NDArray[np.uint8]
    texts: NDArray[np.int64]
    problems: dict[int, str]
    duration_s: float


Features = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]
"""image_features (B, E), text_features (B, E), clip_score (B,), and the seconds of the forward pass (1,)."""


class ShardEmbedder:
    """Embeds shards of one data set version. Thread-safe, so that one shard is read while another is computed."""

    def __init__(
        self,
        clip: CLIP,
        reader: ShardReader,
        device: torch.device,
        config: TrainConfig,
        batch_size: int,
        decode_threads: int,
        skip_damaged: bool = False,
    ) -> None:
        """
        Args:
            config: its `precision` is that of both encoders.
            skip_damaged: report damaged samples as problems instead of raising ManifestError.
        """
        self._encoder, self.clip, self.reader = Encoder(clip, device, config), clip, reader
        self.batch_size, self.skip_damaged = batch_size, skip_damaged
        self._ahead = decode_threads + 1
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        # One thread for the model: every thread that calls OpenMP has its own team, and teams would compete for the CPUs.
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")

    def embed(self, shard: int) -> ShardFeatures:
        """Embeds all samples of a shard.

        Raises:
            ManifestError: the sidecar is damaged, or a sample is and none may be skipped.
        """
        record = self.reader.manifest.shards[shard]
        named = read_samples(self.reader.storage, record, ["key", "url"])
        keys, urls = named["key"].to_pylist(), named["url"].to_pylist()
        dim = self.clip.architecture.embed_dim
        nothing = np.zeros((0, dim), np.float32)
        parts: list[Features] = [(nothing, nothing, np.zeros(0, np.float32), np.zeros(1))]
        problems: dict[int, str] = {}
        decode_s = 0.0
        decoding: deque[tuple[int, Future[DecodedBatch]]] = deque()
        starts = iter(range(0, len(keys), self.batch_size))
        while True:
            while len(decoding) < self._ahead and (first := next(starts, None)) is not None:
                stop = min(first + self.batch_size, len(keys))
                decoding.append((first, self._decoders.submit(self.decode, shard, first, stop)))
            if not decoding:
                break
            first, future = decoding.popleft()
            batch = future.result()
            decode_s += batch.duration_s
            problems |= {first + place: f"sample {keys[first + place]}: {text}" for place, text in batch.problems.items()}
            if problems and not self.skip_damaged:
                raise damage_error(f"{self.reader.address(shard)}: {next(iter(problems.values()))}")
            parts.append(self._model.submit(self.forward, batch).result())
        images_NE, texts_NE, clip_score_N, forward_s = (np.concatenate(column) for column in zip(*parts, strict=True))
        return ShardFeatures(keys, urls, images_NE, texts_NE, clip_score_N, problems, decode_s, float(forward_s.sum()))

    def decode(self, shard: int, first: int, stop: int) -> DecodedBatch:
        """Reads and decodes samples [first, stop) of a shard."""
        began = time.perf_counter()
        row = self.clip.architecture
        pixels = np.zeros((stop - first, row.image_size_px, row.image_size_px, 3), np.uint8)
        captions, problems = [""] * len(pixels), {}
        for place, sample in enumerate(self.reader.read_run(shard, range(first, stop))):
            if isinstance(sample, Damage):
                problems[place] = sample.problem
                continue
            captions[place] = sample.caption
            try:
                if is_changed(sample.image, sample.sha256):
                    raise ValueError(CHANGED)
                pixels[place] = load_eval_image(sample.image, row.image_size_px)
            except ValueError as error:
                problems[place] = str(error)
        texts = cut_to_longest(token_ids(captions, row.context_length)).astype(np.int64)
        return DecodedBatch(pixels, texts, problems, time.perf_counter() - began)

    def forward(self, batch: DecodedBatch) -> Features:
        """Computes a batch's features, in float32."""
        began = time.perf_counter()
        image_features_BE = self._encoder.encode_pixels(batch.pixels)
        text_features_BE = self._encoder.encode_tokens(batch.texts)
        clip_score_B = (image_features_BE * text_features_BE).sum(dim=1)
        found = [features.cpu().numpy() for features in (image_features_BE, text_features_BE, clip_score_B)]
        return found[0], found[1], found[2], np.array([time.perf_counter() - began])

    def close(self) -> None:
        """Ends the threads."""
        self._decoders.shutdown(cancel_futures=True)
        self._model.shutdown(cancel_futures=True)


def weights_sha256(clip: CLIP) -> str:
    """sha256 of the names, types, shapes and values of a model's state dict, whatever file it is stored in."""
    return state_sha256(clip.state_dict())
