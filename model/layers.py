"""The pre-norm transformer of both towers, with the published parameter names.

Both towers are read at one token: an image's class token, a caption's end-of-text. So the last block computes only that token,
from the keys and values of all: the same result for a tenth of the block's work. Captions differ in length, so layers that work
on single tokens (norms, projections, MLPs) get the tokens packed, without padding; only attention gets the padded rectangle.
See `Captions`.

Shape suffixes: B samples, L tokens, T tokens of all samples together, D width, N heads, K dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Activation


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of the published weights: with the exact GELU they lose 2.7 points on ImageNet."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies from the CPU without waiting for the GPU, which needs pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class Captions:
    """Layout of the tokens of a batch of captions of different lengths, each read at its end-of-text.

    Attributes:
        end_B: position of end-of-text.
        length: L, length of the padded rectangle.
        index_T: indices of the tokens in the flattened rectangle (B * L); None if the tokens are not packed.
    """

    end_B: Tensor
    length: int
    index_T: Tensor | None

    @staticmethod
    def of(texts_BL: Tensor, device: torch.device) -> Captions:
        """The layout for a model on `device`. Packed if the ids are on the CPU: counting tokens on a GPU would wait for it."""
        end_B = texts_BL.argmax(dim=-1)  # end-of-text has the largest id
        if texts_BL.device.type != "cpu":
            return Captions(end_B, texts_BL.shape[1], None)
        length = int(end_B.max()) + 1
        index_T = (torch.arange(length) <= end_B[:, None]).flatten().nonzero()[:, 0]
        return Captions(to_device(end_B, device), length, to_device(index_T, device))

    def pack(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (T, D); unchanged if the tokens are not packed."""
        return x_BLD if self.index_T is None else x_BLD.flatten(0, 1).index_select(0, self.index_T)

    def pad(self, x_TD: Tensor) -> Tensor:
        """The inverse of `pack`; padding is zero."""
        if self.index_T is None:
            return x_TD
        batch, width = len(self.end_B), x_TD.shape[1]
        padded = x_TD.new_zeros(batch * self.length, width).index_copy(0, self.index_T, x_TD)
        return padded.view(batch, self.length, width)

    def last(self, x_TD: Tensor) -> Tensor:
        """(B, D): each caption's token at end-of-text."""
        if self.index_T is None:
            return x_TD[torch.arange(len(x_TD), device=x_TD.device), self.end_B]
        return x_TD.index_select(0, (self.end_B + 1).cumsum(0) - 1)

    def mask(self) -> Tensor:
        """(B, 1, 1, L): the tokens that end-of-text attends to."""
        return (torch.arange(self.length, device=self.end_B.device) <= self.end_B[:, None])[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention with the parameters and initialisation of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, captions: Captions | None, read: bool) -> Tensor:
        """Output for all tokens of x; with `read`, only for the token that the tower is read at, (B, D)."""
        if read:
            return self._read(x, captions)
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q_BNLK, k_BNLK, v_BNLK = self._split(qkv if captions is None else captions.pad(qkv), 3)
        mixed_BNLK = F.scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK, is_causal=captions is not None)
        # (B, N, L, K) -> (B, L, N, K) -> (B, L, D)
        mixed_BLD = mixed_BNLK.transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed_BLD if captions is None else captions.pack(mixed_BLD))
        return out

    def _read(self, x: Tensor, captions: Captions | None) -> Tensor:
        """Attention of one token's query to the keys and values of all tokens."""
        width = x.shape[-1]
        read_BD = x[:, 0] if captions is None else captions.last(x)
        q_BD = F.linear(read_BD, self.in_proj_weight[:width], self.in_proj_bias[:width])
        kv = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        k_BNLK, v_BNLK = self._split(kv if captions is None else captions.pad(kv), 2)
        (q_BN1K,) = self._split(q_BD[:, None], 1)
        mask = None if captions is None else captions.mask()
        mixed_BN1K = F.scaled_dot_product_attention(q_BN1K, k_BNLK, v_BNLK, attn_mask=mask)
        out_BD: Tensor = self.out_proj(mixed_BN1K.flatten(1))
        return out_BD

    def _split(self, x_BLD: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * N * K) -> (parts, B, N, L, K)"""
        batch, length, width = x_BLD.shape
        heads = self.heads
        return x_BLD.view(batch, length, parts, heads, width // parts // heads).permute(2, 0, 3, 1, 4).unbind()


class MLP(nn.Module):
    """Two linear layers with an activation between them; the hidden width is four times the input's."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.activation(self.c_fc(x)))
        return out


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, captions: Captions | None = None, read: bool = False) -> Tensor:
        mixed = self.attn(self.ln_1(x), captions, read)
        if read:
            x = x[:, 0] if captions is None else captions.last(x)
        x = x + mixed
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; causal for captions, not for images."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, captions: Captions | None = None) -> Tensor:
        """Images (B, L, D), read at their first token, or packed captions (T, D), read at their end -> (B, D)."""
        for block in self.resblocks[:-1]:
            x = block(x, captions)
        x_BD: Tensor = self.resblocks[-1](x, captions, read=True)
        return x_BD
