"""The format of a file is that of its content; tests/world/test_weights_mistaken.py has the files that hold no weights."""

import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save

from model.file_formats import format_of

TENSORS = {"a": torch.ones(3)}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_each_format_is_told_by_its_content(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(save(TENSORS))
    assert format_of(path) == "safetensors"
    for zipped in (True, False):
        torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
        assert format_of(path) == "torch"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert format_of(path) == "torchscript"
    path.write_text("\ufeff" + json.dumps({"weight_map": {"a": "x"}}), encoding="utf-8")
    assert format_of(path) == "index"


def test_safetensors_without_a_tensor_are_safetensors(tmp_path):
    (tmp_path / "w").write_bytes(save({}))
    assert format_of(tmp_path / "w") == "safetensors"


@pytest.mark.parametrize("header", [b'{"a": 1}', b'{"a": {"data_offsets": "x"}}', b"{broken}", b'{"a": {"dtype": "F32"}}'])
def test_a_damaged_header_of_safetensors_is_named(header, tmp_path):
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"is not a complete safetensors file \(its header is damaged\)"):
        format_of(tmp_path / "w")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_a_text_is_named_in_any_encoding(encoding, tmp_path):
    (tmp_path / "w").write_bytes("Zugriff für Gäste verweigert\nx".encode(encoding))
    with pytest.raises(ValueError, match="is a text that begins with 'Zugriff für Gäste verweigert', no weights"):
        format_of(tmp_path / "w")


def test_a_long_text_that_is_cut_inside_a_character_is_a_text(tmp_path):
    for shift in range(3):
        (tmp_path / "w").write_bytes(b"x" * shift + "é".encode() * 4000)
        with pytest.raises(ValueError, match="is a text that begins with"):
            format_of(tmp_path / "w")


def test_an_exported_program_is_named(tmp_path):
    """Members as torch.export.save of PyTorch 2.15 writes them."""
    with zipfile.ZipFile(tmp_path / "w.pt2", "w") as archive:
        for name in ("data/weights/weight_0", "models/model.json", "archive_format", "archive_version", "byteorder"):
            archive.writestr(f"w/{name}", b"pt2")
    with pytest.raises(ValueError, match=r"is a program exported by torch\.export"):
        format_of(tmp_path / "w.pt2")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_bytes_around_a_zip_archive_are_refused(tmp_path):
    path = tmp_path / "w"
    torch.save(TENSORS, path)
    state = path.read_bytes()
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    for whole in (state, path.read_bytes()):
        for behind in (b"x", b"garbage", bytes(60_000)):
            path.write_bytes(whole + behind)
            with pytest.raises(
                ValueError, match=rf"has {len(behind):,} bytes behind its zip archive, as where files were joined"
            ):
                format_of(path)
        path.write_bytes(whole + bytes(70_000))  # further than a zip archive's end is looked for
        with pytest.raises(ValueError, match="missing or buried, so it was cut or joined"):
            format_of(path)
    path.write_bytes(state + state)
    with pytest.raises(ValueError, match=rf"has {len(state):,} bytes before its zip archive"):
        format_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x")
        archive.comment = b"a comment"
    assert format_of(path) == "torch"


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_archive_that_holds_a_file_twice_is_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "w", "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
        archive.writestr(name, bytes(12))
    with pytest.raises(ValueError, match=f"holds {name} twice, so that readers differ in what they load; download or export"):
        format_of(tmp_path / "w")
