"""The table of architectures, one row each. Imports no torch."""

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
        vision_layers: numbers of blocks in the four ResNet stages, or the number of ViT blocks.
        vision_width: width of the ResNet's stem (its output is 32 times as wide), or of the ViT.
        patch_size_px: side of a ViT's patches; None for a ResNet.
        activation: activation of all transformer blocks. Weights give wrong features with the other one.
        context_length: tokens of a caption, including start and end of text.
        has_logit_bias: True for SigLIP's loss, which has a bias beside the temperature.
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
        """Heads of the ViT's blocks, or of the ResNet's attention pool, with 64 dimensions each."""
        return self.vision_width // 64 if self.patch_size_px is not None else self.vision_width * 32 // 64

    @property
    def image_step_px(self) -> int:
        """Side of an image's patches or grid cells; the image size is a multiple of it."""
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
    # Small architectures, for smoke runs, tests and the demo on two cores.
    Architecture("debug-vit", 32, 32, 2, 64, 8, 2, 64, 1),
    Architecture("debug-rn", 64, 64, (1, 1, 1, 1), 16, None, 2, 64, 1),
    Architecture("demo", 128, 64, (1, 1, 1, 1), 16, None, 2, 64, 1, context_length=24),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
PUBLISHED = tuple(row.name for row in _ROWS[:9])
"""The paper's nine architectures."""


def get_architecture(name: str) -> Architecture:
    """The architecture of that name. Raises ValueError that suggests the nearest name."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    close = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"there is no such architecture; {hint}use one of {', '.join(ARCHITECTURES)}")
