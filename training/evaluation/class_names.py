"""The classes and prompts of an image set: names with a label for each sample, and templates for the names.

In: an `ImageSet` and `evaluation.zero_shot.*`, or the image sets of a linear probe. Out: `Classes`, templates, and labels as
numbers, or a ConfigError that says what does not fit together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from training.config import ZeroShotConfig, check_templates
from training.evaluation.image_sets import CLASS_NAMES, TEMPLATES, ImageSet, read_lines

DEFAULT_TEMPLATES = ("a photo of a {}.",)
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Classes:
    """The classes of an image set.

    Attributes:
        names: the class names.
        labels: for each sample, in order, the index of its class in `names`.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]


def read_classes(images: ImageSet, config: ZeroShotConfig) -> Classes:
    """Names the classes: by `class_names_file`, else by the file beside the images, else by the labels themselves.

    Raises:
        ConfigError: a class has no name, or a name has no images and `allow_empty_classes` is false.
    """
    labels = images.labels()
    counts = Counter(labels)
    names = _names_of_labels(images, sorted(counts), config)
    unnamed = sorted(label for label in counts if label not in names)
    if unnamed:
        raise ConfigError(
            f"{images.subject}: {sum(counts[label] for label in unnamed):,} samples are of classes without a name "
            f"({_some(unnamed)}); there are {len(names):,} class names: add the missing ones, or remove those samples"
        )
    empty = [name for label, name in names.items() if label not in counts]
    if empty and not config.allow_empty_classes:
        raise ConfigError(
            f"{images.subject}: {len(empty):,} of {len(names):,} class names have no image ({_some(empty)}); remove them, or "
            "set evaluation.zero_shot.allow_empty_classes=true if they are meant to make the task harder"
        )
    places = {label: place for place, label in enumerate(names)}
    return Classes(tuple(names.values()), tuple(places[label] for label in labels))


def _names_of_labels(images: ImageSet, labels: list[str], config: ZeroShotConfig) -> dict[str, str]:
    """Returns label -> class name. `labels` are those that occur, sorted."""
    lines = images.class_names
    if config.class_names_file:
        lines = _read_file("evaluation.zero_shot.class_names_file", config.class_names_file)
    if not lines and images.numbered_classes:
        raise ConfigError(f"{images.subject}: has no {CLASS_NAMES}; write one, or give evaluation.zero_shot.class_names_file")
    if lines and all("\t" in line for line in lines):
        return {label: name for label, _, name in (line.partition("\t") for line in lines)}
    return images.match_names(labels, lines or labels)


def read_templates(images: ImageSet, config: ZeroShotConfig) -> tuple[str, ...]:
    """Returns `templates`, else those of `templates_file`, else those beside the images, else a default.

    Raises:
        ConfigError: a template has no place for the class name.
    """
    if config.templates:
        return config.templates
    subject, templates = f"{images.subject}: {TEMPLATES}", images.templates
    if config.templates_file:
        subject = f"evaluation.zero_shot.templates_file={config.templates_file}"
        templates = _read_file("evaluation.zero_shot.templates_file", config.templates_file)
    try:
        check_templates(templates)
    except ConfigError as error:
        raise ConfigError(f"{subject}: {error}") from None
    return templates or DEFAULT_TEMPLATES


def number_labels(train: ImageSet, *others: ImageSet) -> list[tuple[int, ...]]:
    """Returns the labels of several image sets as numbers, equal numbers for equal labels.

    Raises:
        ConfigError: the training images are all of one class, or others are of a class that training does not show.
    """
    learned = train.labels()
    numbers = {label: number for number, label in enumerate(sorted(set(learned)))}
    if len(numbers) < 2:
        raise ConfigError(f"{train.subject}: all samples are of class {min(numbers)}; a classifier needs at least two classes")
    found = [tuple(numbers[label] for label in learned)]
    for images in others:
        labels = images.labels()
        unknown = sorted(set(labels) - set(numbers))
        if unknown:
            raise ConfigError(
                f"{images.subject}: holds classes that {train.subject} does not ({_some(unknown)}), so a classifier cannot "
                "learn them; add them there, or remove them here"
            )
        found.append(tuple(numbers[label] for label in labels))
    return found


def _read_file(key: str, uri: str) -> tuple[str, ...]:
    folder, _, name = uri.rpartition("/")
    lines = read_lines(open_storage(folder or "."), name)
    if not lines:
        raise ConfigError(f"{key}={uri}: there is no such file, or it is empty; write one line for each")
    return lines


def _some(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
