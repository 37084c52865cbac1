"""Random tars of several programs, grouped by us and by webdataset: the same samples, or a difference that is a written rule.

The rules (docs/decisions/0021-foreign-tars.md): a name that begins with a dot has no key, in any folder; of a key that a tar
holds more than once, one sample is used; a tar that is not whole is refused.
"""

import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import IndexConfig
from pipeline.dataset.shard import IMAGE_EXTENSIONS
from pipeline.dataset.tar_members import Skipped, may_be_of_a_sample
from pipeline.errors import InputError
from pipeline.versions.foreign_tars import read_rows
from pipeline.versions.tar_rows import table_of
from pipeline.versions.whole_tar import HashedTar
from tests.support.tars import packed

KEYS = [
    "0",
    "1",
    "2",
    "a/0",
    "./0",
    "../0",
    "/x/0",
    "a.b/c",
    "ключ",
    "鍵 0",
    "k" * 120,
    "dir/" * 30 + "k",
    "A",
    "a",
    "0-1",
    "a b",
    "_",
    "__x",
]
EXTENSIONS = ["jpg", "JPG", "jpeg", "png", "webp", "txt", "json", "cls", "seg.png", "x.txt", "npy", ""]
LEFTOVERS = ["._0.jpg", ".DS_Store", "a/._0.jpg", "__MACOSX/0.jpg", "README", "__meta__/0.jpg", "__x__", "PaxHeaders.7/0.jpg"]
CAPTIONS = [b"a dog", b"", b" \n", "狗".encode(), b"caf\xe9", b"two\r\nlines"]
VALUES = [
    {"caption": "from json"},
    {"caption": ""},
    {},
    [1],
    {"caption": ["", "second"]},
    {"caption": ["first", "second"]},
    {"caption": None, "hash": 2**64 - 1},
]
PROGRAMS = ["tarfile", "tarfile", "webdataset"]


def image_of(random_numbers):
    """A small image, or one that no program decodes."""
    if random_numbers.random() < 0.1:
        return random_numbers.randbytes(random_numbers.choice([0, 3, 700]))
    file = io.BytesIO()
    Image.new("RGB", (random_numbers.randint(1, 9), 2)).save(file, "PNG")
    return file.getvalue() + random_numbers.randbytes(random_numbers.choice([4, 400, 600]))


def content_of(extension, random_numbers):
    kind = extension.lower()
    if kind in IMAGE_EXTENSIONS or kind == "seg.png":
        return image_of(random_numbers)
    if kind == "json":
        return json.dumps(random_numbers.choice(VALUES)).encode() if random_numbers.random() < 0.9 else b"{not json"
    return random_numbers.choice(CAPTIONS) if kind == "txt" else random_numbers.randbytes(random_numbers.choice([0, 9, 2000]))


def members_of(random_numbers):
    """Members in a random layout: mostly whole samples, with repeated, scattered and foreign ones among them."""
    members = []
    for key in random_numbers.choices(KEYS, k=random_numbers.randint(0, 9)):
        chosen = random_numbers.sample(EXTENSIONS, random_numbers.randint(0, 3)) + ["jpg", "txt"] * (
            random_numbers.random() < 0.7
        )
        random_numbers.shuffle(chosen)
        members += [(f"{key}.{extension}", content_of(extension, random_numbers)) for extension in chosen]
    for _ in range(random_numbers.choice([0, 0, 1, 4])):
        members.insert(random_numbers.randint(0, len(members)), (random_numbers.choice(LEFTOVERS), b"left over"))
    if members and random_numbers.random() < 0.2:
        members.append(members.pop(random_numbers.randrange(len(members))))
    return members


def specials_of(random_numbers):
    """Members that are no files."""
    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    info = tarfile.TarInfo(random_numbers.choice(["0.jpg", "d", "1.txt"]))
    info.type, info.linkname = random_numbers.choice(kinds), "elsewhere"
    return info, b""


def written_by_tarfile(members, random_numbers):
    members = list(members)
    for _ in range(random_numbers.choice([0, 0, 2])):
        members.insert(random_numbers.randint(0, len(members)), specials_of(random_numbers))
    kind = random_numbers.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    short = [member for member in members if kind != tarfile.USTAR_FORMAT or len(getattr(member[0], "name", member[0])) < 100]
    return packed(short, format=kind)


def written_by_webdataset(members, random_numbers):
    import webdataset

    file = io.BytesIO()
    with webdataset.TarWriter(file, encoder=False) as writer:
        for number, (name, content) in enumerate(members):
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}{slash}{stem}" or f"{number}"
            writer.write({"__key__": key, extension.lower() or "txt": content})
    return file.getvalue()


def written_by_img2dataset(members, random_numbers):
    import pyarrow as pa
    from img2dataset.writer import WebDatasetSampleWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = WebDatasetSampleWriter(0, folder, True, 5, pa.schema([("key", pa.string()), ("url", pa.string())]), "jpg")
        for number, (name, content) in enumerate(members):
            image = content if name.lower().endswith("jpg") else None
            writer.write(
                image, f"{number:09d}", random_numbers.choice(["a dog", None, ""]), {"key": f"{number:09d}", "url": name}
            )
        writer.close()
        return (Path(folder) / "00000.tar").read_bytes()


def written_by_a_program(program, members, random_numbers):
    """GNU tar or bsdtar: they pack files, so that no name comes twice."""
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name, content in members:
            path = Path(folder) / "files" / name.lstrip("/").replace("..", "up")
            if not path.exists() and not any(parent.is_file() for parent in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                names.append(path.relative_to(Path(folder) / "files").as_posix())
        (Path(folder) / "names").write_text("".join(f"{name}\0" for name in names))
        kinds = ["ustar", "pax"] + ["gnu", "v7", "oldgnu"] * (program == "tar")
        kind = random_numbers.choice(kinds if all(len(name) < 90 for name in names) else ["pax"])
        options = ["--sparse"] * (program == "tar" and kind in ("gnu", "oldgnu", "pax") and random_numbers.random() < 0.3)
        (Path(folder) / "files").mkdir(exist_ok=True)
        command = [program, "-cf", "../t.tar", f"--format={kind}", *options, "--null", "-T", "../names"]
        subprocess.run(command, cwd=Path(folder) / "files", check=True, capture_output=True)
        return (Path(folder) / "t.tar").read_bytes()


def write(program, members, random_numbers):
    own = {"tarfile": written_by_tarfile, "webdataset": written_by_webdataset, "img2dataset": written_by_img2dataset}
    if program in own:
        return own[program](members, random_numbers)
    return written_by_a_program(program, members, random_numbers)


def samples_of_webdataset(content):
    """(key, image, caption) of the samples that webdataset yields, by our rules for images and captions."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    files = tar_file_expander([{"url": "t.tar", "stream": io.BytesIO(content)}], select_files=may_be_of_a_sample)
    found = {}
    for sample in group_by_keys(files, handler=lambda error: isinstance(error, ValueError)):
        image = next((sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample), None)
        if image is None or sample["__key__"] in found or not is_decoded(image):
            continue
        try:
            caption = sample["txt"].decode() if "txt" in sample else caption_in(sample)
        except UnicodeDecodeError:
            continue
        if caption.strip():
            found[sample["__key__"]] = (image, caption)
    return found


def caption_in(sample):
    try:
        value = json.loads(sample["json"])["caption"]
    except (KeyError, ValueError, TypeError):
        return ""
    return next(filter(str.strip, value), "") if isinstance(value, list) else value or ""


def is_decoded(image):
    try:
        return bool(Image.open(io.BytesIO(image)).size)
    except Exception:  # as in pipeline/versions/tar_rows.py
        return False


class InMemory:
    """The part of a storage that an index reads a tar through."""

    def __init__(self, content):
        self.content = content

    def read_range(self, path, start, length):
        return self.content[start : start + length]


def samples_of_ours(content):
    """(image, caption) by key, the image by the range in the sidecar."""
    found = {}
    for row in table_of(read_rows(HashedTar(InMemory(content), "t.tar"), "t.tar", IndexConfig(), Skipped())).to_pylist():
        assert (row["status"] == "success") == (row["jpg_offset"] is not None)
        if row["status"] == "success":
            assert row["key"] not in found
            caption = row["caption"] if isinstance(row["caption"], str) else row["caption"][0]
            found[row["key"]] = (content[row["jpg_offset"] :][: row["jpg_size"]], caption)
            if row["txt_offset"] is not None:
                assert content[row["txt_offset"] :][: row["txt_size"]].decode("utf-8", "replace") == caption
    return found


def end_of_members(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.getmembers()
        return tar.offset


def compare(seed, program):
    """Compares the samples of one tar; then cuts it anywhere, which is noticed unless no member can be missing."""
    random_numbers = random.Random(seed)
    content = write(program, members_of(random_numbers), random_numbers)
    assert samples_of_ours(content) == samples_of_webdataset(content), seed
    if random_numbers.random() < 0.3:
        cut, end = random_numbers.randrange(len(content)), end_of_members(content)
        if cut >= end + 512:
            assert samples_of_ours(content[:cut]) == samples_of_webdataset(content), seed
            return
        with pytest.raises(InputError, match=r"t\.tar: is "):
            samples_of_ours(content[:cut])


def test_our_samples_are_those_of_webdataset():
    for seed in range(300):
        compare(seed, PROGRAMS[seed % len(PROGRAMS)])


@pytest.mark.soak
@pytest.mark.parametrize("first_seed", [1_000_000, 2_000_000])
@pytest.mark.parametrize(
    ("program", "count"),
    [("tarfile", 12_000), ("webdataset", 5_000), ("img2dataset", 1_000), ("tar", 1_000), ("bsdtar", 1_000)],
)
def test_our_samples_are_those_of_webdataset_in_20000_tars(program, count, first_seed):
    if program in ("tar", "bsdtar") and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    for seed in range(first_seed, first_seed + count):
        compare(seed, program)
