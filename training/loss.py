"""CLIP's contrastive loss over the global batch, exact in value and gradient, with memory linear in the batch.

In: this rank's l2-normalised features and exp(logit_scale). Out: a scalar whose mean over ranks (DDP takes the mean of
gradients) is the loss of one process that holds the whole batch; likewise every gradient.

Each rank computes its own rows (its images against all texts) and its own columns (its texts against all images). The
similarity matrix is walked in tiles with a running, max-shifted log-sum-exp and walked again in the backward pass, so that no
tensor larger than B x tile exists (after Inf-CL, arXiv 2410.17243). Loss: paper, section 2.3 and Figure 3.

`sigmoid_loss` is SigLIP's (arXiv 2303.15343): each pair on its own, so that rows suffice, and a bias beside the temperature.

Where the captions' numbers are given, all samples with the same caption are positives of each other, and none of them is a
negative of another one (docs/decisions/0024-repeated-captions.md): the mean over a row's positives of the cross-entropy between
that positive and the negatives (SINCERE, arXiv 2309.14277), in both directions; for the sigmoid loss, the label 1.

Shape suffixes: B samples on this rank, G global batch, E embed_dim, T columns of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.distributed import World, gather_features, slice_bounds

TILE, TILE_ON_CUDA = 1024, 4096
"""Columns of a tile, where none are configured: a GPU takes a quarter of the operations, and a CPU's caches stay warm."""


@dataclass(frozen=True)
class ContrastiveResult:
    """One step's loss on one rank.

    Attributes:
        loss: with gradient; weighted so that the mean over ranks is the global loss.
        loss_image_to_text, loss_text_to_image: this rank's share; their sum over ranks is the global mean. No gradient.
        accuracy_image_to_text, accuracy_text_to_image: this rank's share of the in-batch accuracy, likewise. A sample is
            correct if the argmax of its candidates is a positive; ties go to the lowest column. NaN for text_to_image of the
            sigmoid loss, which has no columns.
    """

    loss: Tensor
    loss_image_to_text: Tensor
    loss_text_to_image: Tensor
    accuracy_image_to_text: Tensor
    accuracy_text_to_image: Tensor


def contrastive_loss(
    image_features_BE: Tensor,
    text_features_BE: Tensor,
    logit_scale_exp: Tensor,
    world: World,
    global_batch_size: int,
    tile_size: int | None,
    caption_G: Tensor | None = None,
) -> ContrastiveResult:
    """The symmetric cross-entropy of the full G x G matrix, of which this rank computes B rows and B columns.

    Args:
        image_features_BE: normalised, this rank's slice (`slice_bounds`) of the global batch. Computed in float32, or in
            float64 where they are.
        text_features_BE: likewise.
        logit_scale_exp: scalar, exp(logit_scale).
        tile_size: columns that exist at a time; None: as many as keep the device busy.
        caption_G: int64, a number below G for each sample's caption, on every rank: samples with the same number are positives
            of each other. None: a sample's only positive is its own pair.
    """
    first = _check_slice(image_features_BE, text_features_BE, world, global_batch_size)
    with torch.autocast(image_features_BE.device.type, enabled=False):
        image_BE, text_BE, scale = _at_full_precision(image_features_BE, text_features_BE, logit_scale_exp)
        image_GE = gather_features(image_BE, global_batch_size, world)
        text_GE = gather_features(text_BE, global_batch_size, world)
        if caption_G is None:
            image_sum, image_correct = _TiledCrossEntropy.apply(image_BE, text_GE, scale, first, tile_size)
            text_sum, text_correct = _TiledCrossEntropy.apply(text_BE, image_GE, scale, first, tile_size)
        else:
            shared = _SharedCaptions(caption_G, first, image_BE)
            image_sum, image_correct = _TiledPositives.apply(image_BE, text_GE, scale, shared, tile_size)
            text_sum, text_correct = _TiledPositives.apply(text_BE, image_GE, scale, shared, tile_size)
        # The mean over ranks of (sum over own samples) * W / G is the global mean, for slices of any size.
        loss = (image_sum + text_sum) / 2 * (world.world_size / global_batch_size)
    return ContrastiveResult(
        loss=loss,
        loss_image_to_text=image_sum.detach() / global_batch_size,
        loss_text_to_image=text_sum.detach() / global_batch_size,
        accuracy_image_to_text=image_correct / global_batch_size,
        accuracy_text_to_image=text_correct / global_batch_size,
    )


def sigmoid_loss(
    image_features_BE: Tensor,
    text_features_BE: Tensor,
    logit_scale_exp: Tensor,
    logit_bias: Tensor,
    world: World,
    global_batch_size: int,
    tile_size: int | None,
    caption_G: Tensor | None = None,
) -> ContrastiveResult:
    """SigLIP's loss: the sum over all G x G pairs of -log sigmoid(y * (scale * similarity + bias)), over G; y is 1 for a
    sample's positives and -1 for others. Arguments as for `contrastive_loss`; logit_bias is a scalar.
    """
    first = _check_slice(image_features_BE, text_features_BE, world, global_batch_size)
    with torch.autocast(image_features_BE.device.type, enabled=False):
        image_BE, text_BE, scale = _at_full_precision(image_features_BE, text_features_BE, logit_scale_exp)
        text_GE = gather_features(text_BE, global_batch_size, world)
        bias = logit_bias.to(scale.dtype)
        if caption_G is None:
            total, num_correct = _TiledSigmoid.apply(image_BE, text_GE, scale, bias, first, tile_size)
        else:
            shared = _SharedCaptions(caption_G, first, image_BE)
            total, num_correct = _TiledSigmoidPositives.apply(image_BE, text_GE, scale, bias, shared, tile_size)
        loss = total * (world.world_size / global_batch_size)
    share = total.detach() / global_batch_size
    nothing = torch.full_like(share, torch.nan)
    return ContrastiveResult(loss, share, share, num_correct / global_batch_size, nothing)


def _check_slice(image_features_BE: Tensor, text_features_BE: Tensor, world: World, global_batch_size: int) -> int:
    """The first sample of this rank's slice. Raises ValueError if the features do not have the slice's size."""
    first, stop = slice_bounds(global_batch_size, world.rank, world.world_size)
    if len(image_features_BE) != stop - first or len(text_features_BE) != stop - first:
        raise ValueError(
            f"features of {len(image_features_BE)} images and {len(text_features_BE)} texts: rank {world.rank} of "
            f"{world.world_size} holds {stop - first} samples of a global batch of {global_batch_size}"
        )
    return first


def _at_full_precision(*values: Tensor) -> tuple[Tensor, ...]:
    """Values in float32, or in float64 if the first one is."""
    dtype = torch.float64 if values[0].dtype == torch.float64 else torch.float32
    return tuple(value.to(dtype) for value in values)


class _Best:
    """The first maximum of each row over successive tiles."""

    def __init__(self, rows_BE: Tensor) -> None:
        self.score_B = rows_BE.new_full((len(rows_BE),), -torch.inf)
        self.column_B = torch.zeros(len(rows_BE), dtype=torch.int64, device=rows_BE.device)

    def update(self, similarity_BT: Tensor, start: int) -> Tensor:
        """Updates with a tile. Returns the tile's maxima."""
        score_B, column_B = similarity_BT.max(1)
        better_B = score_B > self.score_B
        self.column_B = torch.where(better_B, column_B + start, self.column_B)
        self.score_B = torch.where(better_B, score_B, self.score_B)
        return score_B

    def num_correct(self, first: int) -> Tensor:
        """Number of rows whose label, column first + i, is their first maximum."""
        own_B = torch.arange(first, first + len(self.column_B), device=self.column_B.device)
        return (self.column_B == own_B).sum().to(self.score_B.dtype)


class _SharedCaptions:
    """Positive pairs of a rank's queries: those with keys that have the query's caption."""

    def __init__(self, caption_G: Tensor, first: int, query_BE: Tensor) -> None:
        self._caption_G, self._caption_B = caption_G, caption_G[first : first + len(query_BE)]
        ones_G = query_BE.new_ones(len(caption_G))
        self.number_B = torch.zeros_like(ones_G).index_add_(0, caption_G, ones_G)[self._caption_B]
        """Positives of each query."""

    def positive(self, start: int, similarity_BT: Tensor) -> Tensor:
        """The tile's positive pairs: bool (B, T)."""
        return self._caption_B[:, None] == self._caption_G[start : start + similarity_BT.shape[1]]

    def num_correct(self, best: _Best) -> Tensor:
        """Number of rows whose first maximum is a positive."""
        return (self._caption_G[best.column_B] == self._caption_B).sum().to(self.number_B.dtype)


class _TiledCrossEntropy(torch.autograd.Function):
    """Sum over queries of the cross-entropy of scale * query @ keys^T; query i's label is column first + i.

    Also counts the queries whose label is the first maximum of its row. Saves one number a query for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BE: Tensor, key_GE: Tensor, scale: Tensor, first: int, tile_size: int | None
    ) -> tuple[Tensor, Tensor]:
        batch = len(query_BE)
        label_B = (query_BE * key_GE[first : first + batch]).sum(1)
        largest_B = torch.full_like(label_B, -torch.inf)
        total_B = torch.zeros_like(label_B)
        best = _Best(query_BE)
        for start, similarity_BT in _tiles(query_BE, key_GE, tile_size):
            new_largest_B = torch.maximum(largest_B, best.update(similarity_BT, start) * scale)
            tile_BT = similarity_BT.mul_(scale).sub_(new_largest_B[:, None]).exp_()
            total_B = total_B * (largest_B - new_largest_B).exp() + tile_BT.sum(1)
            largest_B = new_largest_B
        log_sum_exp_B = largest_B + total_B.log()
        num_correct = best.num_correct(first)
        ctx.save_for_backward(query_BE, key_GE, scale, log_sum_exp_B, label_B)
        ctx.first, ctx.tile_size = first, tile_size
        ctx.mark_non_differentiable(num_correct)
        return (log_sum_exp_B - scale * label_B).sum(), num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BE, key_GE, scale, log_sum_exp_B, label_B = ctx.saved_tensors

        def probability(logits_BT: Tensor, _start: int) -> Tensor:
            return logits_BT.sub_(log_sum_exp_B[:, None]).exp_()

        found = _backward_in_tiles(
            query_BE, key_GE, scale, ctx.tile_size, probability, ctx.needs_input_grad[1], (label_B, ctx.first)
        )
        query, key, scale_gradient, _ = (None if one is None else one.mul_(gradients[0]) for one in found)
        return query, key, scale_gradient, None, None


class _TiledSigmoid(torch.autograd.Function):
    """Sum over queries and keys of SigLIP's loss of a pair; query i's own key is column first + i.

    softplus(-z) = softplus(z) - z, so the sign of matching pairs is a separate term. Counts correct queries likewise.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BE: Tensor, key_GE: Tensor, scale: Tensor, bias: Tensor, first: int, tile_size: int
    ) -> tuple[Tensor, Tensor]:
        label_B = (query_BE * key_GE[first : first + len(query_BE)]).sum(1)
        total = -(scale * label_B + bias).sum()
        best = _Best(query_BE)
        for start, similarity_BT in _tiles(query_BE, key_GE, tile_size):
            best.update(similarity_BT, start)
            total = total + F.softplus(similarity_BT.mul_(scale).add_(bias)).sum()
        num_correct = best.num_correct(first)
        ctx.save_for_backward(query_BE, key_GE, scale, bias, label_B)
        ctx.first, ctx.tile_size = first, tile_size
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BE, key_GE, scale, bias, label_B = ctx.saved_tensors

        def probability(logits_BT: Tensor, _start: int) -> Tensor:
            return logits_BT.add_(bias).sigmoid_()

        *found, total = _backward_in_tiles(
            query_BE, key_GE, scale, ctx.tile_size, probability, ctx.needs_input_grad[1], (label_B, ctx.first)
        )
        query, key, scale_gradient = (None if one is None else one.mul_(gradients[0]) for one in found)
        return query, key, scale_gradient, (total - len(query_BE)) * gradients[0], None, None


class _TiledPositives(torch.autograd.Function):
    """Sum over queries of the mean over their positives of the cross-entropy between that positive and the negatives.

    With S = scale * query . key, and N the log-sum-exp of S over a query's negatives, a positive's term is log(1 + exp(N - S)).
    """

    @staticmethod
    def forward(
        ctx: Any, query_BE: Tensor, key_GE: Tensor, scale: Tensor, shared: _SharedCaptions, tile_size: int
    ) -> tuple[Tensor, Tensor]:
        best = _Best(query_BE)
        # Finite, so that the difference of two maxima is a number where there has been no negative yet.
        largest_B = query_BE.new_full((len(query_BE),), torch.finfo(query_BE.dtype).min)
        total_B = torch.zeros_like(largest_B)
        for start, similarity_BT in _tiles(query_BE, key_GE, tile_size):
            best.update(similarity_BT, start)
            logits_BT = similarity_BT.mul_(scale).masked_fill_(shared.positive(start, similarity_BT), -torch.inf)
            new_largest_B = torch.maximum(largest_B, logits_BT.max(1).values)
            total_B = total_B * (largest_B - new_largest_B).exp() + logits_BT.sub_(new_largest_B[:, None]).exp_().sum(1)
            largest_B = new_largest_B
        negatives_B = largest_B + total_B.log()  # N; -inf without negatives, which makes loss and gradients zero
        loss_B, weight_B = torch.zeros_like(total_B), torch.zeros_like(total_B)
        for start, similarity_BT in _tiles(query_BE, key_GE, tile_size):
            log_probability_BT = F.logsigmoid(similarity_BT.mul_(scale).sub_(negatives_B[:, None]))
            log_probability_BT.masked_fill_(~shared.positive(start, similarity_BT), 0)
            loss_B -= log_probability_BT.sum(1)
            weight_B -= log_probability_BT.expm1_().sum(1)
        num_correct = shared.num_correct(best)
        ctx.save_for_backward(query_BE, key_GE, scale, negatives_B, weight_B / shared.number_B)
        ctx.shared, ctx.tile_size = shared, tile_size
        ctx.mark_non_differentiable(num_correct)
        return (loss_B / shared.number_B).sum(), num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BE, key_GE, scale, negatives_B, weight_B = ctx.saved_tensors
        number_B1, negatives_B1, weight_B1 = (one[:, None] for one in (ctx.shared.number_B, negatives_B, weight_B))

        def gradient(logits_BT: Tensor, start: int) -> Tensor:
            pull_BT = torch.sigmoid(negatives_B1 - logits_BT).div_(-number_B1)
            push_BT = logits_BT.sub_(negatives_B1).exp_().mul_(weight_B1)
            return torch.where(ctx.shared.positive(start, pull_BT), pull_BT, push_BT)

        found = _backward_in_tiles(query_BE, key_GE, scale, ctx.tile_size, gradient, ctx.needs_input_grad[1])
        query, key, scale_gradient, _ = (None if one is None else one.mul_(gradients[0]) for one in found)
        return query, key, scale_gradient, None, None


class _TiledSigmoidPositives(torch.autograd.Function):
    """Like `_TiledSigmoid`, where a query may have several positives."""

    @staticmethod
    def forward(
        ctx: Any, query_BE: Tensor, key_GE: Tensor, scale: Tensor, bias: Tensor, shared: _SharedCaptions, tile_size: int
    ) -> tuple[Tensor, Tensor]:
        total, best = torch.zeros_like(scale), _Best(query_BE)
        for start, similarity_BT in _tiles(query_BE, key_GE, tile_size):
            best.update(similarity_BT, start)
            logits_BT = similarity_BT.mul_(scale).add_(bias)
            positive_BT = shared.positive(start, logits_BT)
            total = total + F.softplus(logits_BT).sum() - logits_BT.masked_fill_(~positive_BT, 0).sum()
        num_correct = shared.num_correct(best)
        ctx.save_for_backward(query_BE, key_GE, scale, bias)
        ctx.shared, ctx.tile_size = shared, tile_size
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BE, key_GE, scale, bias = ctx.saved_tensors

        def gradient(logits_BT: Tensor, start: int) -> Tensor:
            return logits_BT.add_(bias).sigmoid_().sub_(ctx.shared.positive(start, logits_BT).to(logits_BT.dtype))

        found = _backward_in_tiles(query_BE, key_GE, scale, ctx.tile_size, gradient, ctx.needs_input_grad[1])
        query, key, scale_gradient, total = (None if one is None else one.mul_(gradients[0]) for one in found)
        return query, key, scale_gradient, total, None, None


def _tiles(query_BE: Tensor, key_GE: Tensor, tile_size: int | None) -> Iterator[tuple[int, Tensor]]:
    """Yields (first column, similarity_BT) of each tile, all in the same memory, which the caller may overwrite."""
    batch = len(query_BE)
    tile_size = tile_size or (TILE_ON_CUDA if query_BE.device.type == "cuda" else TILE)
    memory = query_BE.new_empty(batch * min(tile_size, len(key_GE)))
    for start in range(0, len(key_GE), tile_size):
        key_TE = key_GE[start : start + tile_size]
        similarity_BT = memory[: batch * len(key_TE)].view(batch, len(key_TE))
        yield start, torch.mm(query_BE, key_TE.T, out=similarity_BT)


def _backward_in_tiles(
    query_BE: Tensor,
    key_GE: Tensor,
    scale: Tensor,
    tile_size: int | None,
    probability: Callable[[Tensor, int], Tensor],
    key_requires_grad: bool,
    own: tuple[Tensor, int] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of query, key and scale, and the sum of all p.

    With s = query . key, p = probability(scale * s), and onehot = 1 in a query's own column, else 0:
    dloss/ds = scale * (p - onehot), dloss/dscale = sum(p * s) - sum(label). Without `own`, onehot and label are 0.

    Args:
        probability: of a tile of scale * s, which it may overwrite, and the tile's first column.
        key_requires_grad: compute the keys' gradient; those of a locked encoder have none.
        own: s of each query with its own key, and the first query's own column.
    """
    query_gradient_BE = torch.zeros_like(query_BE)
    key_gradient_GE = torch.empty_like(key_GE) if key_requires_grad else None
    total = torch.zeros_like(scale)
    for start, similarity_BT in _tiles(query_BE, key_GE, tile_size):
        probability_BT = probability(similarity_BT.mul_(scale), start)
        stop = start + probability_BT.shape[1]
        total = total + probability_BT.sum()
        query_gradient_BE.addmm_(probability_BT, key_GE[start:stop])
        if key_gradient_GE is not None:
            torch.mm(probability_BT.T, query_BE, out=key_gradient_GE[start:stop])
    # s is query . key, so sum(p * s) is query . (p @ key), which is computed already.
    scale_gradient = torch.dot(query_BE.flatten(), query_gradient_BE.flatten())
    if own is not None:
        label_B, first = own
        scale_gradient = scale_gradient - label_B.sum()
        query_gradient_BE -= key_GE[first : first + len(query_BE)]
        if key_gradient_GE is not None:
            key_gradient_GE[first : first + len(query_BE)] -= query_BE
    if key_gradient_GE is not None:
        key_gradient_GE.mul_(scale)
    return query_gradient_BE.mul_(scale), key_gradient_GE, scale_gradient, total
