"""Counts what operations read and write, as a GPU without fusion would: by dispatch, forward and backward."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")
"""Parts of the names of operations whose time is that of arithmetic."""


class Traffic(TorchDispatchMode):
    """Bytes that operations besides matrix products read and write, by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and name != "_unsafe_view" and not any(part in name for part in MATRIX_PRODUCTS):
            tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, torch.Tensor)]
            self.bytes_of[name] += sum(one.numel() * one.element_size() for one in tensors)
        return out


def traffic(work: Callable[[], torch.Tensor]) -> Counter[str]:
    """The traffic of a forward pass and its backward pass."""
    with Traffic() as found:
        work().sum().backward()
    return found.bytes_of
