"""The pre-norm transformer that both towers are made of, under the published parameter names.

Shape suffixes: B samples, L tokens, D width, N heads, K dimensions of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Activation


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation of the published weights. The exact GELU on them costs 2.7 points of ImageNet."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with the parameters and the initialisation of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BLD: Tensor, causal: bool) -> Tensor:
        batch, length, width = x_BLD.shape
        qkv = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        # (B, L, 3 * N * K) -> (3, B, N, L, K)
        q_BNLK, k_BNLK, v_BNLK = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BNLK = F.scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK, is_causal=causal)
        # (B, N, L, K) -> (B, L, N, K) -> (B, L, D)
        out_BLD: Tensor = self.out_proj(mixed_BNLK.transpose(1, 2).reshape(batch, length, width))
        return out_BLD


class MLP(nn.Module):
    """Widens four times, activates, narrows again."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out_BLD: Tensor = self.c_proj(self.activation(self.c_fc(x_BLD)))
        return out_BLD


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, causal: bool) -> Tensor:
        x_BLD = x_BLD + self.attn(self.ln_1(x_BLD), causal)
        x_BLD = x_BLD + self.mlp(self.ln_2(x_BLD))
        return x_BLD


class Transformer(nn.Module):
    """A stack of blocks; causal for text, not for images."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation, causal: bool) -> None:
        super().__init__()
        self.width, self.layers, self.causal = width, layers, causal
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, activation) for _ in range(layers))

    def forward(self, x_BLD: Tensor) -> Tensor:
        for block in self.resblocks:
            x_BLD = block(x_BLD, self.causal)
        return x_BLD
