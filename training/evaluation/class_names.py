"""The classes and prompts of an image set: names with a label for each sample, and templates for the names.

In: an `ImageSet` and `evaluation.zero_shot.*`, or the image sets of a linear probe. Out: `Classes`, templates, and labels as
numbers, or a ConfigError that says what does not fit together.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.tokenizer import clean
from pipeline.errors import ConfigError
from pipeline.storage.small_text import read_named_text
from training.config import PLACES, ZeroShotConfig, check_templates
from training.evaluation.class_list import parse_class_list, parse_prompts
from training.evaluation.image_sets import CLASS_NAMES, TEMPLATES, ImageSet
from training.evaluation.label_names import BEGINS_WITH_LABEL, Naming, identifiers, name_labels, some

DEFAULT_TEMPLATES = ("a photo of a {}.",)
NAMES_KEY, TEMPLATES_KEY = "evaluation.zero_shot.class_names_file", "evaluation.zero_shot.templates_file"
_OTHER_PLACE = re.compile(r"\{[^{}\s]*\}|%s|<class(?:_?name)?>", re.IGNORECASE)


@dataclass(frozen=True)
class Classes:
    """The classes of an image set.

    Attributes:
        names: the class names.
        labels: for each sample, in order, the index of its class in `names`.
        notes: what about them is a guess, or makes the figures depend on more than the model; a sentence each.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    notes: tuple[str, ...] = ()


def read_classes(images: ImageSet, config: ZeroShotConfig) -> Classes:
    """Names the classes: by `class_names_file`, else by the file beside the images, else by the labels themselves.

    Raises:
        ConfigError: a class has no name, a name has no images and `allow_empty_classes` is false, or there is one class only.
    """
    labels = images.labels()
    counts = Counter(labels)
    naming = _naming(images, sorted({*counts, *images.empty_classes}), config)
    names = naming.names
    unnamed = sorted(label for label in counts if label not in names)
    if unnamed:
        raise ConfigError(
            f"{images.subject}: {sum(counts[label] for label in unnamed):,} samples are of classes without a name "
            f"({some(unnamed)}); there are {len(names):,} class names: add the missing ones, or remove those samples"
        )
    empty = [name for label, name in names.items() if label not in counts]
    if empty and not config.allow_empty_classes:
        shifted = f"; if a header or another line shifts the names ({naming.guess}), remove that line" if naming.guess else ""
        raise ConfigError(
            f"{images.subject}: {len(empty):,} of {len(names):,} class names have no image ({some(empty)}); remove them, or "
            f"set evaluation.zero_shot.allow_empty_classes=true if they are meant to make the task harder{shifted}"
        )
    if len(names) < 2:
        raise ConfigError(
            f"{images.subject}: all samples are of the class {next(iter(names))}, so every answer would be right; name a "
            "folder or a data set with at least two classes"
        )
    places = {label: place for place, label in enumerate(names)}
    notes = [*([naming.guess] if naming.guess else []), *_notes(names, empty)]
    return Classes(tuple(names.values()), tuple(places[label] for label in labels), tuple(notes))


def _naming(images: ImageSet, labels: list[str], config: ZeroShotConfig) -> Naming:
    """Returns label -> class name. `labels` are those that occur, and folders without images, sorted."""
    subject, text = f"{images.subject}: {CLASS_NAMES}", images.class_names
    if config.class_names_file:
        subject, text = f"{NAMES_KEY}={config.class_names_file}", read_named_text(NAMES_KEY, config.class_names_file)
    if text is not None and not text.strip():
        raise ConfigError(f"{subject}: is empty; write a name for each class, or remove the file")
    if text is not None:
        return name_labels(parse_class_list(text, subject), labels, images.label_kind(labels), images.subject)
    if images.needs_names:
        raise ConfigError(f"{images.subject}: has no {CLASS_NAMES}; write one, or give {NAMES_KEY}")
    what = identifiers(labels)
    guess = f"the class names are {what}, as the labels are; give {NAMES_KEY}" if what else ""
    return Naming({label: label for label in labels}, guess)


def _notes(names: dict[str, str], empty: Sequence[str]) -> Iterator[str]:
    alike = defaultdict(list)
    for label, name in names.items():
        alike[clean(name)].append(label)
    repeated = [f"{names[labels[0]]!r} ({some(labels)})" for labels in alike.values() if len(labels) > 1]
    if repeated:
        yield f"classes with the same name cannot be told apart, so each of their images is a miss at top-1: {some(repeated)}"
    if all(map(BEGINS_WITH_LABEL.match, names.values())):
        shown = some(list(names.values()))
        yield (
            f"the class names begin with numbers or WordNet ids, which get into the prompts ({shown}); give {NAMES_KEY} with "
            "the names alone"
        )
    if empty:
        yield f"{len(empty):,} of {len(names):,} classes have no image; they only make the task harder"


def read_templates(images: ImageSet, config: ZeroShotConfig) -> tuple[str, ...]:
    """Returns `templates`, else those of `templates_file`, else those beside the images, else a default.

    Raises:
        ConfigError: a template has no place for the class name, or another one that would stay in the prompt.
    """
    subject, text = f"{images.subject}: {TEMPLATES}", images.templates
    if config.templates:
        _check_places(config.templates, "evaluation.zero_shot.templates")
        return config.templates
    if config.templates_file:
        subject, text = f"{TEMPLATES_KEY}={config.templates_file}", read_named_text(TEMPLATES_KEY, config.templates_file)
    if text is None:
        return DEFAULT_TEMPLATES
    templates = parse_prompts(text, subject)
    if not templates:
        raise ConfigError(f"{subject}: is empty; write one prompt a line, or remove the file")
    try:
        check_templates(templates)
    except ConfigError as error:
        raise ConfigError(f"{subject}: {error}") from None
    _check_places(templates, subject)
    return templates


def _check_places(templates: Sequence[str], subject: str) -> None:
    for template in templates:
        other = next((place for place in _OTHER_PLACE.findall(template) if place not in PLACES), None)
        if other is not None:
            raise ConfigError(
                f"{subject}: template {template!r}: {other} would stay in the prompt; write {{}} or {{c}} instead"
            )


def number_labels(train: ImageSet, *others: ImageSet) -> list[tuple[int, ...]]:
    """Returns the labels of several image sets as numbers, equal numbers for equal labels.

    Raises:
        ConfigError: the training images are all of one class, or others are of a class that training does not show.
    """
    learned = _composed(train.labels())
    numbers = {label: number for number, label in enumerate(sorted(set(learned)))}
    if len(numbers) < 2:
        raise ConfigError(f"{train.subject}: all samples are of class {min(numbers)}; a classifier needs at least two classes")
    found = [tuple(numbers[label] for label in learned)]
    for images in others:
        labels = _composed(images.labels())
        unknown = sorted(set(labels) - set(numbers))
        if unknown:
            raise ConfigError(
                f"{images.subject}: holds classes that {train.subject} does not ({some(unknown)}), so a classifier cannot "
                "learn them; add them there, or remove them here"
            )
        found.append(tuple(numbers[label] for label in labels))
    return found


def _composed(labels: Sequence[str]) -> list[str]:
    """Returns the labels in composed Unicode: macOS spells the names of folders decomposed."""
    return [unicodedata.normalize("NFC", label) for label in labels]
