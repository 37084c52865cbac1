"""Tells the format of a weights file by its content, whatever its name, and names a file that holds no weights.

In: a path. Out: one of the formats that are read, or a ValueError that says what the file is and what to do.
"""

from __future__ import annotations

import codecs
import json
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal

Format = Literal["safetensors", "torch", "torchscript", "index"]
INDEX_SUFFIX = ".index.json"
"""Hugging Face's list of shards, beside them."""
_HEAD_BYTES = 4096
_MAX_HEADER_BYTES = 100_000_000
"""Limit of safetensors itself."""
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that torch.save wrote first, before its files were zip archives."""
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
"""Mark and size of the record at a zip archive's end; a comment may follow it."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_AGAIN = "download or export it again"
_CONVERT = "convert it to PyTorch with the tool that wrote it, and save its state_dict as safetensors"
_UNPACK = "unpack it, and give the path of the file or folder in it"
# First bytes, name, remedy
_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", _UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write", _CONVERT),
    (b"GGUF", "a GGUF file, whose weights may be quantised", "use the PyTorch weights that it was made from"),
    (b"lmgg", "a GGML file", "use the PyTorch weights that it was made from"),
    (b"ggml", "a GGML file", "use the PyTorch weights that it was made from"),
    (b"\x93NUMPY", "a NumPy array", "give a state dict, best as safetensors"),
    (b"PAR1", "a parquet table", "give a file of weights"),
    (b"ARROW1", "an Arrow table", "give a file of weights"),
    (b"%PDF", "a PDF", "give a file of weights"),
    (b"\x89PNG", "a PNG image", "give a file of weights"),
    (b"\xff\xd8\xff", "a JPEG image", "give a file of weights"),
    (b"SQLite format 3", "an SQLite database", "give a file of weights"),
    (b"\x7fELF", "a compiled program or library", "give a file of weights"),
)  # fmt: skip


def format_of(path: Path) -> Format:
    """The format of a file of weights, by its content.

    Raises:
        ValueError: it is damaged, or no weights; says what it is instead.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, size - 8))
        tail = file.read()
    named = path.suffix.lower() == ".safetensors"
    if not size:
        raise ValueError(f"is not a complete safetensors file (it is empty); {_AGAIN}" if named else f"is empty; {_AGAIN}")
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _format_of_zip(path)
    if _TORCH_LEGACY in head[:16]:
        return "torch"
    if _is_safetensors(head):
        _check_safetensors(path, head, size)
        return "safetensors"
    if _is_text(head):
        return _format_of_text(path, head, named)
    for magic, name, remedy in _MAGICS:
        if head.startswith(magic):
            raise ValueError(f"is {name}; {remedy}")
    raise ValueError(_binary(head, tail, named))


def _is_safetensors(head: bytes) -> bool:
    """True for a length of eight bytes and the beginning of a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _MAX_HEADER_BYTES


def _check_safetensors(path: Path, head: bytes, size: int) -> None:
    """Raises ValueError if the file does not have the size that its header states."""
    length = struct.unpack("<Q", head[:8])[0]
    expected = 8 + length
    if size >= expected:
        with path.open("rb") as file:
            file.seek(8)
            header = file.read(length)
        try:
            content = json.loads(header)
            expected += max((entry["data_offsets"][1] for key, entry in content.items() if key != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise ValueError(f"is not a complete safetensors file (its header is damaged); {_AGAIN}") from None
    if size < expected:
        raise ValueError(f"is not a complete safetensors file (it has {size:,} of at least {expected:,} bytes); {_AGAIN}")
    if size > expected:
        raise ValueError(f"is not a safetensors file as written: it has {size:,} bytes, not {expected:,}; {_AGAIN}")


def _format_of_zip(path: Path) -> Format:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"is not a plain state dict: the end of its zip archive is missing or buried, so it was cut or joined; {_AGAIN}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            begin, end = _extent(path, archive)
            _check_sums(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
        raise ValueError(f"is not a plain state dict: its zip archive is damaged; {_AGAIN}") from None
    if begin or end < path.stat().st_size:
        where = f"{begin:,} bytes before" if begin else f"{path.stat().st_size - end:,} bytes behind"
        raise ValueError(f"has {where} its zip archive, as where files were joined or something was appended; {_AGAIN}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"holds {twice[0]} twice, so that readers differ in what they load; {_AGAIN}")
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inner) and ("constants.pkl" in inner or "data.pkl" in inner):
        return "torchscript"
    if "archive_format" in inner or any(name.startswith("models/") and name.endswith(".json") for name in inner):
        raise ValueError(
            "is a program exported by torch.export, not a state dict; in the program that made it, save the model's "
            "state_dict, best as safetensors"
        )
    if "data.pkl" in inner:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(f"is a NumPy archive (.npz) of {len(names)} arrays, as big_vision and flax write; {_CONVERT}")
    if "model.weights.h5" in names:
        raise ValueError(f"is a Keras model; {_CONVERT}")
    if not names:
        raise ValueError(f"is an empty zip archive; {_AGAIN}")
    raise ValueError(f"is a zip archive of {len(names)} files, such as {names[0]}, and none of PyTorch's; {_UNPACK}")


def _extent(path: Path, archive: zipfile.ZipFile) -> tuple[int, int]:
    """Places of an archive's first byte and of its end in the file; readers tolerate other bytes around it."""
    begin = min((entry.header_offset for entry in archive.infolist()), default=0)
    with path.open("rb") as file:
        file.seek(archive.start_dir)
        found = file.read().rfind(_ZIP_END)
    return begin, archive.start_dir + found + _ZIP_END_BYTES + len(archive.comment)


def _check_sums(archive: zipfile.ZipFile) -> None:
    """Raises BadZipFile if a stored checksum differs; PyTorch's reader does not compare them.

    Archives written without checksums have zeros (torch.serialization.set_crc32_options).
    """
    for entry in archive.infolist():
        if entry.CRC == 0:
            continue
        with archive.open(entry) as file:  # zipfile compares the checksum at the end
            while file.read(1 << 20):
                pass


def _is_text(head: bytes) -> bool:
    """True for printable UTF-8, or UTF-16 with its mark; the last character may be cut."""
    encoding = "utf-16" if head.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t\f" for char in text)


def _format_of_text(path: Path, head: bytes, named_safetensors: bool) -> Format:
    text = head.decode("utf-16" if head.startswith(_UTF_16) else "utf-8-sig", errors="replace").strip()
    lowered = text.lower()
    if lowered.startswith("version https://git-lfs.github.com/spec/"):
        raise ValueError(
            f"is a Git LFS pointer, not the file that it stands for; in its repository, run: git lfs pull --include={path.name}"
        )
    if lowered.startswith(("<!doctype html", "<html", "<head", "<body", "<script", "<!--")):
        raise ValueError(
            "is an HTML page, as a server sends for an error or a login; open its address in a browser to see why, then "
            "download the file itself"
        )
    if lowered.startswith("<"):
        raise ValueError("is an XML document, as a server sends for an error; read it, then download the file itself")
    if lowered.startswith(("{", "[")):
        return _format_of_json(path)
    first = text.splitlines()[0][:60] if text else ""
    begins = f"a text that begins with {first!r}" if first else "a text of blanks"
    if named_safetensors:
        raise ValueError(f"is not a complete safetensors file (it is {begins}); {_AGAIN}")
    raise ValueError(f"is {begins}, no weights; {_AGAIN}")


def _format_of_json(path: Path) -> Format:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and "weight_map" in content:
        return "index"
    if path.name in ("checkpoint.json", "export.json", "run.json"):
        raise ValueError("is a record, no weights; give the folder that it lies in")
    if isinstance(content, dict) and ({"model_type", "model_cfg", "vision_cfg", "vision_config"} & set(content)):
        raise ValueError("is a configuration, no weights; give the folder that it lies in")
    raise ValueError(f"is JSON, no weights; read it to see what it says, then give the file of weights, or {_AGAIN}")


def _binary(head: bytes, tail: bytes, named_safetensors: bool) -> str:
    """Message for a binary file without a first line of its own."""
    if head[257:262] == b"ustar":
        return f"is a tar archive; {_UNPACK}"
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        return f"is the index of a TensorFlow checkpoint; {_CONVERT}"
    if head[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model; {_CONVERT}"
    if _is_onnx(head):
        return f"is an ONNX model; {_CONVERT}"
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "is not a plain state dict: it is a pickle that torch.save did not write, and pickled objects are not loaded; in "
            "the program that wrote it, save the state_dict as safetensors, or with torch.save"
        )
    if _is_msgpack(head):
        return f"is a msgpack file, as flax writes; {_CONVERT}"
    kind = "is not a complete safetensors file" if named_safetensors else "is in none of the formats that are read"
    return (
        f"{kind}: it begins with the bytes {head[:8].hex(' ')}; give a state dict as safetensors or of torch.save, or {_AGAIN}"
    )


def _is_onnx(head: bytes) -> bool:
    """True for a protobuf that begins with ir_version and a producer's name, or with ir_version and a graph."""
    return head[:1] == b"\x08" and len(head) > 4 and 1 <= head[1] <= 32 and head[2:3] in (b"\x12", b"\x3a", b"\x42")


def _is_msgpack(head: bytes) -> bool:
    """True for a map whose first key is a string."""
    first = head[0]
    start = 1 if 0x81 <= first <= 0x8F else 3 if first == 0xDE else 5 if first == 0xDF else 0
    return bool(start) and len(head) > start and (0xA1 <= head[start] <= 0xBF or head[start] == 0xD9)
