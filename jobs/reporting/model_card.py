"""Writes the model card of an export: README.md, with front matter for the Hugging Face hub.

In: the model and its origin. Out: Markdown. Its Python blocks run unchanged in the export's folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import yaml

from model.clip import CLIP
from training.evaluation.figures import NOTES, notes_of

OWN_PACKAGES = ("rayclip", "torch", "safetensors", "tokenizers", "ftfy")


@dataclass(frozen=True)
class Origin:
    """Origin of an exported model. For weights that no run here trained, only the address is known.

    Attributes:
        name: of the run, or of the file.
        address: of the checkpoint, or of the weights.
        is_average: the weights are the moving average of a run.
        data_sets: uri, version and identity of each.
        metrics: measured at exactly the checkpoint's step.
        config: the resolved configuration that trained it.
        packages: versions of the packages that trained it.
    """

    name: str
    address: str
    step: int | None = None
    samples_seen: int | None = None
    is_average: bool = False
    data_sets: tuple[dict[str, Any], ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    packages: dict[str, str] = field(default_factory=dict)


def package_versions() -> dict[str, str]:
    """Versions of the packages that write an export."""
    return {package: version(package) for package in OWN_PACKAGES}


def card(clip: CLIP, origin: Origin, notices: list[str]) -> str:
    """Renders the card."""
    parts = [_HEAD, f"# {origin.name}\n", _about(clip, origin), _data(origin), _results(origin), _loading(clip, notices)]
    if origin.config is not None:
        recipe = yaml.safe_dump(origin.config, sort_keys=False)
        parts.append(f"## Recipe\nThe resolved configuration, itself a recipe of RayCLIP:\n```yaml\n{recipe}```\n")
    parts.append(_versions(origin))
    return "\n".join(part for part in parts if part)


_HEAD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags:
- clip
---
"""


def _about(clip: CLIP, origin: Origin) -> str:
    row = clip.architecture
    logit_scale = clip.logit_scale.item()
    kind = f"ViT, patches of {row.patch_size_px} pixels" if row.patch_size_px is not None else "ResNet"
    rows = {
        "architecture": f"{row.name} ({kind})",
        "activation": row.activation,
        "parameters": f"{sum(parameter.numel() for parameter in clip.parameters()):,}",
        "joint space": f"{row.embed_dim} dimensions",
        "images": f"{row.image_size_px} x {row.image_size_px} pixels: short side resized (bicubic), centre crop, CLIP's mean "
        "and standard deviation",
        "captions": f"CLIP's lower-cased byte-pair encoding, {row.context_length} tokens at most",
        "temperature": f"{math.exp(-logit_scale):.6g} (logit_scale {logit_scale:.6g})",
    }
    if clip.logit_bias is not None:
        rows["logit bias"] = f"{clip.logit_bias.item():.6g}"
    rows["exported from"] = f"`{origin.address}`" + (", the moving average of its weights" if origin.is_average else "")
    if origin.step is not None:
        rows["trained for"] = f"{origin.step:,} steps, {origin.samples_seen:,} samples seen"
    return "A CLIP, written by RayCLIP.\n\n" + _table(("", ""), rows.items())


def _data(origin: Origin) -> str:
    if not origin.data_sets:
        return "## Data\nUnknown: the weights were not trained by a run of RayCLIP.\n"
    rows = [(f"`{one['uri']}`", one["version"], f"`{one['identity']}`") for one in origin.data_sets]
    return "## Data\n" + _table(("data set", "version", "identity"), rows)


def _results(origin: Origin) -> str:
    if not origin.metrics:
        return "## Results\nNo metrics were measured at this step.\n"
    rows = [(name, f"{value:.4f}") for name, value in origin.metrics.items() if not name.startswith(NOTES)]
    notes = "".join(f"\n{', '.join(names)}: {note}.\n" for note, names in notes_of(origin.metrics).items())
    return f"## Results\nMeasured at step {origin.step:,}.\n\n" + _table(("metric", "value"), rows) + notes


def _loading(clip: CLIP, notices: list[str]) -> str:
    text = _LOADING
    if clip.architecture.patch_size_px is not None:
        text += _LOADING_TRANSFORMERS
    return text + "".join(f"\n{notice}.\n" for notice in notices)


_LOADING = """## How to load it
In this folder. open_clip (3 or newer):
```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
tokenizer = open_clip.get_tokenizer("local-dir:.")
model.eval()
```
RayCLIP, also as `--weights` of jobs/evaluate.py and as `model.weights` of a run that fine-tunes it:
```python
import rayclip

model = rayclip.load(".")
text_features = model.encode_text(["a dog", "a cat"])  # also encode_image, similarity and classify
```
"""
_LOADING_TRANSFORMERS = """Hugging Face transformers:
```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("./hf")
processor = CLIPProcessor.from_pretrained("./hf")
```
Its tokenizer does not repair text as the other two do (ftfy, HTML entities): such captions get other ids. The features of a
caption are `model(**inputs).text_embeds`, those of an image `.image_embeds`; both are normalised. For odd sizes, its centre
crop is one pixel further up or left than that of the other two.
"""


def _versions(origin: Origin) -> str:
    rows = [("trained with", _listed(origin.packages))] if origin.packages else []
    return "## Versions\n" + _table(("", ""), [*rows, ("exported with", _listed(package_versions()))])


def _listed(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {one}" for name, one in packages.items())


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
