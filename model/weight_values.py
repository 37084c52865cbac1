"""Checks the values of a state dict before a model takes them: dtypes, layouts, non-finite numbers, the temperature.

`load_state_dict` converts any dtype without a word: int8 weights without their scales would become a model of noise.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BLOCKS = -1000.0
_NEVER_ZERO = re.compile(r"(^|\.)(ln_\w+\.weight|class_embedding)$")
"""Vectors that no training makes zero; biases, and the last scales of a ResNet's branches, begin as zeros."""
_COUNTER = "num_batches_tracked"
_MAX_LOGIT_SCALE = 10.0
"""Its exponential is the factor of the logits, which CLIP limits to 100 (4.6 here)."""
_MIN_LOGIT_SCALE = 1.0
"""open_clip keeps it from falling below 0, Hugging Face and we do not. 0.07 and -2.66 are the temperature and its logarithm."""


def checked_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as plain tensors without gradients, its scalars without dimensions, without a causal mask.

    Raises:
        ValueError: a value is not a weight that can be computed with, or one that no training leaves. Names the tensor.
    """
    plain = {}
    for key, value in state.items():
        if key.endswith("attn_mask"):
            _check_mask(key, value)
            continue
        _check_kind(key, value)
        value = value.detach()
        if key in ("logit_scale", "logit_bias") and value.shape == (1,):  # open_clip can store them with this shape
            value = value.reshape(())
        plain[key] = value
    _check_finite(plain)
    _check_nonzero(plain)
    scale = plain["logit_scale"] if "logit_scale" in plain else None
    if scale is not None and scale.ndim == 0 and float(scale) > _MAX_LOGIT_SCALE:
        raise ValueError(
            f"logit_scale is {float(scale):.4g}, but it is the logarithm of the factor of the logits, which is 100 at most "
            "(4.6): this is probably the factor itself; store its logarithm"
        )
    return plain


def doubts(state: dict[str, Tensor]) -> tuple[str, ...]:
    """Returns a sentence about a temperature that can be computed with, but that hardly any training leaves."""
    scale = state["logit_scale"] if "logit_scale" in state else None
    if scale is None or scale.ndim or float(scale) >= _MIN_LOGIT_SCALE:
        return ()
    return (
        f"has a logit_scale of {float(scale):.4g}, a factor of {math.exp(float(scale)):.3g}, where CLIP's training begins with "
        "2.66, a factor of 14.3: if this is the temperature, or its logarithm, store the negative of the logarithm",
    )


def _check_kind(key: str, value: Tensor) -> None:
    if value.is_meta:
        raise ValueError(f"{key} is on the meta device, so its values were not saved; save a model that has its weights")
    if type(value) not in (Tensor, nn.Parameter):
        raise ValueError(f"{key} is a {type(value).__name__}, not a plain tensor; save a whole, unquantised state_dict")
    if value.layout is not torch.strided:
        raise ValueError(f"{key} is sparse; save it as a dense tensor, with to_dense()")
    if value.is_quantized or not (value.dtype in _FLOATS or (key.endswith(_COUNTER) and not value.dtype.is_complex)):
        dtype = str(value.dtype).removeprefix("torch.")
        raise ValueError(
            f"{key} is {dtype}; weights are float32, float16 or bfloat16: give those before quantisation or conversion"
        )


def _check_finite(state: dict[str, Tensor]) -> None:
    wrong = {}
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.sum())):  # a sum is cheap; it may overflow in float16
            count = int((~torch.isfinite(value)).sum())
            if count:
                wrong[key] = count
    if wrong:
        shown = ", ".join(f"{key} ({count:,})" for key, count in list(wrong.items())[:3])
        more = f" and {len(wrong) - 3} more tensors" if len(wrong) > 3 else ""
        raise ValueError(
            f"holds values that are NaN or infinite in {shown}{more}; the run diverged or the file is damaged: use an earlier "
            "checkpoint, or download it again"
        )


def _check_nonzero(state: dict[str, Tensor]) -> None:
    """Raises ValueError for matrices of nothing but zeros: what a file of the full size holds where a download has stopped."""
    candidates = {key: value for key, value in state.items() if value.ndim > 1 or _NEVER_ZERO.search(key)}
    empty = [key for key, value in candidates.items() if value.numel() and _is_zero(value)]
    if empty:
        shown = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more tensors" if len(empty) > 3 else "")
        raise ValueError(f"holds nothing but zeros in {shown}, as if a download had stopped; download or export it again")


def _is_zero(value: Tensor) -> bool:
    """True if all values are zero. The first row tells nearly always, at no cost."""
    return not bool(value[:1].any()) and not bool(value.any())


def _check_mask(key: str, value: Tensor) -> None:
    """Raises ValueError unless the text encoder's mask, which some versions store, is the causal one."""
    side = value.shape[-1] if value.ndim == 2 and not value.is_meta else 0
    # torch's convention: True, or minus infinity; some programs write a large number instead.
    blocked = value if value.dtype == torch.bool else value <= _BLOCKS
    if value.dtype != torch.bool and bool((value[~blocked] != 0).any()):
        side = 0
    if not side or not torch.equal(blocked, torch.ones(side, side, dtype=torch.bool).triu(1)):
        raise ValueError(f"{key} is not the causal mask; only CLIPs with a causal text encoder are supported")
