"""Zero-shot classification: a class is the mean feature of its prompts (paper, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def build_classifier(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Tensor:
    """One normalised feature a class, the mean over its prompts: (C, E).

    Args:
        encode_text: token ids (B, L) -> normalised features (B, E).
        templates: prompts with `{}` where the class name goes.
    """
    features = []
    for name in class_names:
        prompts = encode_text(tokenize([template.replace("{}", name) for template in templates]))
        features.append(F.normalize(prompts.mean(dim=0), dim=-1))
    return torch.stack(features)


def accuracy(image_features_NE: Tensor, classifier_CE: Tensor, labels_N: Tensor, k: int = 1) -> float:
    """Share of the images whose class is among the k that score highest; a tie counts against us."""
    scores = image_features_NE @ classifier_CE.T
    right = scores.gather(1, labels_N[:, None])
    # Not lower, rather than at least as high: a score that is no number must not count as a hit.
    return float(((~(scores < right)).sum(dim=1) <= k).double().mean())
