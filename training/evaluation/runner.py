"""Runs the evaluations that a configuration asks for, on all ranks: each reads, decodes and encodes its slice of the data.

In: a model and `evaluation.*`. Out: `Figure`s, the same on every rank. Between ranks travel captions' features, what the linear
probe learns from, and counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.clip import CLIP
from model.image_loading import load_eval_image
from model.preprocess import normalize_images
from model.tokenizer import tokenize
from pipeline.dataset.manifest import ManifestError, read_manifest
from pipeline.storage.address import open_storage
from training.config import EvaluationConfig, LinearProbeConfig, ZeroShotConfig
from training.data.loader import iterate_evaluation
from training.data.shard_reader import RawSample
from training.distributed import World, gather_rows, slice_bounds, sum_over_ranks
from training.evaluation.figures import Figure, flatten
from training.evaluation.image_sets import Source
from training.evaluation.inputs import number_labels, open_source, read_classes, read_templates
from training.evaluation.linear_probe import Features, Labels, probe_figures
from training.evaluation.retrieval import rank_pairs, retrieval_figures
from training.evaluation.zero_shot import build_classifier, count_right, zero_shot_figures

AHEAD = 2
"""Batches that are read and decoded while the model works."""


def _nobody_watches() -> None:
    pass


def evaluate(
    clip: CLIP, config: EvaluationConfig, world: World, alive: Callable[[], None] = _nobody_watches
) -> dict[str, float]:
    """What `measure` finds, as a row of metrics.jsonl: `evaluation/NAME`, and `evaluation_bounds/NAME_{low,high,chance}`."""
    return flatten(measure(clip, config, world, alive))


@torch.no_grad()
def measure(clip: CLIP, config: EvaluationConfig, world: World, alive: Callable[[], None] = _nobody_watches) -> list[Figure]:
    """All configured figures, on every rank. The model is in evaluation mode.

    Args:
        alive: called again and again meanwhile; an evaluation may take hours.

    Raises:
        ConfigError, ManifestError: a data set, or what is needed of it, is not there.
    """
    figures: list[Figure] = []
    if config.retrieval_uri is not None:
        figures += _retrieval(clip, config, world, alive)
    if config.zero_shot is not None:
        figures += _zero_shot(clip, config.zero_shot, config.batch_size, world, alive)
    if config.linear_probe is not None:
        figures += _linear_probe(clip, config.linear_probe, config.batch_size, world, alive)
    return figures


def check_evaluation(config: EvaluationConfig) -> None:
    """Opens what will be evaluated on, before a run starts. Raises ConfigError or ManifestError."""
    alone = World(rank=0, world_size=1, device=torch.device("cpu"))
    if config.retrieval_uri is not None:
        open_source("evaluation.retrieval_uri", config.retrieval_uri, alone, config.retrieval_captions)
    if config.zero_shot is not None:
        source = _open_zero_shot(config.zero_shot, alone)
        read_templates(source, config.zero_shot)
        read_classes(source, config.zero_shot)
    if config.linear_probe is not None:
        number_labels(*_open_probe(config.linear_probe, alone))


def _retrieval(clip: CLIP, config: EvaluationConfig, world: World, alive: Callable[[], None]) -> list[Figure]:
    assert config.retrieval_uri is not None
    source = open_source("evaluation.retrieval_uri", config.retrieval_uri, world, config.retrieval_captions)
    row = clip.architecture
    images, texts = [], []
    captions_of: list[int] = []
    for batch in read_batches(source, config.batch_size, row.image_size_px, world):
        alive()
        images.append(clip.encode_image(normalize_images(batch.images.to(world.device)), normalize=True).float())
        captions = [caption for sample in batch.samples for caption in sample.captions]
        captions_of += [len(sample.captions) for sample in batch.samples]
        for start in range(0, len(captions), config.batch_size):
            ids = tokenize(captions[start : start + config.batch_size], row.context_length)
            texts.append(clip.encode_text(ids, normalize=True).float())
    nothing = torch.zeros(0, row.embed_dim, device=world.device)
    counts = torch.tensor(captions_of, dtype=torch.int64, device=world.device)
    image_of_text_M = torch.arange(len(counts), device=world.device).repeat_interleave(counts)
    return retrieval_figures(rank_pairs(torch.cat([nothing, *images]), torch.cat([nothing, *texts]), image_of_text_M, world))


def _open_zero_shot(config: ZeroShotConfig, world: World) -> Source:
    return open_source("evaluation.zero_shot.uri", config.uri, world, label_column=config.label_column)


def _zero_shot(clip: CLIP, config: ZeroShotConfig, batch_size: int, world: World, alive: Callable[[], None]) -> list[Figure]:
    source = _open_zero_shot(config, world)
    classes, row = read_classes(source, config), clip.architecture

    def encode_text(ids: Tensor) -> Tensor:
        alive()
        return clip.encode_text(ids, normalize=True).float()

    classifier_CE = build_classifier(
        encode_text,
        lambda prompts: tokenize(prompts, row.context_length),
        classes.names,
        read_templates(source, config),
        world,
        batch_size,
    )
    labels_N = torch.tensor(classes.labels, device=world.device)
    hits_KC = torch.zeros(2, len(classes.names), dtype=torch.int64, device=world.device)
    for batch in read_batches(source, batch_size, row.image_size_px, world):
        alive()
        images = clip.encode_image(normalize_images(batch.images.to(world.device)), normalize=True).float()
        own_N = labels_N[batch.first : batch.first + len(images)]
        hits_KC += count_right(images, classifier_CE, own_N, (1, 5))
    counts_C = torch.bincount(labels_N, minlength=len(classes.names))
    return zero_shot_figures(sum_over_ranks(hits_KC, world), counts_C)


def _open_probe(config: LinearProbeConfig, world: World) -> tuple[Source, Source, Source | None]:
    def opened(name: str, uri: str) -> Source:
        return open_source(f"evaluation.linear_probe.{name}", uri, world, label_column=config.label_column)

    validation = None if config.validation_uri is None else opened("validation_uri", config.validation_uri)
    return opened("train_uri", config.train_uri), opened("test_uri", config.test_uri), validation


def _linear_probe(
    clip: CLIP, config: LinearProbeConfig, batch_size: int, world: World, alive: Callable[[], None]
) -> list[Figure]:
    sources = _open_probe(config, world)
    labels = number_labels(*sources)

    def encoded(source: Source, numbers: tuple[int, ...]) -> tuple[Features, Labels]:
        batches = read_batches(source, batch_size, clip.architecture.image_size_px, world)
        rows = []
        for batch in batches:
            alive()
            rows.append(clip.encode_trunk(normalize_images(batch.images.to(world.device))).float())
        # A rank without a sample has no features whose width it could know; it has them all the same.
        width = torch.tensor([rows[0].shape[1] if rows else 0], device=world.device)
        width = sum_over_ranks(width, world) // max(1, min(world.world_size, source.num_samples))
        nothing = torch.zeros(0, int(width), device=world.device)
        return gather_rows(torch.cat([nothing, *rows]), source.num_samples, world).cpu().numpy(), np.array(numbers)

    found = [encoded(source, numbers) for source, numbers in zip([one for one in sources if one], labels, strict=True)]
    train, test, validation = (*found, None)[:3]
    assert train is not None
    assert test is not None
    return probe_figures(train, test, validation, world, alive)


# ------------------------------------------------------------------------------------------------------- reading a slice


@dataclass(frozen=True)
class SourceBatch:
    """Neighbouring samples.

    Attributes:
        first: index of the first one.
        images: uint8 (B, 3, H, W), centre crop, on the CPU.
    """

    first: int
    samples: list[RawSample]
    images: Tensor


def read_batches(source: Source, batch_size: int, image_size_px: int, world: World) -> Iterator[SourceBatch]:
    """A rank's contiguous slice of all samples, once, in the order of their index; read and decoded ahead, by threads.

    Raises ManifestError where a picture cannot be decoded.
    """

    def decoded(sample: RawSample) -> Any:
        try:
            return load_eval_image(sample.image, image_size_px)
        except ValueError as error:
            raise ManifestError(f"{source.what}: sample {sample.key}: {error}; restore it or leave it out") from None

    start, stop = slice_bounds(source.num_samples, world.rank, world.world_size)
    threads = max(1, torch.get_num_threads())
    with ThreadPoolExecutor(1, "evaluation-read") as reader, ThreadPoolExecutor(threads, "evaluation-decode") as decoders:

        def load(first: int) -> SourceBatch:
            samples = source.read(first, min(first + batch_size, stop))
            pixels = torch.from_numpy(np.stack(list(decoders.map(decoded, samples))))
            return SourceBatch(first, samples, pixels.permute(0, 3, 1, 2))  # (B, H, W, 3) -> (B, 3, H, W)

        yield from _ahead(reader, load, range(start, stop, batch_size))


def _ahead(reader: ThreadPoolExecutor, load: Callable[[int], SourceBatch], places: range) -> Iterator[SourceBatch]:
    under_way: deque[Future[SourceBatch]] = deque()
    for place in places:
        under_way.append(reader.submit(load, place))
        if len(under_way) > AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


@torch.no_grad()
def encode_data_set(
    clip: CLIP, uri: str, batch_size: int, world: World, columns: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor, dict[str, list[Any]]]:
    """Normalised features of our own data set's pairs, (N, E) each, on every rank, and sidecar columns of this rank's slice."""
    storage = open_storage(uri)
    manifest = read_manifest(storage)
    row = clip.architecture
    images, texts = [], []
    found: dict[str, list[Any]] = {name: [] for name in columns}
    batches = iterate_evaluation(storage, manifest, row.image_size_px, row.context_length, batch_size, world, columns)
    for batch in batches:
        pixels = normalize_images(batch.images.to(world.device))
        images.append(clip.encode_image(pixels, normalize=True).float())
        texts.append(clip.encode_text(batch.texts, normalize=True).float())
        for name in columns:
            found[name] += batch.columns[name]
    nothing = torch.zeros(0, row.embed_dim, device=world.device)
    return (
        gather_rows(torch.cat([nothing, *images]), manifest.num_samples, world),
        gather_rows(torch.cat([nothing, *texts]), manifest.num_samples, world),
        found,
    )
