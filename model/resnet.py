"""CLIP's modified ResNet (paper, section 2.4): ResNet-D stem, anti-aliased strides, attention pooling.

Shape suffixes: B samples, C channels, H W pixels, P = H * W + 1 tokens of the pool, D width, N heads, K head dim, E embed_dim.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Residual block whose convolutions have stride 1; to downsample, an average pool follows the second one's ReLU."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(channels_in, channels_out, 1, bias=False)),
                        ("1", nn.BatchNorm2d(channels_out)),
                    ]
                )
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        x_BCHW = F.relu(self.bn2(self.conv2(x_BCHW)), inplace=True)
        x_BCHW = self.bn3(self.conv3(self.avgpool(x_BCHW)))
        return F.relu(x_BCHW + shortcut, inplace=True)


class AttentionPool(nn.Module):
    """Multi-head attention with the grid's mean as its only query, instead of global average pooling."""

    def __init__(self, grid: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BE: Tensor = self.c_proj(self.pool(x_BCHW))
        return out_BE

    def pool(self, x_BCHW: Tensor) -> Tensor:
        """Pooled features before the projection, (B, D)."""
        # (B, C, H, W) -> (B, C, H * W) -> (B, H * W, D): channels are the width
        grid_BPD = x_BCHW.flatten(2).transpose(1, 2)
        x_BPD = torch.cat([grid_BPD.mean(dim=1, keepdim=True), grid_BPD], dim=1) + self.positional_embedding
        q_BNLK = self._split_heads(self.q_proj(x_BPD[:, :1]))
        k_BNPK, v_BNPK = self._split_heads(self.k_proj(x_BPD)), self._split_heads(self.v_proj(x_BPD))
        pooled_BNLK = F.scaled_dot_product_attention(q_BNLK, k_BNPK, v_BNPK)
        # (B, N, 1, K) -> (B, N * K)
        return pooled_BNLK.flatten(1)

    def _split_heads(self, x_BPD: Tensor) -> Tensor:
        # (B, P, N * K) -> (B, N, P, K)
        return x_BPD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ModifiedResNet(nn.Module):
    """Images (B, 3, H, W) -> features (B, E)."""

    def __init__(self, layers: tuple[int, int, int, int], embed_dim: int, heads: int, image_size_px: int, width: int) -> None:
        super().__init__()
        # ResNet-D: three 3x3 convolutions instead of one 7x7, average instead of max pool.
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)

        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = _stage(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = _stage(width * 16, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool(image_size_px // 32, width * 32, heads, embed_dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BE: Tensor = self.attnpool(self._grid(x_BCHW))
        return features_BE

    def trunk(self, x_BCHW: Tensor) -> Tensor:
        """Features before the projection, (B, D)."""
        return self.attnpool.pool(self._grid(x_BCHW))

    def _grid(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        x_BCHW = F.relu(self.bn2(self.conv2(x_BCHW)), inplace=True)
        x_BCHW = F.relu(self.bn3(self.conv3(x_BCHW)), inplace=True)
        x_BCHW = self.avgpool(x_BCHW)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_BCHW = stage(x_BCHW)
        return x_BCHW


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one resolution; the first one downsamples and widens."""
    first = Bottleneck(channels_in, channels, stride)
    rest = (Bottleneck(channels * Bottleneck.expansion, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
