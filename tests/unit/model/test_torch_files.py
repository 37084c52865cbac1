"""Objects beside tensors are not built, and nothing is loaded with weights_only switched off."""

import argparse
import collections

import pytest
import torch

from model.torch_files import Placeholder, read_torch, read_torchscript


def test_objects_become_placeholders_that_hold_nothing(tmp_path):
    torch.save({"a": torch.ones(2), "args": argparse.Namespace(secret=1)}, tmp_path / "w.pt")
    content = read_torch(tmp_path / "w.pt")
    assert torch.equal(content["a"], torch.ones(2))
    assert isinstance(content["args"], Placeholder)
    assert content["args"].named == "argparse.Namespace"
    assert not vars(content["args"])


class Config(dict):
    """A dict of a class of its own, as configuration libraries have."""


class Rows(list):
    """Likewise a list."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_dicts_and_lists_of_other_classes_are_filled(zipped, tmp_path):
    content = {
        "config": Config(a=torch.ones(1), b=Config(c=2)),
        "rows": Rows([torch.zeros(1), 3]),
        "default": collections.defaultdict(list, x=[1]),
    }
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert read_torch(tmp_path / "w.pt") == content


def test_the_placeholders_of_one_file_are_gone_for_the_next(tmp_path):
    torch.save({"args": argparse.Namespace()}, tmp_path / "w.pt")
    before = torch.serialization.get_safe_globals()
    read_torch(tmp_path / "w.pt")
    assert torch.serialization.get_safe_globals() == before


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_program_with_quickgelu_states_its_activation(tmp_path):
    class QuickGELU(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(1.702 * x)

    for module, activation in ((QuickGELU(), "quick_gelu"), (torch.nn.GELU(), None)):
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2).half(), module)).save(str(tmp_path / "w.pt"))
        state, found = read_torchscript(tmp_path / "w.pt")
        assert found == activation
        assert state["0.weight"].dtype == torch.float32


def test_bytes_behind_a_file_of_the_older_format_are_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "w.pt").read_bytes()
    assert read_torch(tmp_path / "w.pt").keys() == {"a"}
    for behind in (b"garbage", bytes(70_000), whole):
        (tmp_path / "w.pt").write_bytes(whole + behind)
        with pytest.raises(ValueError, match=rf"has {len(behind):,} bytes behind its end, as where files were joined"):
            read_torch(tmp_path / "w.pt")
