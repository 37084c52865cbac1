"""CLIP's contrastive loss over the global batch, exact in value and gradient, with memory linear in the batch.

In: this rank's l2-normalised features and the temperature's exponential. Out: a scalar whose mean over ranks (what DDP takes
of the gradients) is the loss of one process that holds the whole batch, and so is every gradient.

Each rank computes its own rows (its images against all texts) and its own columns (its texts against all images). The
similarity matrix is walked in tiles with a running, max-shifted log-sum-exp and walked again in the backward pass, so that no
tensor larger than B x tile exists (after Inf-CL, arXiv 2410.17243). Loss: paper, section 2.3 and Figure 3.

Shape suffixes: B samples on this rank, G global batch, E embed_dim, T columns of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.distributed import World, gather_features, slice_bounds


@dataclass(frozen=True)
class ContrastiveResult:
    """One step's loss on one rank.

    Attributes:
        loss: with gradient; weighted so that the mean over ranks is the global loss.
        loss_image_to_text, loss_text_to_image: this rank's share; their sum over ranks is the global mean. No gradient.
        accuracy_image_to_text, accuracy_text_to_image: this rank's share of the in-batch accuracy, likewise. A sample counts
            as right when no other candidate scores higher, and of equal ones it comes first.
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
    tile_size: int,
) -> ContrastiveResult:
    """The symmetric cross-entropy of the full G x G matrix, of which this rank computes B rows and B columns.

    Args:
        image_features_BE, text_features_BE: normalised, this rank's slice (`slice_bounds`) of the global batch. Computed in
            float32, or in float64 where they are.
        logit_scale_exp: scalar, exp(logit_scale).
        tile_size: columns that exist at a time.
    """
    first, stop = slice_bounds(global_batch_size, world.rank, world.world_size)
    if len(image_features_BE) != stop - first or len(text_features_BE) != stop - first:
        raise ValueError(
            f"features of {len(image_features_BE)} images and {len(text_features_BE)} texts: rank {world.rank} of "
            f"{world.world_size} holds {stop - first} samples of a global batch of {global_batch_size}"
        )
    with torch.autocast(image_features_BE.device.type, enabled=False):
        dtype = torch.float64 if image_features_BE.dtype == torch.float64 else torch.float32
        image_BE, text_BE = image_features_BE.to(dtype), text_features_BE.to(dtype)
        scale = logit_scale_exp.to(dtype)
        image_GE = gather_features(image_BE, global_batch_size, world)
        text_GE = gather_features(text_BE, global_batch_size, world)
        image_sum, image_right = _TiledCrossEntropy.apply(image_BE, text_GE, scale, first, tile_size)
        text_sum, text_right = _TiledCrossEntropy.apply(text_BE, image_GE, scale, first, tile_size)
        # The mean over ranks of (sum over own samples) * W / G is the global mean, for slices of any size.
        loss = (image_sum + text_sum) / 2 * (world.world_size / global_batch_size)
    return ContrastiveResult(
        loss=loss,
        loss_image_to_text=image_sum.detach() / global_batch_size,
        loss_text_to_image=text_sum.detach() / global_batch_size,
        accuracy_image_to_text=image_right / global_batch_size,
        accuracy_text_to_image=text_right / global_batch_size,
    )


class _TiledCrossEntropy(torch.autograd.Function):
    """Sum over queries of the cross-entropy of scale * query @ keys^T; query i's label is column first + i.

    Also counts the queries whose label is the first maximum of its row. Keeps one number a query for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, query_BE: Tensor, key_GE: Tensor, scale: Tensor, first: int, tile_size: int) -> tuple[Tensor, Tensor]:
        batch = len(query_BE)
        label_B = (query_BE * key_GE[first : first + batch]).sum(1)
        largest_B = torch.full_like(label_B, -torch.inf)
        total_B = torch.zeros_like(label_B)
        best_B = torch.full_like(label_B, -torch.inf)
        best_column_B = torch.zeros(batch, dtype=torch.int64, device=query_BE.device)
        for start in range(0, len(key_GE), tile_size):
            similarity_BT = query_BE @ key_GE[start : start + tile_size].T
            tile_best_B, tile_column_B = similarity_BT.max(1)
            better_B = tile_best_B > best_B
            best_column_B = torch.where(better_B, tile_column_B + start, best_column_B)
            best_B = torch.where(better_B, tile_best_B, best_B)
            new_largest_B = torch.maximum(largest_B, tile_best_B * scale)
            tile_BT = similarity_BT.mul_(scale).sub_(new_largest_B[:, None]).exp_()
            total_B = total_B * (largest_B - new_largest_B).exp() + tile_BT.sum(1)
            largest_B = new_largest_B
        log_sum_exp_B = largest_B + total_B.log()
        own_B = torch.arange(first, first + batch, device=query_BE.device)
        right = (best_column_B == own_B).sum().to(query_BE.dtype)
        ctx.save_for_backward(query_BE, key_GE, scale, log_sum_exp_B, label_B)
        ctx.first, ctx.tile_size = first, tile_size
        ctx.mark_non_differentiable(right)
        return (log_sum_exp_B - scale * label_B).sum(), right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """With p = softmax(scale * s): d/ds = scale * (p - onehot), d/dscale = sum(p * s) - label."""
        gradient = gradients[0]
        query_BE, key_GE, scale, log_sum_exp_B, label_B = ctx.saved_tensors
        batch, first = len(query_BE), ctx.first
        query_gradient_BE = torch.zeros_like(query_BE)
        key_gradient_GE = torch.empty_like(key_GE)
        scale_gradient = -label_B.sum()
        for start in range(0, len(key_GE), ctx.tile_size):
            key_TE = key_GE[start : start + ctx.tile_size]
            similarity_BT = query_BE @ key_TE.T
            probability_BT = (similarity_BT * scale).sub_(log_sum_exp_B[:, None]).exp_()
            scale_gradient = scale_gradient + torch.dot(similarity_BT.flatten(), probability_BT.flatten())
            query_gradient_BE.addmm_(probability_BT, key_TE)
            torch.mm(probability_BT.T, query_BE, out=key_gradient_GE[start : start + ctx.tile_size])
        query_gradient_BE -= key_GE[first : first + batch]
        key_gradient_GE[first : first + batch] -= query_BE
        factor = gradient * scale
        return query_gradient_BE.mul_(factor), key_gradient_GE.mul_(factor), gradient * scale_gradient, None, None
