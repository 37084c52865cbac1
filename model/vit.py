"""CLIP's vision transformer (paper, section 2.4): an extra layer norm before the blocks, a projection after the class token.

Shape suffixes: B samples, C H W an image, L tokens (class token first), P patches that are kept, D width, E embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import Activation
from model.layers import Transformer


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W) -> features (B, E)."""

    def __init__(
        self,
        image_size_px: int,
        patch_size_px: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size_px, stride=patch_size_px, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((image_size_px // patch_size_px) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, x_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """`kept_BP`: indices of the patches to process (patch dropout: FLIP, arXiv 2212.00794); None: all."""
        features_BE: Tensor = self.trunk(x_BCHW, kept_BP) @ self.proj
        return features_BE

    def trunk(self, x_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """Features before the projection, (B, D)."""
        # (B, D, H', W') -> (B, D, H' * W') -> (B, L - 1, D)
        patches_BLD = self.conv1(x_BCHW).flatten(2).transpose(1, 2) + self.positional_embedding[1:]
        if kept_BP is not None:
            patches_BLD = patches_BLD.gather(1, kept_BP[:, :, None].expand(-1, -1, patches_BLD.shape[2]))
        class_D = self.class_embedding + self.positional_embedding[0]
        x_BLD = torch.cat([class_D.to(patches_BLD.dtype).expand(len(patches_BLD), 1, -1), patches_BLD], dim=1)
        class_BD = self.transformer(self.ln_pre(x_BLD))
        trunk_BD: Tensor = self.ln_post(class_BD)
        return trunk_BD
