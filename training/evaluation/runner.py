"""Evaluations on all ranks: each rank reads, decodes and encodes its slice of the data.

In: a model and `evaluation.*`. Out: `Figure`s, the same on every rank. The ranks exchange the features of captions, those that
the linear probe learns from, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.clip import CLIP
from model.preprocess import normalize_images
from model.tokenizer import clean, tokenize
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.address import open_storage
from training.config import EvaluationConfig
from training.distributed import World, failing_together, gather_rows, slice_bounds, sum_over_ranks
from training.evaluation.evaluation_data import (
    LabeledImages,
    LinearProbeData,
    ZeroShotData,
    open_evaluation,
    refuse_unused_columns,
)
from training.evaluation.figures import Figure, flatten
from training.evaluation.image_batches import ImageBatch, read_batches
from training.evaluation.image_sets import ImageSet, ManifestImageSet
from training.evaluation.linear_probe import Features, Labels, probe_figures
from training.evaluation.repeats import captions_of_several_images, first_of_each, key_of, labels_that_differ, share_features
from training.evaluation.retrieval import rank_pairs, retrieval_figures
from training.evaluation.zero_shot import build_classifier, count_right, zero_shot_figures


def _do_nothing() -> None:
    pass


def evaluate(clip: CLIP, config: EvaluationConfig, world: World, alive: Callable[[], None] = _do_nothing) -> dict[str, Any]:
    """Returns what `measure` finds as a row of metrics.jsonl (`figures.flatten`)."""
    return flatten(measure(clip, config, world, alive))


@torch.no_grad()
def measure(clip: CLIP, config: EvaluationConfig, world: World, alive: Callable[[], None] = _do_nothing) -> list[Figure]:
    """Computes all configured figures, on every rank. The model is in evaluation mode.

    Args:
        alive: called for every batch and every fit, since an evaluation may take hours.

    Raises:
        ConfigError, ManifestError: a data set, or a part of it, is missing or damaged.
    """
    data = open_evaluation(config, world)
    encoder = _Encoder(clip, config.batch_size, world, alive)
    figures: list[Figure] = []
    if data.retrieval is not None:
        figures += _measure_retrieval(encoder, data.retrieval)
    if data.zero_shot is not None:
        figures += _measure_zero_shot(encoder, data.zero_shot)
    if data.linear_probe is not None:
        figures += _measure_linear_probe(encoder, data.linear_probe)
    return figures


def check_evaluation(config: EvaluationConfig) -> None:
    """Opens everything that a run will be evaluated on, before it starts. Raises ConfigError or ManifestError."""
    refuse_unused_columns(config, open_evaluation(config, World(rank=0, world_size=1, device=torch.device("cpu"))))


@dataclass(frozen=True)
class _Encoder:
    """A model, and how it is fed on this rank. Features are float32."""

    clip: CLIP
    batch_size: int
    world: World
    alive: Callable[[], None]

    def read(self, image_set: ImageSet, with_keys: bool = False) -> Iterator[tuple[ImageBatch, Tensor]]:
        """Yields this rank's batches, and their images on its device as the model takes them."""
        for batch in read_batches(image_set, self.batch_size, self.clip.architecture.image_size_px, self.world, with_keys):
            self.alive()
            yield batch, normalize_images(batch.images.to(self.world.device))

    def encode_images(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images, normalize=True).float()

    def encode_texts(self, token_ids: Tensor) -> Tensor:
        self.alive()
        return self.clip.encode_text(token_ids, normalize=True).float()

    def tokenize(self, texts: list[str]) -> Tensor:
        return tokenize(texts, self.clip.architecture.context_length)

    def encode_captions(self, captions: list[str], keys: list[bytes] | None = None) -> list[Tensor]:
        """Encodes captions, and appends a key of each one's tokens to `keys`."""
        found = []
        for start in range(0, len(captions), self.batch_size):
            tokens = self.tokenize(captions[start : start + self.batch_size])
            if keys is not None:
                keys += map(key_of, tokens.numpy())
            found.append(self.encode_texts(tokens))
        return found

    def no_features(self, width: int) -> Tensor:
        """Returns (0, width): a rank without samples takes part in every exchange."""
        return torch.zeros(0, width, device=self.world.device)


def _measure_retrieval(encoder: _Encoder, image_set: ImageSet) -> list[Figure]:
    world, embed_dim = encoder.world, encoder.clip.architecture.embed_dim
    images, texts = [encoder.no_features(embed_dim)], [encoder.no_features(embed_dim)]
    image_keys, text_keys, num_captions = list[bytes](), list[bytes](), list[int]()
    with failing_together(world):
        for batch, pixels in encoder.read(image_set, with_keys=True):
            images.append(encoder.encode_images(pixels))
            image_keys += batch.keys
            texts += encoder.encode_captions([caption for sample in batch.samples for caption in sample.captions], text_keys)
            num_captions += [len(sample.captions) for sample in batch.samples]
    images_NE = share_features(torch.cat(images), image_keys, world)
    texts_ME = share_features(torch.cat(texts), text_keys, world)
    counts = torch.tensor(num_captions, dtype=torch.int64, device=world.device)
    image_of_text_M = torch.arange(len(counts), device=world.device).repeat_interleave(counts)
    ranks = rank_pairs(images_NE, texts_ME, image_of_text_M, world)
    repeats = captions_of_several_images(text_keys, num_captions, world)
    return _with_notes(retrieval_figures(ranks), [*image_set.notes, *repeats])


def _measure_zero_shot(encoder: _Encoder, data: ZeroShotData) -> list[Figure]:
    world, names = encoder.world, data.classes.names
    classifier_CE = build_classifier(encoder.encode_texts, encoder.tokenize, names, data.templates, world, encoder.batch_size)
    firsts = first_of_each([clean(name) for name in names])
    first_C = torch.tensor(firsts, device=world.device) if len({*firsts}) < len(names) else None
    labels_N = torch.tensor(data.classes.labels, device=world.device)
    hits_KC = torch.zeros(2, len(names), dtype=torch.int64, device=world.device)
    keys = list[bytes]()
    with failing_together(world):
        for batch, pixels in encoder.read(data.images, with_keys=True):
            keys += batch.keys
            own_N = labels_N[batch.first : batch.first + len(pixels)]
            hits_KC += count_right(encoder.encode_images(pixels), classifier_CE, own_N, (1, 5), first_C)
    counts_C = torch.bincount(labels_N, minlength=len(names))
    figures = zero_shot_figures(sum_over_ranks(hits_KC, world), counts_C)
    differ = labels_that_differ(keys, [names[label] for label in data.classes.labels], world)
    return _with_notes(figures, [*data.classes.notes, *data.images.notes, *differ])


def _measure_linear_probe(encoder: _Encoder, data: LinearProbeData) -> list[Figure]:
    notes = data.notes
    validation = None if data.validation is None else _encode_trunk(encoder, data.validation, notes)
    train, test = _encode_trunk(encoder, data.train, notes), _encode_trunk(encoder, data.test, notes)
    return _with_notes(probe_figures(train, test, validation, encoder.world, encoder.alive), notes)


def _with_notes(figures: list[Figure], notes: Sequence[str]) -> list[Figure]:
    return [replace(figure, notes=tuple(notes)) for figure in figures]


def _encode_trunk(encoder: _Encoder, data: LabeledImages, notes: list[str]) -> tuple[Features, Labels]:
    """Returns the features before the projection, and the labels, of all samples, on every rank; appends to `notes`."""
    world, num_samples = encoder.world, data.images.num_samples
    rows, keys = list[Tensor](), list[bytes]()
    with failing_together(world):
        for batch, pixels in encoder.read(data.images, with_keys=True):
            rows.append(encoder.clip.encode_trunk(pixels).float())
            keys += batch.keys
    notes += [f"{data.images.subject}: {note}" for note in labels_that_differ(keys, data.images.labels(), world)]
    # A rank without samples learns the features' width from the others: each of those has added it to the sum.
    width = torch.tensor([rows[0].shape[1] if rows else 0], device=world.device)
    width = sum_over_ranks(width, world) // max(1, min(world.world_size, num_samples))
    own = torch.cat([encoder.no_features(int(width)), *rows])
    return gather_rows(own, num_samples, world).cpu().numpy(), np.array(data.labels)


@torch.no_grad()
def encode_data_set(
    clip: CLIP, uri: str, batch_size: int, world: World, columns: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor, dict[str, list[Any]]]:
    """Encodes the pairs of a data set that jobs/ingest.py wrote, each image with its first caption.

    Returns:
        Normalised image and text features, (N, E) each, on every rank, and sidecar columns of this rank's slice.
    """
    storage = open_storage(uri)
    image_set = ManifestImageSet(uri, storage, read_manifest(storage), captions=("caption",))
    encoder = _Encoder(clip, batch_size, world, _do_nothing)
    nothing = encoder.no_features(clip.architecture.embed_dim)
    images, texts = [nothing], [nothing]
    for batch, pixels in encoder.read(image_set):
        images.append(encoder.encode_images(pixels))
        texts += encoder.encode_captions([sample.caption for sample in batch.samples])
    bounds = slice_bounds(image_set.num_samples, world.rank, world.world_size)
    return (
        gather_rows(torch.cat(images), image_set.num_samples, world),
        gather_rows(torch.cat(texts), image_set.num_samples, world),
        image_set.columns(*bounds, columns) if columns else {},
    )
