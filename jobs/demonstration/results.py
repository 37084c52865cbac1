"""Results of the demo: retrieval of unseen pairs, compared with chance and with a tone-blind model; plots of them."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # needs no display

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

from jobs.demonstration.drawings import ATTRIBUTION, SPLITS
from model.clip import CLIP
from pipeline.dataset.manifest import list_versions, read_manifest
from pipeline.storage.address import open_storage
from training.data.shard_reader import ShardReader
from training.distributed import World
from training.evaluation.retrieval import retrieval_ranks
from training.evaluation.runner import encode_data_set

GALLERY_ROWS, GALLERY_COLUMNS = 8, 6
RIGHT, INK, MUTED = "#1a7f37", "#24292f", "#6e7781"


@dataclass(frozen=True)
class Encoded:
    """All pairs of all splits: normalised features (N, E), and the origin of each pair."""

    image_features: Tensor
    text_features: Tensor
    split: list[str]
    index: list[int]
    caption: list[str]
    concept: list[str]
    tone: list[str]


@dataclass
class Figures:
    """Rows of the final table: name -> (image to text, text to image, chance, tone-blind or None)."""

    rows: dict[str, tuple[float, float, float, float | None]] = field(default_factory=dict)

    def table(self) -> str:
        lines = [f"{'':58}{'img->txt':>9}{'txt->img':>9}{'chance':>9}{'tone-blind':>12}"]
        for name, (to_text, to_image, chance, blind) in self.rows.items():
            baseline = "-" if blind is None else f"{blind:.1%}"
            lines.append(f"{name:58}{to_text:>9.1%}{to_image:>9.1%}{chance:>9.1%}{baseline:>12}")
        lines.append("tone-blind: a model that knows every concept and guesses the tone")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Content of demo.json: name -> {image_to_text, text_to_image, chance, tone_blind}."""
        columns = ("image_to_text", "text_to_image", "chance", "tone_blind")
        return {name: dict(zip(columns, row, strict=True)) for name, row in self.rows.items()}


def encode(clip: CLIP, uris: dict[str, str]) -> Encoded:
    """Encodes every pair of the demo's data sets."""
    world = World(rank=0, world_size=1, device=torch.device("cpu"))
    images, texts = [], []
    places: dict[str, list[Any]] = {name: [] for name in ("split", "index", "caption", "concept", "tone")}
    for split in SPLITS:
        if not list_versions(open_storage(uris[split])):
            continue  # with few concepts, a split may be empty
        image, text, columns = encode_data_set(clip, uris[split], 256, world, ("caption", "concept", "tone"))
        images.append(image)
        texts.append(text)
        places["split"] += [split] * len(image)
        places["index"] += range(len(image))
        for name, values in columns.items():
            places[name] += values
    return Encoded(torch.cat(images), torch.cat(texts), **places)


def measure(encoded: Encoded) -> Figures:
    """Measures held-out pairs among all single-tone pairs, their tone within the right concept, and unseen concepts."""
    figures = Figures()
    candidates = [at for at, tone in enumerate(encoded.tone) if tone]
    heldout = [at for at in candidates if encoded.split[at] == "heldout"]
    siblings = defaultdict(list)
    for at in candidates:
        siblings[encoded.concept[at]].append(at)
    groups = [siblings[encoded.concept[at]] for at in heldout]
    if heldout:
        blind = _mean([1 / len(group) for group in groups])
        figures.rows[f"R@1, {len(heldout)} held-out pairs among {len(candidates)} single-tone pairs"] = (
            *_recall_at_1(encoded, heldout, candidates),
            1 / len(candidates),
            blind,
        )
        within = [_recall_at_1(encoded, [at], group) for at, group in zip(heldout, groups, strict=True)]
        figures.rows["tone of held-out pairs within the right concept"] = (
            _mean([to_text for to_text, _ in within]),
            _mean([to_image for _, to_image in within]),
            blind,
            blind,
        )
    concepts = [at for at, split in enumerate(encoded.split) if split == "concepts"]
    if len(concepts) > 1:
        to_text, to_image = _recall_at_1(encoded, concepts, concepts)
        figures.rows[f"R@1, {len(concepts)} concepts never seen, among themselves"] = (
            to_text,
            to_image,
            1 / len(concepts),
            None,
        )
    return figures


def _recall_at_1(encoded: Encoded, queries: list[int], candidates: list[int]) -> tuple[float, float]:
    """Recall at 1: (image to text, text to image)."""
    answer = torch.tensor([candidates.index(at) for at in queries])
    images, texts = encoded.image_features, encoded.text_features
    to_text = retrieval_ranks(images[queries], texts[candidates], answer)
    to_image = retrieval_ranks(texts[queries], images[candidates], answer)
    return float((to_text == 0).double().mean()), float((to_image == 0).double().mean())


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots loss, temperature and learning rate over the steps, side by side."""
    steps = [row for row in rows if "loss" in row]
    panels = (("loss", "contrastive loss"), ("temperature", "temperature, 1 / exp(tau)"), ("learning_rate", "learning rate"))
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        axis.plot([row["step"] for row in steps], [row[name] for row in steps], color="#0969da", linewidth=1.6)
        axis.set_title(title, fontsize=12, color=INK, loc="left")
        axis.set_xlabel("step", color=MUTED)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_gallery(encoded: Encoded, uris: dict[str, str], path: Path) -> None:
    """Plots held-out names and the best images that the model finds for them among all single-tone ones."""
    candidates = [at for at, tone in enumerate(encoded.tone) if tone]
    heldout = [at for at in candidates if encoded.split[at] == "heldout"]
    queries = heldout[:: max(1, len(heldout) // GALLERY_ROWS)][:GALLERY_ROWS]
    if not queries:
        return
    shown = min(GALLERY_COLUMNS, len(candidates))
    scores = encoded.text_features[queries] @ encoded.image_features[candidates].T
    best = scores.topk(shown, dim=1).indices.tolist()
    read = {split: _ImageReader(uris[split]) for split in {encoded.split[at] for at in candidates}}
    figure = plt.figure(figsize=(1.45 * shown + 3.4, 1.55 * len(queries) + 0.9), layout="constrained")
    grid = figure.add_gridspec(len(queries), shown + 2)
    for line, (query, found) in enumerate(zip(queries, best, strict=True)):
        label = figure.add_subplot(grid[line, :2])
        label.axis("off")
        label.text(1.0, 0.5, _wrapped(encoded.caption[query]), ha="right", va="center", fontsize=12, color=INK)
        for column, place in enumerate(found):
            at = candidates[place]
            axis = figure.add_subplot(grid[line, column + 2])
            axis.imshow(read[encoded.split[at]](encoded.index[at]))
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color(RIGHT if at == query else "#d0d7de")
                spine.set_linewidth(4 if at == query else 1)
    title = "Names never seen in training, and the images found for them (green: the right one)"
    figure.suptitle(title, fontsize=13, color=INK)
    figure.supxlabel(ATTRIBUTION, x=0.99, ha="right", fontsize=7, color=MUTED)
    figure.savefig(path, dpi=110)
    plt.close(figure)


class _ImageReader:
    """Reads images of a data set by index."""

    def __init__(self, uri: str) -> None:
        storage = open_storage(uri)
        manifest = read_manifest(storage)
        self._reader = ShardReader(storage, manifest)
        self._counts = [shard.num_samples for shard in manifest.shards]

    def __call__(self, index: int) -> Image.Image:
        for shard, count in enumerate(self._counts):
            if index < count:
                return Image.open(io.BytesIO(self._reader.read(shard, index, index + 1)[0].image))
            index -= count
        raise IndexError(index)


def _wrapped(caption: str, width: int = 24) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(caption, width))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
