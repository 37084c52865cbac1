"""What an evaluation's addresses mean: which kind of data set lies there, what its classes are called, which prompts they get.

In: addresses and `evaluation.*` of the configuration. Out: a `Source`, class names with a label for each sample, and templates;
or a ConfigError that says what does not fit, before anything is computed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.dataset.manifest import list_versions
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from training.config import ZeroShotConfig, check_templates
from training.distributed import World, gather_objects
from training.evaluation.clip_benchmark import TarSource
from training.evaluation.image_sets import PICTURES, FolderSource, ManifestSource, Source, read_lines

SPLIT = "test"
"""Of a folder of clip-benchmark tars, where its address names none."""
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class Classes:
    """What pictures are told apart by.

    Attributes:
        names: of the classes.
        labels: the place in `names` of each sample's class, in the order of the samples.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]


def open_source(key: str, uri: str, world: World, captions: tuple[str, ...] = (), label_column: str = "") -> Source:
    """What lies at an address. Every rank calls it.

    Args:
        key: of the configuration, for messages.
        captions: of a data set of ours, where captions come from; of others anything asks for them; none: labels are wanted.

    Raises:
        ConfigError, ManifestError: there is nothing, or nothing that fits.
    """
    storage, what = open_storage(uri), f"{key}={uri}"
    source: Source | None = None
    versions = gather_objects(list_versions(storage), world)[0]  # as rank 0 sees it: one may be committed meanwhile
    if versions:
        source = ManifestSource(what, storage, captions, label_column, versions[-1])
    else:
        paths = [item.path for item in storage.list("") if not any(part.startswith(".") for part in item.path.split("/"))]
        tars = {path.rpartition("/")[0] for path in paths if path.endswith(".tar")}
        pictures = [path for path in paths if "/" in path and PurePosixPath(path).suffix.lower() in PICTURES]
        if "" in tars or SPLIT in tars:
            source = TarSource(what, storage, "" if "" in tars else SPLIT, paths, bool(captions), world)
        elif tars:
            raise ConfigError(f"{what}: holds tars in {', '.join(sorted(tars))}, none in {SPLIT}; name {uri}/{min(tars)}")
        elif pictures and captions:
            raise ConfigError(f"{what}: holds pictures in folders, without captions; name a data set that has some")
        elif pictures:
            source = FolderSource(what, storage, pictures)
    if source is None:
        raise ConfigError(
            f"{what}: holds no data set of ours (manifests/), no tars (0.tar, or {SPLIT}/0.tar) and no folders of pictures "
            "(CLASS/NAME.jpg); correct the address, or make a data set with jobs/ingest.py"
        )
    if source.num_samples == 0:
        raise ConfigError(f"{what}: the data set holds no samples; name one that does")
    return source


def read_classes(source: Source, config: ZeroShotConfig) -> Classes:
    """The classes by name: `class_names_file`, else the names that lie beside the pictures, else the labels themselves.

    Raises:
        ConfigError: pictures of a class without a name, or a name without pictures that was not allowed.
    """
    labels = source.labels()
    counts = Counter(labels)
    lines = source.class_names
    if config.class_names_file:
        lines = _lines_of("evaluation.zero_shot.class_names_file", config.class_names_file)
    if not lines and isinstance(source, TarSource):
        raise ConfigError(f"{source.what}: has no classnames.txt; write one, or give evaluation.zero_shot.class_names_file")
    if lines and all("\t" in line for line in lines):
        names = {label: name for label, _, name in (line.partition("\t") for line in lines)}
    else:
        names = source.name(sorted(counts), lines or sorted(counts))
    unnamed = sorted(label for label in counts if label not in names)
    if unnamed:
        raise ConfigError(
            f"{source.what}: {sum(counts[label] for label in unnamed):,} samples are of classes without a name "
            f"({_some(unnamed)}); there are {len(names):,} class names: add what is missing, or leave those samples out"
        )
    empty = [name for label, name in names.items() if label not in counts]
    if empty and not config.allow_empty_classes:
        raise ConfigError(
            f"{source.what}: {len(empty):,} of {len(names):,} class names have no picture ({_some(empty)}); take them out, or "
            "set evaluation.zero_shot.allow_empty_classes=true if they are meant to make it harder"
        )
    places = {label: place for place, label in enumerate(names)}
    return Classes(tuple(names.values()), tuple(places[label] for label in labels))


def read_templates(source: Source, config: ZeroShotConfig) -> tuple[str, ...]:
    """`templates`, else `templates_file`, else those that lie beside the pictures, else a default.

    Raises ConfigError where one has no place for the class name.
    """
    if config.templates:
        return config.templates
    where, templates = f"{source.what}: zeroshot_classification_templates.txt", source.templates
    if config.templates_file:
        where = f"evaluation.zero_shot.templates_file={config.templates_file}"
        templates = _lines_of("evaluation.zero_shot.templates_file", config.templates_file)
    try:
        check_templates(templates)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return templates or DEFAULT_TEMPLATES


def number_labels(train: Source, test: Source, validation: Source | None) -> list[tuple[int, ...]]:
    """The labels of two or three data sets as numbers, the same for the same label.

    Raises:
        ConfigError: there is one class alone, or one that training does not show.
    """
    learned = train.labels()
    numbers = {label: number for number, label in enumerate(sorted(set(learned)))}
    if len(numbers) < 2:
        raise ConfigError(f"{train.what}: all samples are of class {min(numbers)}; a classifier needs two at least")
    found = [tuple(numbers[label] for label in learned)]
    for source in (test, validation):
        if source is not None:
            labels = source.labels()
            unknown = sorted(set(labels) - set(numbers))
            if unknown:
                raise ConfigError(
                    f"{source.what}: holds classes that {train.what} does not ({_some(unknown)}), so nothing can be learned "
                    "about them; add them there, or leave them out"
                )
            found.append(tuple(numbers[label] for label in labels))
    return found


def _lines_of(key: str, uri: str) -> tuple[str, ...]:
    folder, _, name = uri.rpartition("/")
    lines = read_lines(open_storage(folder or "."), name)
    if not lines:
        raise ConfigError(f"{key}={uri}: there is no such file, or it is empty; write one line for each")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
