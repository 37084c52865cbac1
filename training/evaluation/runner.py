"""Runs the evaluations that a configuration asks for, on all ranks: each encodes its slice of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.clip import CLIP
from model.preprocess import normalize_images
from model.tokenizer import tokenize
from pipeline.manifest import Manifest, read_manifest
from pipeline.storage import open_storage
from training.config import ConfigError, EvaluationConfig, ZeroShotConfig
from training.data import iterate_evaluation
from training.distributed import World, gather_rows
from training.evaluation.retrieval import retrieval_metrics
from training.evaluation.zero_shot import accuracy, build_classifier


@torch.no_grad()
def evaluate(clip: CLIP, config: EvaluationConfig, world: World) -> dict[str, float]:
    """All configured figures, as `evaluation/{name}` -> value, on every rank. The model is in evaluation mode.

    Raises:
        ManifestError: a data set, or the label column, is not there.
    """
    metrics: dict[str, float] = {}
    if config.retrieval_uri is not None:
        images, texts, _ = encode_data_set(clip, config.retrieval_uri, config.batch_size, world)
        metrics |= retrieval_metrics(images, texts)
    if config.zero_shot is not None:
        metrics |= _zero_shot(clip, config.zero_shot, config.batch_size, world)
    return {f"evaluation/{name}": value for name, value in metrics.items()}


def check_evaluation(config: EvaluationConfig) -> None:
    """Opens what will be evaluated on, before a run starts. Raises ManifestError or ConfigError."""
    zero_shot = config.zero_shot.uri if config.zero_shot is not None else None
    for key, uri in (("retrieval_uri", config.retrieval_uri), ("zero_shot.uri", zero_shot)):
        if uri is not None and read_manifest(open_storage(uri)).num_samples == 0:
            raise ConfigError(f"evaluation.{key}={uri}: the data set holds no samples; name one that does")


@torch.no_grad()
def encode_data_set(
    clip: CLIP, uri: str, batch_size: int, world: World, columns: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor, dict[str, list[Any]]]:
    """Normalised features of a data set's pairs, (N, E) each, on every rank, and sidecar columns of this rank's slice."""
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


def _zero_shot(clip: CLIP, config: ZeroShotConfig, batch_size: int, world: World) -> dict[str, float]:
    images, _, _ = encode_data_set(clip, config.uri, batch_size, world)
    names = _all_labels(config)
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names], device=world.device)
    classifier = build_classifier(
        lambda ids: clip.encode_text(ids, normalize=True).float(),
        lambda prompts: tokenize(prompts, clip.architecture.context_length),
        classes,
        config.templates,
    )
    return {
        "zero_shot_top1": accuracy(images, classifier, labels),
        "zero_shot_top5": accuracy(images, classifier, labels, k=5),
        "zero_shot_chance": 1 / len(classes),
    }


def _all_labels(config: ZeroShotConfig) -> list[str]:
    """The class name of every sample, from the sidecars, in the order of their index."""
    from training.shards import ShardReader

    storage = open_storage(config.uri)
    manifest: Manifest = read_manifest(storage)
    reader = ShardReader(storage, manifest)
    names: list[Any] = []
    for shard, record in enumerate(manifest.shards):
        if record.num_samples:
            names += reader.columns(shard, [config.label_column])[config.label_column].to_pylist()
    return [str(name) for name in names]
