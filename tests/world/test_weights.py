"""Weights as people wrap them: the CLIP in a file is found wherever it lies, and what was chosen or ignored is said."""

import argparse
import collections
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.clip import CLIP
from model.config import ARCHITECTURES
from model.fitting_architectures import fitting_architectures
from model.weight_files import read_weights
from model.weights import load_clip, weights_metadata
from tests.support.weights import (
    OTHER,
    STATE,
    TINY,
    as_open_clips_custom_text,
    as_safetensors,
    assert_our_own_words,
    hugging_face,
    named_moments,
    optimizer,
    prefixed,
    same,
    saved,
)

pytestmark = pytest.mark.usefixtures("tiny_architecture")


def checkpointed() -> dict[str, torch.Tensor]:
    """Keys of activation checkpointing inside FSDP, as they stand when the hooks that clean them did not run."""
    return {
        "_fsdp_wrapped_module."
        + key.replace("resblocks.0.", "resblocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): value
        for key, value in STATE.items()
    }


def nested(state) -> dict:
    """A dict of dicts, a level for each part of a name."""
    tree: dict = {}
    for key, value in state.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


WRAPPED = {
    "plain": STATE,
    "torch.compile's prefix": prefixed("_orig_mod."),
    "Lightning's prefix": {
        "state_dict": prefixed("model."),
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "loops": {"fit": {}},
    },
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": optimizer(), "epoch": 4, "loss": 0.5},
    "open_clip's own checkpoint": {"epoch": 1, "name": "run", "state_dict": prefixed("module."), "optimizer": optimizer()},
    "DDP around compile": prefixed("module._orig_mod."),
    "compile around DDP": prefixed("_orig_mod.module."),
    "compile of one encoder": {key.replace("visual.", "visual._orig_mod.", 1): value for key, value in STATE.items()},
    "model": {"model": STATE, "args": None},
    "module of DeepSpeed": {"module": prefixed("module."), "param_shapes": [], "ds_version": "0.14", "optimizer": None},
    "state": {"state": STATE, "step": 7},
    "net": {"net": prefixed("net.")},
    "a name that nobody knows": {"my_best_clip": STATE},
    "three deep": {"checkpoint": {"model": {"state_dict": prefixed("module.clip.")}}, "step": 1},
    "a list": [STATE, {"epoch": 3}],
    "a tuple": (STATE, 3, "clip"),
    "a list in a dict": {"models": [STATE]},
    "any prefix": prefixed("backbone.encoder.clip_model."),
    "a prefix of two known words": prefixed("model.clip."),
    "a dict for each encoder": {
        "visual": {key.removeprefix("visual."): value for key, value in STATE.items() if key.startswith("visual.")},
        **{key: value for key, value in STATE.items() if not key.startswith("visual.")},
    },
    "a dict for each module": nested(STATE),
    "open_clip's text module": as_open_clips_custom_text(),
    "open_clip's text module in DDP": {"state_dict": prefixed("module.", as_open_clips_custom_text())},
    "Hugging Face's keys in Lightning": {"state_dict": hugging_face("model.clip.")},
    "Hugging Face's keys in DDP": hugging_face("module."),
    "FSDP and activation checkpointing [litgpt 1613]": {"model": checkpointed()},
    "losses beside": STATE | {"loss.labels": torch.arange(4), "criterion.margin": torch.tensor(0.1)},
    "Lightning with losses and metrics": {
        "state_dict": prefixed("model.")
        | {"loss_fn.t": torch.ones(1), "val_accuracy.total": torch.tensor(3), "metrics.x": torch.ones(2)}
    },
    "torch's AveragedModel": {"n_averaged": torch.tensor(5)} | prefixed("module."),
    "a moving average alone": {"ema": {"decay": 0.999, "shadow": STATE}},
    "the causal mask beside": STATE | {"attn_mask": torch.full((8, 8), float("-inf")).triu(1)},
    "an optimizer with names of weights": {"model": STATE, "optimizer": named_moments()},
    "momenta with names of weights": {"weights": STATE, "momentum_buffer": OTHER, "grads": OTHER},
    "parameters, not tensors": {key: torch.nn.Parameter(value) for key, value in STATE.items()},
    "scalars of one element": STATE | {"logit_scale": STATE["logit_scale"].reshape(1)},
    "the same tensors under two names": prefixed("module.") | STATE,
    "weights that share memory": STATE | {"transformer.resblocks.1.ln_1.weight": STATE["transformer.resblocks.0.ln_1.weight"]},
    "a view with other strides": {key: value.T.contiguous().T if value.ndim == 2 else value for key, value in STATE.items()},
    "a NumPy number beside [negbench 9]": {"state_dict": STATE, "best": np.float64(0.5), "curve": np.ones(3)},
    "a Namespace beside [mlperf-automations 465]": {"state_dict": STATE, "args": argparse.Namespace(lr=1e-3, path=Path("/x"))},
    "a defaultdict around": collections.defaultdict(
        dict, {"state_dict": STATE, "history": collections.defaultdict(list, a=[1])}
    ),
}
EXPECTED = {
    "weights that share memory": WRAPPED["weights that share memory"],
}
"""Contents that are not STATE."""


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_clip_is_found_in_whatever_wraps_it(name, zipped, tmp_path):
    torch.save(WRAPPED[name], tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / "w.pt")
    assert same(weights.state, EXPECTED.get(name, STATE))
    assert not any(value.requires_grad for value in weights.state.values())
    loaded, _, _ = load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert same(loaded.state_dict(), EXPECTED.get(name, STATE))


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        ({"model": OTHER, "model_ema": STATE, "optimizer": optimizer()}, "`model_ema`"),
        ({"state_dict": prefixed("module.", OTHER), "state_dict_ema": STATE}, "`state_dict_ema`"),
        ({"model": OTHER, "ema": {"module": STATE, "updates": 3}}, "`ema`"),
        (
            prefixed("model.", OTHER) | prefixed("ema_model.") | {"step": torch.tensor(3), "initted": torch.tensor(True)},
            "`ema_model`",
        ),
        ({"state_dict": prefixed("net.", OTHER) | prefixed("net_ema.module.")}, "`state_dict.net_ema`"),
        ({"student": OTHER, "swa_model": {"n_averaged": torch.tensor(2), **prefixed("module.")}}, "`swa_model`"),
        ([OTHER, {"averaged": STATE}], "`1.averaged`"),
    ],
)
def test_of_a_model_and_its_moving_average_the_average_is_loaded_and_that_is_said(content, chosen, tmp_path, caplog):
    torch.save(content, tmp_path / "w.pt")
    loaded, _, _ = load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert same(loaded.state_dict())
    assert f"the moving average, {chosen}, is loaded" in caplog.text


def test_what_lies_beside_the_weights_is_said_to_be_ignored(tmp_path, caplog):
    content = {
        "state_dict": prefixed("model.") | {"loss.labels": torch.arange(4)},
        "epoch": 3,
        "optimizer_states": [optimizer()],
    }
    torch.save(content, tmp_path / "w.ckpt")
    load_clip("tiny", tmp_path / "w.ckpt", activation="gelu")
    assert "ignores what it holds beside the weights: " in caplog.text
    assert all(name in caplog.text for name in ("state_dict.loss.labels", "epoch", "optimizer_states"))


@pytest.mark.parametrize("name", ["w", "w.bin", "w.pt", "w.safetensors", "w.ckpt", "weights.txt", "w.SAFETENSORS"])
@pytest.mark.parametrize(
    "data", [as_safetensors(), saved(), saved(_use_new_zipfile_serialization=False)], ids=["safe", "zip", "old"]
)
def test_the_name_of_a_file_does_not_matter(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert same(read_weights(tmp_path / name).state)


def test_an_archive_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_weights(tmp_path / "w.pt").state)


class Harmful:
    """An object whose pickle calls a function."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nothing_that_a_file_names_is_called(zipped, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "w.pt"

    def write(*call):
        torch.save({"state_dict": STATE, "extra": Harmful(*call)}, path, _use_new_zipfile_serialization=zipped)

    write(eval, f"open({str(trace)!r}, 'w')")
    assert same(read_weights(path).state)
    for call, message in (
        ((os.system, f"touch {trace}"), "calls posix.system when it is loaded"),
        ((Path.touch, trace), "pickled"),
    ):
        write(*call)
        with pytest.raises(ValueError, match=f"is not a plain state dict: .*{message}") as caught:
            read_weights(path)
        assert_our_own_words(str(caught.value), path)
    assert not trace.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_have_their_values(dtype, tmp_path):
    torch.save({key: value.to(dtype) for key, value in STATE.items()}, tmp_path / "w.pt")
    loaded, _, _ = load_clip("tiny", tmp_path / "w.pt", activation="gelu")
    assert same(loaded.state_dict(), {key: value.to(dtype).float() for key, value in STATE.items()})


def test_weights_that_fit_another_row_are_refused_with_its_name(tmp_path, monkeypatch):

    for name, fields in {"wide": {"embed_dim": 32}, "tiny@32px": {"image_size_px": 32}}.items():
        monkeypatch.setitem(ARCHITECTURES, name, replace(TINY, name=name, **fields))
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"does not fit wide: .*; its model\.name is tiny or tiny@32px$"):
        load_clip("wide", tmp_path / "w.pt")  # without an activation too: what fits no model is not asked for one
    with pytest.raises(ValueError, match=r"does not fit debug-rn: lacks visual.*; its model\.name is tiny or tiny@32px$"):
        load_clip("debug-rn", tmp_path / "w.pt", activation="gelu")
    del ARCHITECTURES["tiny@32px"], ARCHITECTURES["tiny"]
    with pytest.raises(ValueError, match=r"no row of model/config\.py has these shapes"):
        load_clip("wide", tmp_path / "w.pt")


def test_every_architecture_is_known_by_its_shapes():

    for name, row in ARCHITECTURES.items():
        if row.vision_width * (row.vision_layers if isinstance(row.vision_layers, int) else 1) <= 12 * 768:
            with torch.device("meta"):
                assert name in fitting_architectures(CLIP(row).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("ln_final.bias"), r"lacks ln_final\.bias; the rest is a whole one's: save the state_dict"),
        (
            lambda state: state.update({"visual.ln_post.gamma": torch.ones(2)}),
            r"has visual\.ln_post\.gamma, which the model does not",
        ),
        (
            lambda state: state.update({"visual.ln_post.bias": torch.ones(0)}),
            r"ln_post\.bias has shape \(0,\), not \(64,\)",
        ),  # ZeRO-3
        (lambda state: state.update({"visual.positional_embedding": torch.ones(7, 64)}), r"has shape \(7, 64\), not \(5, 64\)"),
    ],
    ids=["missing", "extra", "ZeRO-3 [OpenRLHF 839]", "not square"],
)
def test_missing_and_extra_tensors_are_named(change, message, tmp_path):
    state = dict(STATE)
    change(state)
    torch.save(state, tmp_path / "w.pt")
    for size in (None, 32):
        with pytest.raises(ValueError, match=message.replace(r"\(5", r"\(\d+")):
            load_clip("tiny", tmp_path / "w.pt", activation="gelu", image_size_px=size)


def test_a_file_that_states_its_activation_is_not_asked_for_it(tmp_path):
    (tmp_path / "w.bin").write_bytes(as_safetensors(STATE, weights_metadata(TINY)))
    assert load_clip("tiny", tmp_path / "w.bin")[0].architecture.activation == "gelu"
