"""Finds the one CLIP in what a file holds, wherever it lies, and names what else the file is if it holds none.

In: what a file holds: a state dict, or dicts, lists and tuples around one. Out: the tensors of the CLIP under the keys of its
own state dict, and a line for everything that was decided.

Rules, in order:
1. Dicts, lists and tuples are walked; a tensor's full name is its path, with dots (`state_dict.module.visual.proj`). Names of
   optimizers and gradients are not walked: their entries have the names of weights.
2. Segments that wrap a module (`module`, `_orig_mod`, FSDP's and activation checkpointing's) are removed, wherever they are.
3. A CLIP is a prefix under which there are weights of both encoders, with the published names, with open_clip's `text.`, or
   with those of Hugging Face's CLIPModel.
4. One CLIP is loaded, also if it has several names. Of several, the one whose prefix names a moving average, as for a run of
   our own; otherwise none is.
5. Tensors beside it in the same state dict must be known (losses, counters): an unknown one may belong to the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.other_models import OPTIMIZER, name_of_model

_WRAPPERS = {
    "module", "_orig_mod", "_orig_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
}  # fmt: skip
_NOT_WEIGHTS = re.compile(
    r"(^|_)(optim|optimizer|optimizers|opt|scheduler|schedulers|scaler|grad|grads|gradients|exp_avg|exp_avg_sq)(_|$)"
    r"|^(param_groups|momentum|momentum_buffer)$",
    re.IGNORECASE,
)
_AVERAGE = re.compile(
    r"ema|swa|avg|averaged?|polyak|shadow|(ema|swa)(model|net|weights|params|state)|(model|net|weights|params|state)(ema|swa)"
)
_BESIDE_AVERAGE = re.compile(
    r"model|net|network|module|clip|teacher|weights?|params?|parameters|state|states|dict|moving|exponential|\d*"
)
"""Words of a moving average's name. Any other word may say that it is none: `model_without_ema`, `best_avg_recall`."""
_MODELS = frozenset(("model", "net", "network", "module", "clip", "teacher"))
"""Words with which `shadow` names no average: a shadow model imitates the model that an attack on privacy is aimed at."""
_IMAGE = re.compile(
    r"^(?P<prefix>(?:.*\.)?)(?:visual\.(?:conv1\.weight|ln_post\.weight|proj|attnpool\.c_proj\.weight)"
    r"|vision_model\.(?:embeddings\.patch_embedding\.weight|post_layernorm\.weight))$"
)
_TEXT = re.compile(
    r"^(?P<prefix>(?:.*\.)?)(?:token_embedding\.weight|ln_final\.weight|text_projection"
    r"|text_model\.(?:embeddings\.token_embedding\.weight|final_layer_norm\.weight))$"
)
_OWN = {
    "visual", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale",
    "logit_bias", "text", "vision_model", "text_model", "visual_projection", "attn_mask",
}  # fmt: skip
"""First segments of a CLIP's own names."""
_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold besides the weights."""
_BESIDE = re.compile(
    r"^(loss|losses|loss_fn|loss_func|criterion|crit|objective|metric|metrics|(train|val|valid|validation|test)_\w+"
    r"|n_averaged|num_updates|decay|initted|step|steps|epoch|epochs|global_step|iteration|iterations|best_\w+|_extra_state)$"
)
_SAVE = "save the state dict of the CLIP alone, best as safetensors"


@dataclass(frozen=True)
class Found:
    """The CLIP of a file.

    Attributes:
        state: tensors under the CLIP's own names, published or Hugging Face's; of a file without a CLIP, all its tensors.
        notices: a line for each decision.
    """

    state: dict[str, Tensor]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Leaf:
    """One value of the file.

    Attributes:
        name: its path without wrappers, joined by dots.
        path: keys that lead to it.
        value: a tensor or something else; None for what is not walked.
    """

    name: str
    path: tuple[str, ...]
    value: Any

    @property
    def full(self) -> str:
        return ".".join(self.path)

    @property
    def parent(self) -> tuple[str, ...]:
        return self.path[:-1]


def find_clip(content: Any) -> Found:
    """Finds the CLIP. A file without one that is no known model is returned whole, for the model to say what it lacks.

    Raises:
        ValueError: it holds none, or several, or others' tensors beside it.
    """
    leaves = list(_walk(content, (), ()))
    tensors = [leaf for leaf in leaves if isinstance(leaf.value, Tensor)]
    if not tensors or isinstance(content, Tensor):
        raise ValueError(_holds_no_tensors(content, leaves))
    image, text = _prefixes(tensors, _IMAGE), _prefixes(tensors, _TEXT)
    text |= {prefix.removesuffix("text.") for prefix in text if prefix.endswith("text.")}
    prefixes = sorted(image & text, key=lambda prefix: (prefix.count("."), prefix))
    named = name_of_model([leaf.name for leaf in tensors], bool(image), bool(text))
    if named is not None and (not prefixes or named.even_in_a_clip):
        raise ValueError(f"holds {named.name}; {named.remedy}")
    if not prefixes:
        if any(hasattr(leaf.value, "named") for leaf in leaves):
            raise ValueError(_holds_no_tensors(content, leaves))
        return Found(_as_state(tensors, ""), ())
    prefix, notices = _choose(prefixes, leaves)
    inside, beside = _split(prefix, prefixes, leaves)
    return Found(_as_state(inside, prefix), notices + _check_beside(prefix, inside, beside))


def _walk(content: Any, path: tuple[str, ...], names: tuple[str, ...]) -> Iterator[_Leaf]:
    if isinstance(content, Mapping):
        items: Sequence[tuple[Any, Any]] = list(content.items())
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    else:
        yield _Leaf(".".join(names), path, content)
        return
    for key, value in items:
        inner = str(key)
        plain = tuple(part for part in inner.split(".") if part not in _WRAPPERS)
        if isinstance(value, Mapping | list | tuple) and _NOT_WEIGHTS.search(inner):
            yield _Leaf(".".join((*names, *plain)), (*path, inner), None)
            continue
        yield from _walk(value, (*path, inner), (*names, *plain))


def _prefixes(leaves: list[_Leaf], pattern: re.Pattern[str]) -> set[str]:
    matches = (pattern.match(leaf.name) for leaf in leaves)
    prefixes = {match["prefix"] for match in matches if match is not None}
    return {prefix for prefix in prefixes if not any(_NOT_WEIGHTS.search(part) for part in prefix.split("."))}


def _choose(prefixes: list[str], leaves: list[_Leaf]) -> tuple[str, tuple[str, ...]]:
    """The prefix of the CLIP to load, and what is to be said about the choice."""
    if len(prefixes) == 1:
        return prefixes[0], ()
    shown = " and ".join(_shown(prefix) for prefix in prefixes)
    if _are_the_same(prefixes, leaves):
        return prefixes[0], (f"holds one CLIP under {len(prefixes)} names, {shown}, with the same weights",)
    averages = [prefix for prefix in prefixes if any(map(_names_average, prefix.split(".")))]
    if len(averages) == 1:
        return averages[0], (
            f"holds {len(prefixes)} CLIPs, {shown}: the moving average, {_shown(averages[0])}, is loaded; for another one, "
            "save it alone",
        )
    raise ValueError(f"holds {len(prefixes)} CLIPs, {shown}, and does not say which one to use; {_SAVE}")


def _names_average(part: str) -> bool:
    words = re.split(r"[\W_]+", part.lower())
    averages = [word for word in words if _AVERAGE.fullmatch(word)]
    if averages == ["shadow"] and not _MODELS.isdisjoint(words):
        return False
    return bool(averages) and all(word in averages or _BESIDE_AVERAGE.fullmatch(word) for word in words)


def _are_the_same(prefixes: list[str], leaves: list[_Leaf]) -> bool:
    """True if the weights under all prefixes are equal in every bit, as of a module that two attributes of another hold."""
    first: dict[str, Tensor] | None = None
    for prefix in prefixes:
        inside = [leaf for leaf in _split(prefix, prefixes, leaves)[0] if isinstance(leaf.value, Tensor)]
        state = _as_state(inside, prefix)
        first = state if first is None else first
        if state.keys() != first.keys() or not all(_same(value, first[key]) for key, value in state.items()):
            return False
    return True


def _shown(prefix: str) -> str:
    return f"`{prefix.removesuffix('.')}`" if prefix else "the CLIP at its top"


def _split(prefix: str, prefixes: list[str], leaves: list[_Leaf]) -> tuple[list[_Leaf], list[_Leaf]]:
    """The values that are the CLIP's own, and those that are of no CLIP."""
    inside, beside = [], []
    for leaf in leaves:
        under = [one for one in prefixes if leaf.name.startswith(one) and leaf.name[len(one) :].partition(".")[0] in _OWN]
        if not under:
            beside.append(leaf)
        elif max(under, key=len) == prefix:
            inside.append(leaf)
    return inside, beside


def _check_beside(prefix: str, inside: list[_Leaf], beside: list[_Leaf]) -> tuple[str, ...]:
    """Raises ValueError for what may belong to the model; returns a line about what is ignored."""
    for leaf in inside:
        if not isinstance(leaf.value, Tensor):
            kind = getattr(leaf.value, "named", type(leaf.value).__name__)
            raise ValueError(f"is not a plain state dict: {leaf.full} is a {kind}, not a tensor; {_SAVE}")
    parents = {leaf.parent for leaf in inside}
    ignored: dict[str, None] = {}
    for leaf in beside:
        if leaf.name.removeprefix(prefix) in _NUMBERS:
            continue
        in_same_dict = leaf.parent in parents and isinstance(leaf.value, Tensor)
        known = any(_BESIDE.match(part) or _NOT_WEIGHTS.search(part) for part in leaf.name.split("."))
        if in_same_dict and not known:
            raise ValueError(f"holds {leaf.full} beside {_shown(prefix)}, which is none of a CLIP's weights; {_SAVE}")
        ignored[_first_difference(leaf.path, inside[0].parent)] = None
    if not ignored:
        return ()
    listed = list(ignored)
    more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
    return (f"ignores what it holds beside the weights: {', '.join(listed[:6])}{more}",)


def _first_difference(path: tuple[str, ...], clip: tuple[str, ...]) -> str:
    """The beginning of a path that leads away from the CLIP's dict."""
    for end in range(1, len(path) + 1):
        if path[:end] != clip[:end]:
            return ".".join(path[:end])
    return ".".join(path)


def _as_state(leaves: list[_Leaf], prefix: str) -> dict[str, Tensor]:
    """Tensors under the model's own names. Raises ValueError if two of them differ under one name."""
    state: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    is_text_apart = any(leaf.name.startswith(f"{prefix}text.") for leaf in leaves)
    for leaf in leaves:
        name = leaf.name.removeprefix(prefix)
        name = name.removeprefix("text.") if is_text_apart else name
        if name in state and not _same(state[name], leaf.value):
            raise ValueError(f"holds both {sources[name]} and {leaf.full}, which differ and would be {name}; {_SAVE}")
        state[name], sources[name] = leaf.value, leaf.full
    return state


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _holds_no_tensors(content: Any, leaves: list[_Leaf]) -> str:
    if isinstance(content, Tensor):
        return "holds a single tensor, no state dict; give a mapping of names to tensors"
    pickled = next((leaf for leaf in leaves if hasattr(leaf.value, "named")), None)
    if pickled is not None:
        where = f"{pickled.full} is a pickled" if pickled.path else "it is a pickle of a whole"
        what = f"{where} {pickled.value.named}"
        return f"is not a plain state dict: {what}, which is not loaded; in the program that wrote it, {_SAVE}"
    if any(_NOT_WEIGHTS.search(part) for leaf in leaves for part in leaf.path):
        return f"holds {OPTIMIZER.name}; {OPTIMIZER.remedy}"
    return "holds no state dict; give a mapping of names to tensors"
