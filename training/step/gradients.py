"""Loss and gradients of one global batch, with bounded memory.

In: this rank's slice of a batch. Out: the loss, with the gradients in the parameters, averaged over ranks by DDP.

A slice that does not fit is split into micro-batches with cached features (GradCache, arXiv 2101.06983): every micro-batch is
embedded without a graph; one loss over all features gives each feature its gradient; every micro-batch is embedded again, from
the same random state, and its features' gradients are propagated back through the towers. The result equals that of the whole
slice wherever a sample's features do not depend on its neighbours: for ViTs, not for batch norm, which sees micro-batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.loss import ContrastiveResult

LossFunction = Callable[..., ContrastiveResult]
"""(image_features, text_features, logit_scale_exp, logit_bias if the model has one) -> the loss over the global batch."""


def compute_gradients(
    model: nn.Module,
    inputs: Sequence[Tensor],
    loss: LossFunction,
    micro_batch_size: int | None,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> ContrastiveResult:
    """Adds the gradients of the global batch, of which `inputs` is a slice, to the parameters'.

    Args:
        model: a CLIP, or DDP around one: inputs -> the arguments of `loss`.
        inputs: images (B, 3, H, W), texts (B, L), and further inputs with a row for each sample.
        micro_batch_size: samples that are embedded with a graph at a time; None: the whole slice. Ranks must agree on None, or
            their collectives run in different orders.
        autocast: entered around the towers only.
    """
    if micro_batch_size is None:
        with autocast():
            features = model(*inputs)
        result = loss(*features)
        result.loss.backward()
        return result

    parts = list(zip(*(rows.split(micro_batch_size) for rows in inputs), strict=True))
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    states, found = [], []
    with torch.no_grad(), buffers_kept(bare), autocast():
        for part in parts:
            states.append(_RandomState(inputs[0].device))
            found.append(bare(*part))
    joined = [torch.cat([features[tower] for features in found]) for tower in range(2)]
    leaves = [value.detach().requires_grad_() for value in (*joined, *found[0][2:])]
    result = loss(*leaves)
    result.loss.backward()
    image_gradients, text_gradients = (_gradient(leaf).split(micro_batch_size) for leaf in leaves[:2])

    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with states[number].restored(), contextlib.nullcontext() if last else _without_sync(model):
            with autocast():
                features = model(*part)
            gradients = [image_gradients[number], text_gradients[number]]
            if last:  # temperature and bias are shared by all micro-batches: their gradients are propagated once
                gradients += [_gradient(leaf) for leaf in leaves[2:]]
            pairs = [(value, gradient) for value, gradient in zip(features, gradients, strict=False) if value.requires_grad]
            torch.autograd.backward([value for value, _ in pairs], [gradient.to(value.dtype) for value, gradient in pairs])
    return result


def _gradient(leaf: Tensor) -> Tensor:
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def _without_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context in which DDP does not average: it does so once, with the last micro-batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restores batch-norm statistics on exit, so that samples embedded twice count once."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # .data: autograd has saved the buffer and would refuse one that changed


class _RandomState:
    """The random state of the CPU and of one device at this moment."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if self._device is not None else None

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Uses that state inside the context, and the present one after it."""
        now = _RandomState(self._device or torch.device("cpu"))
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._device is not None and self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
