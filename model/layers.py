"""The pre-norm transformer of both towers, with the published parameter names.

Both towers are read at one token: an image's class token, a caption's end-of-text. So the last block computes only that token,
from the keys and values of all: the same result for a tenth of the block's work. Captions differ in length, so layers that work
on single tokens (norms, projections, MLPs) get the tokens packed, without padding; only attention gets the padded rectangle.
See `Captions`.

Shape suffixes: B samples, L tokens, T tokens of all samples together, D width, N heads, K dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Activation

QUICK_GELU_SLOPE = 1.702


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of the published weights: with the exact GELU they lose 2.7 points on ImageNet."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(QUICK_GELU_SLOPE * x)


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
        ids: token ids (T,), or (B, L) if the tokens are not packed.
        positions: of the same shape, or (L,).
    """

    end_B: Tensor
    length: int
    index_T: Tensor | None
    ids: Tensor
    positions: Tensor

    @staticmethod
    def of(texts_BL: Tensor, device: torch.device) -> Captions:
        """The layout for a model on `device`. Packed if the ids are on the CPU: counting tokens on a GPU would wait for it."""
        end_B = texts_BL.argmax(dim=-1)  # end-of-text has the largest id
        if texts_BL.device.type != "cpu":
            length = texts_BL.shape[1]
            return Captions(end_B, length, None, texts_BL, torch.arange(length, device=device))
        length = int(end_B.max()) + 1
        index_T = (torch.arange(length) <= end_B[:, None]).flatten().nonzero()[:, 0]
        ids_T = texts_BL[:, :length].flatten()[index_T]
        rows = to_device(torch.cat([end_B, index_T, ids_T, index_T % length]), device)  # one copy
        end_B, *tokens = rows.split([len(end_B), *[len(index_T)] * 3])
        return Captions(end_B, length, *tokens)

    def pack(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (T, D); unchanged if the tokens are not packed."""
        if self.index_T is None:
            return x_BLD
        return _rows(x_BLD.flatten(0, 1), self.index_T)

    def pad(self, x_TD: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """The inverse of `pack`, zero-padded, for parts that lie side by side: (T, parts * D) -> parts x (B, L, D)."""
        if self.index_T is None:
            return x_TD.chunk(parts, dim=-1)
        num_rows = len(self.end_B) * self.length
        padded_RD: tuple[Tensor, ...]
        if torch.compiler.is_compiling():
            zeros = (x_TD.new_zeros(num_rows, x_TD.shape[1] // parts) for _ in range(parts))
            padded_RD = tuple(
                one.index_copy(0, self.index_T, part) for one, part in zip(zeros, x_TD.chunk(parts, 1), strict=True)
            )
        else:
            padded_RD = _Pad.apply(x_TD, self.index_T, num_rows, parts)
        return tuple(one.view(len(self.end_B), self.length, -1) for one in padded_RD)

    def last(self, x_TD: Tensor) -> Tensor:
        """(B, D): each caption's token at end-of-text."""
        if self.index_T is None:
            return x_TD[torch.arange(len(x_TD), device=x_TD.device), self.end_B]
        return _rows(x_TD, (self.end_B + 1).cumsum(0) - 1)

    def mask(self) -> Tensor:
        """(B, 1, 1, L): the tokens that end-of-text attends to."""
        return (torch.arange(self.length, device=self.end_B.device) <= self.end_B[:, None])[:, None, None]


def _rows(x_RD: Tensor, index_T: Tensor) -> Tensor:
    """Rows by their indices, which are all different.

    The compiler has its own way for both passes; torch 2.11 compiles functions of ours to wrong gradients.
    """
    if torch.compiler.is_compiling():
        return x_RD.index_select(0, index_T)
    rows_TD: Tensor = _Pack.apply(x_RD, index_T)
    return rows_TD


class _Pack(torch.autograd.Function):
    """Rows of a matrix by their indices, which are all different: so the backward pass copies, and adds nothing."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, index_T: Tensor) -> Tensor:
        ctx.save_for_backward(index_T)
        ctx.num_rows = len(x_RD)
        return x_RD.index_select(0, index_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index_T,) = ctx.saved_tensors
        return _Pad.apply(grads[0], index_T, ctx.num_rows, 1)[0], None


class _Pad(torch.autograd.Function):
    """Rows at their places in matrices of zeros, one for each part of a row; the backward pass is `_Pack` of each."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, index_T: Tensor, num_rows: int, parts: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(index_T)
        x_TPD = x_TD.view(len(x_TD), parts, -1)
        padded = [x_TD.new_zeros(num_rows, x_TPD.shape[2]) for _ in range(parts)]
        return tuple(one.index_copy_(0, index_T, x_TPD[:, part]) for part, one in enumerate(padded))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (index_T,) = ctx.saved_tensors
        return torch.cat([_Pack.apply(grad, index_T) for grad in grads], dim=1), None, None, None


class LayerNorm(nn.LayerNorm):
    """Layer norm in the precision of its input, of which it computes the statistics in float32.

    Autocast would return float32, which costs another pass over memory at each linear layer that follows.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


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
        q_BNLK, k_BNLK, v_BNLK = self._parts(qkv, captions, 3)
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
        k_BNLK, v_BNLK = self._parts(kv, captions, 2)
        q_BN1K = q_BD.view(len(q_BD), self.heads, 1, -1)
        mask = None if captions is None else captions.mask()
        mixed_BN1K = F.scaled_dot_product_attention(q_BN1K, k_BNLK, v_BNLK, attn_mask=mask)
        out_BD: Tensor = self.out_proj(mixed_BN1K.flatten(1))
        return out_BD

    def _parts(self, x: Tensor, captions: Captions | None, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * N * K), or packed -> parts x (B, N, L, K)"""
        if captions is not None and captions.index_T is not None:
            padded = captions.pad(x, parts)
            return tuple(one.view(*one.shape[:2], self.heads, -1).transpose(1, 2) for one in padded)
        batch, length, width = x.shape
        return x.view(batch, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4).unbind()


class MLP(nn.Module):
    """Two linear layers with an activation between them; the hidden width is four times the input's."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(self.activation, QuickGELU):
            return self._with_scaled_weights(x)
        out: Tensor = self.c_proj(self.activation(self.c_fc(x)))
        return out

    def _with_scaled_weights(self, x: Tensor) -> Tensor:
        """The same function with one pointwise operation in place of three, and one in the backward pass in place of five.

        u * sigmoid(s u) = silu(s u) / s, and the two factors are those of weights, which are smaller than activations.
        """
        slope = QUICK_GELU_SLOPE
        hidden = F.silu(F.linear(x, self.c_fc.weight * slope, self.c_fc.bias * slope))
        return F.linear(hidden, self.c_proj.weight / slope, self.c_proj.bias)


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, captions: Captions | None = None, read: bool = False) -> Tensor:
        mixed = self.attn(self.ln_1(x), captions, read)
        if read:
            x = x[:, 0] if captions is None else captions.last(x)
        x = x + mixed
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; causal for captions, not for images. Under autocast, sums between blocks have its precision."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, captions: Captions | None = None) -> Tensor:
        """Images (B, L, D), read at their first token, or packed captions (T, D), read at their end -> (B, D)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.resblocks[:-1]:
            x = block(x, captions)
        x_BD: Tensor = self.resblocks[-1](x, captions, read=True)
        return x_BD
