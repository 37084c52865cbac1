"""The architectures, one table row each. Imports no torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Activation = Literal["quick_gelu", "gelu"]
Tower = Literal["image", "text"]


@dataclass(frozen=True)
class Architecture:
    """One CLIP (paper, Tables 19 and 20).

    Attributes:
        embed_dim: width E of the joint space.
        vision_layers: blocks of the four ResNet stages, or the number of ViT blocks.
        vision_width: of the ResNet's stem (its output is 32 times as wide), or of the ViT.
        patch_size_px: of a ViT; None for a ResNet.
        activation: of all transformer blocks. The same weights under the other one give other features.
        context_length: tokens of a caption, both specials included.
        has_logit_bias: a bias beside the temperature, for SigLIP's loss.
    """

    name: str
    embed_dim: int
    image_size_px: int
    vision_layers: tuple[int, int, int, int] | int
    vision_width: int
    patch_size_px: int | None
    text_layers: int
    text_width: int
    text_heads: int
    activation: Activation = "quick_gelu"
    context_length: int = 77
    vocab_size: int = 49408
    has_logit_bias: bool = False

    @property
    def vision_heads(self) -> int:
        """Heads of the ViT's blocks, or of the ResNet's attention pool: 64 dimensions each."""
        return self.vision_width // 64 if self.patch_size_px is not None else self.vision_width * 32 // 64

    @property
    def image_step_px(self) -> int:
        """Side of the squares that an image is cut into: its size is a multiple of it."""
        return self.patch_size_px or 32


# name, E, px, vision layers, vision width, patch px, text layers, text width, text heads
_ROWS = (
    Architecture("RN50", 1024, 224, (3, 4, 6, 3), 64, None, 12, 512, 8),
    Architecture("RN101", 512, 224, (3, 4, 23, 3), 64, None, 12, 512, 8),
    Architecture("RN50x4", 640, 288, (4, 6, 10, 6), 80, None, 12, 640, 10),
    Architecture("RN50x16", 768, 384, (6, 8, 18, 8), 96, None, 12, 768, 12),
    Architecture("RN50x64", 1024, 448, (3, 15, 36, 10), 128, None, 12, 1024, 16),
    Architecture("ViT-B/32", 512, 224, 12, 768, 32, 12, 512, 8),
    Architecture("ViT-B/16", 512, 224, 12, 768, 16, 12, 512, 8),
    Architecture("ViT-L/14", 768, 224, 24, 1024, 14, 12, 768, 12),
    Architecture("ViT-L/14@336px", 768, 336, 24, 1024, 14, 12, 768, 12),
    # Small ones: for smoke runs and tests, and for the demo on two cores.
    Architecture("debug-vit", 32, 32, 2, 64, 8, 2, 64, 1),
    Architecture("debug-rn", 64, 64, (1, 1, 1, 1), 16, None, 2, 64, 1),
    Architecture("demo", 128, 64, (1, 1, 1, 1), 16, None, 2, 64, 1, context_length=24),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
PUBLISHED = tuple(row.name for row in _ROWS[:9])
"""The nine of the paper."""


def get_architecture(name: str) -> Architecture:
    """The row of a name. Raises ValueError that names the nearest one."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    close = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"there is no such architecture; {hint}there are {', '.join(ARCHITECTURES)}")
