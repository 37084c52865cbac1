"""The data of an evaluation, opened: image sets, with the classes, prompts and labels that the configuration asks for.

In: `evaluation.*` of the configuration. Out: `EvaluationData`, or an error that says what is missing or does not fit, before
anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.dataset.manifest import Manifest, list_versions, read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage, real_address
from pipeline.storage.base import Storage
from training.config import EvaluationConfig, LinearProbeConfig, ZeroShotConfig
from training.data.caption_columns import check_captions, samples_without_captions
from training.distributed import World, failing_together, gather_objects
from training.evaluation.class_folders import find_class_folders, list_paths
from training.evaluation.class_names import Classes, number_labels, read_classes, read_templates
from training.evaluation.clip_benchmark import COMPRESSED, TarImageSet
from training.evaluation.image_sets import FolderImageSet, ImageSet, ManifestImageSet
from training.evaluation.label_names import some
from training.evaluation.linear_probe import validation_split

CAPTIONS_KEY, _OF_TXT = "evaluation.retrieval_captions", ("caption",)
SPLIT = "test"
"""Split of clip-benchmark tars that is used if the address names none."""


@dataclass(frozen=True)
class ZeroShotData:
    """Images, the names of their classes, and the prompts for these names."""

    images: ImageSet
    classes: Classes
    templates: tuple[str, ...]


@dataclass(frozen=True)
class LabeledImages:
    """Images with a number for the class of each."""

    images: ImageSet
    labels: tuple[int, ...]


@dataclass(frozen=True)
class LinearProbeData:
    """The splits of a linear probe, their labels numbered alike. Without `validation`, a part of `train` validates.

    Attributes:
        seen: a sentence for each other split that is the one for training.
    """

    train: LabeledImages
    test: LabeledImages
    validation: LabeledImages | None
    seen: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Notes on what the figures depend on besides the model, a sentence each."""
        found = list(self.seen)
        for part in (self.train, self.test, self.validation):
            if part is not None:
                empty = part.images.empty_classes
                left = [f"folders without an image are skipped ({some(empty)})"] if empty else []
                found += [f"{part.images.subject}: {note}" for note in (*part.images.notes, *left)]
        return found


@dataclass(frozen=True)
class EvaluationData:
    """Everything that an evaluation reads; None for what is not configured."""

    retrieval: ImageSet | None
    zero_shot: ZeroShotData | None
    linear_probe: LinearProbeData | None


def open_evaluation(config: EvaluationConfig, world: World) -> EvaluationData:
    """Opens all that a configuration evaluates on. Every rank calls it.

    Raises:
        ConfigError, ManifestError: a data set, or a part of it, is missing, or the parts do not fit together.
    """
    retrieval = None
    if config.retrieval_uri is not None:
        retrieval = open_image_set("evaluation.retrieval_uri", config.retrieval_uri, world, config.retrieval_captions)
    return EvaluationData(
        retrieval=retrieval,
        zero_shot=None if config.zero_shot is None else _open_zero_shot(config.zero_shot, world),
        linear_probe=None if config.linear_probe is None else _open_linear_probe(config.linear_probe, world),
    )


def refuse_unused_columns(config: EvaluationConfig, data: EvaluationData) -> None:
    """Raises ConfigError if columns are named for data sets that have none: tars and folders."""
    probe, zero_shot = data.linear_probe, data.zero_shot
    parts = (probe.train, probe.test, probe.validation) if probe is not None else ()
    splits = [part.images for part in parts if part is not None]
    for key, value, default, opened in (
        (CAPTIONS_KEY, list(config.retrieval_captions), list(_OF_TXT), [data.retrieval]),
        (
            "evaluation.zero_shot.label_column",
            _column(config.zero_shot),
            "",
            [zero_shot.images if zero_shot is not None else None],
        ),
        ("evaluation.linear_probe.label_column", _column(config.linear_probe), "", splits),
    ):
        images = [one for one in opened if one is not None]
        if value != default and images and not any(isinstance(one, ManifestImageSet) for one in images):
            raise ConfigError(
                f"{key}={value}: {images[0].subject} is no data set of ours and has no columns: its captions and labels are "
                "in its tars or folders; omit the key"
            )


def _column(config: ZeroShotConfig | LinearProbeConfig | None) -> str:
    return "" if config is None else config.label_column


def _open_zero_shot(config: ZeroShotConfig, world: World) -> ZeroShotData:
    images = open_image_set("evaluation.zero_shot.uri", config.uri, world, label_column=config.label_column)
    with failing_together(world):
        return ZeroShotData(images, read_classes(images, config), read_templates(images, config))


def _open_linear_probe(config: LinearProbeConfig, world: World) -> LinearProbeData:
    addresses = {"train_uri": config.train_uri, "test_uri": config.test_uri, "validation_uri": config.validation_uri}
    opened = [
        open_image_set(f"evaluation.linear_probe.{key}", uri, world, label_column=config.label_column)
        for key, uri in addresses.items()
        if uri is not None
    ]
    with failing_together(world):
        labels = number_labels(*opened)
    splits = [LabeledImages(images, numbers) for images, numbers in zip(opened, labels, strict=True)]
    if config.validation_uri is None:
        validation_split(np.array(labels[0]))  # refuses classes that are too small, hours before they would be split
    place = {key: real_address(open_storage(uri).uri) for key, uri in addresses.items() if uri is not None}
    seen = [f"{key} is train_uri, whose images the probe has seen" for key in [*place][1:] if place[key] == place["train_uri"]]
    return LinearProbeData(splits[0], splits[1], splits[2] if len(splits) == 3 else None, tuple(seen))


def open_image_set(key: str, uri: str, world: World, captions: tuple[str, ...] = (), label_column: str = "") -> ImageSet:
    """Finds out what lies at an address, and opens it. Every rank calls it.

    Args:
        key: the configuration key of the address, for messages.
        captions: places of the captions in a data set of ours; for other data sets, anything asks for captions. Empty: labels
            are wanted instead.
        label_column: column of the labels in a data set of ours.

    Raises:
        ConfigError, ManifestError: there is no data set, or one without what is wanted.
    """
    storage, subject = open_storage(uri), f"{key}={uri}"
    with failing_together(world):
        versions = list_versions(storage)
    versions = gather_objects(versions, world)[0]  # rank 0 decides for all: a version may be committed meanwhile
    images: ImageSet
    if versions:
        with failing_together(world):
            manifest = read_manifest(storage, versions[-1])
            if captions and manifest.num_samples and world.is_main:
                _check_captions(subject, storage, manifest, captions)
        images = ManifestImageSet(subject, storage, manifest, captions, label_column)
    else:
        images = _open_foreign(subject, storage, world, bool(captions))
    if images.num_samples == 0:
        raise ConfigError(f"{subject}: the data set holds no samples; name one that does")
    return images


def _check_captions(subject: str, storage: Storage, manifest: Manifest, captions: tuple[str, ...]) -> None:
    """Raises ConfigError unless every sample has a caption: retrieval counts all of them."""
    check_captions([(storage, manifest)], captions, CAPTIONS_KEY)
    without = samples_without_captions((storage, manifest), captions)
    if without:
        raise ConfigError(
            f"{CAPTIONS_KEY}={list(captions)}: {without:,} of {manifest.num_samples:,} samples of {subject} have no caption "
            "there; name another column as well, or remove them with jobs/curate.py (curate.where)"
        )


def _open_foreign(subject: str, storage: Storage, world: World, captions: bool) -> ImageSet:
    """Opens tars or folders of images."""
    with failing_together(world):
        found = _find_foreign(subject, storage, captions)
    return found if isinstance(found, ImageSet) else TarImageSet(subject, storage, found.split, found.paths, captions, world)


@dataclass(frozen=True)
class _Tars:
    """The folder of a split's tars, and all paths of the storage."""

    split: str
    paths: list[str]


def _find_foreign(subject: str, storage: Storage, captions: bool) -> FolderImageSet | _Tars:
    paths, uri = list_paths(storage, subject), storage.uri
    folders = find_class_folders(subject, storage, paths)
    tars = {path.rpartition("/")[0] for path in paths if path.lower().endswith(".tar")}
    if tars and folders is not None:
        one = next(path for path in paths if path.lower().endswith(".tar"))
        raise ConfigError(
            f"{subject}: holds both tars ({one}) and folders of images ({folders.images[0]}); move one of them away"
        )
    if "" in tars and SPLIT in tars:
        raise ConfigError(
            f"{subject}: holds tars, and more of them in {SPLIT}; name {uri}/{SPLIT}, or move those that are not meant away"
        )
    if "" in tars or SPLIT in tars:
        return _Tars("" if "" in tars else SPLIT, paths)
    if tars:
        raise ConfigError(f"{subject}: holds tars in {', '.join(sorted(tars))}, none in {SPLIT}; name {uri}/{min(tars)}")
    if folders is None:
        packed = next((path for path in paths if path.lower().endswith(COMPRESSED)), None)
        raise ConfigError(
            f"{subject}: holds no data set of ours (manifests/), no tars (0.tar, or {SPLIT}/0.tar) and no folders of "
            "images (CLASS/NAME.jpg); "
            + (f"decompress {packed}" if packed else "correct the address")
            + ", or make a data set with jobs/ingest.py"
        )
    if captions:
        raise ConfigError(f"{subject}: holds images in folders, without captions; name a data set that has captions")
    return FolderImageSet(subject, storage, folders)
