"""Zero-shot classification: a class is the mean feature of its prompts (paper, section 3.1.4).

In: class names, templates, and this rank's picture features. Out: counts of right answers a class, and `Figure`s of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import PLACES
from training.distributed import World, gather_rows, slice_bounds
from training.evaluation.figures import Figure, mean_of_shares, share


def prompts_of(class_name: str, templates: Sequence[str]) -> list[str]:
    """The templates with the class name in its place."""
    prompts = list(templates)
    for place in PLACES:
        prompts = [prompt.replace(place, class_name) for prompt in prompts]
    return prompts


def build_classifier(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    world: World,
    batch_size: int = 256,
) -> Tensor:
    """One normalised feature a class, the mean over its prompts: (C, E), on every rank. Each rank encodes its share.

    Args:
        encode_text: token ids (B, L) -> normalised features (B, E).
        templates: prompts with `{}` or `{c}` where the class name goes.
        batch_size: prompts that are encoded at a time.
    """
    first, stop = slice_bounds(len(class_names), world.rank, world.world_size)
    # A rank without a class encodes one all the same, to know the features' shape.
    names = list(class_names[first:stop]) or [class_names[0]]
    prompts = [prompt for name in names for prompt in prompts_of(name, templates)]
    features = [
        encode_text(tokenize(prompts[start : start + batch_size])).float() for start in range(0, len(prompts), batch_size)
    ]
    own_CE = F.normalize(torch.cat(features).unflatten(0, (len(names), len(templates))).mean(dim=1), dim=-1)
    return gather_rows(own_CE[: stop - first], len(class_names), world)


def count_right(image_features_NE: Tensor, classifier_CE: Tensor, labels_N: Tensor, ks: Sequence[int]) -> Tensor:
    """How many pictures of each class find it among the k that score highest: (K, C), int64.

    A tie counts against us, and a score that is no number is never right.
    """
    with torch.autocast(image_features_NE.device.type, enabled=False):  # bfloat16 would make ties of scores that are none
        scores = image_features_NE @ classifier_CE.T
    right = scores.gather(1, labels_N[:, None])
    # Not lower, rather than at least as high: a score that is no number counts against us.
    ranks = (~(scores < right)).sum(dim=1)
    found = [torch.bincount(labels_N[(ranks <= k) & ~right[:, 0].isnan()], minlength=len(classifier_CE)) for k in ks]
    return torch.stack(found)


def zero_shot_figures(hits_KC: Tensor, count_C: Tensor) -> list[Figure]:
    """Top-1 and top-5 accuracy, and the mean over classes of each one's own, from all ranks' counts for k = 1 and 5."""
    (top1, top5), counts, classes = hits_KC.tolist(), count_C.tolist(), len(count_C)
    return [
        share("zero_shot_top1", sum(top1), sum(counts), 1 / classes),
        share("zero_shot_top5", sum(top5), sum(counts), min(5, classes) / classes),
        mean_of_shares("zero_shot_mean_per_class", top1, counts, 1 / classes),
        Figure("zero_shot_chance", 1 / classes, None, None, None, sum(counts)),
    ]
