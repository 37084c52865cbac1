"""Classes and labels of random folders, tars and names files are torchvision's, webdataset's, and those that were written."""

import codecs
import csv
import io
import json
import random
import shutil
import tempfile
import unicodedata
from pathlib import Path

import pytest
import webdataset as wds
from torchvision.datasets import ImageFolder

from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from pipeline.storage.small_text import decode_text, split_lines
from tests.support.label_inputs import tar_bytes
from tests.support.runs import ALONE
from training.evaluation.class_folders import find_class_folders, is_data, list_paths
from training.evaluation.class_list import parse_class_list
from training.evaluation.clip_benchmark import EXTENSIONS, TarImageSet
from training.evaluation.label_names import name_labels, normalize

FEW, MANY = 300, 20_000
seeds_of_soak = pytest.mark.parametrize("seed", [11, 12])
CLASSES = (
    "cat",
    "Dog",
    "dog",
    "10",
    "2",
    "1",
    "007",
    "golden_retriever",
    "Golden retriever",
    "café",
    "cafe\u0301",
    "犬",
    "a b",
    "train",
    "n01440764",
)
FILES = (
    "1.jpg",
    "2.JPG",
    "10.png",
    "3.JPEG",
    "x.webp",
    "é.bmp",
    "a.b.png",
    "noname",
    "notes.txt",
    "4.tiff",
    "y.ppm",
    "x.jpg.txt",
)
HIDDEN = (".ipynb_checkpoints", "__MACOSX", ".DS_Store", "@eaDir")
WORDS = (
    "tench",
    "goldfish",
    "great white shark",
    "crane (bird)",
    "café",
    "犬",
    "St. Bernard",
    "jack-o'-lantern",
    "hen, rooster",
    "7up",
    "x=y",
    "a: b",
)


@pytest.fixture
def folder(tmp_path):
    """A folder in memory, where the system has one: thousands of small folders are made and removed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


# ------------------------------------------------------------------------------------------- class folders and torchvision


def write_layout(rng: random.Random, root: Path) -> None:
    for name in rng.sample(CLASSES, rng.randint(1, 6)):
        (root / name).mkdir(parents=True)
        for file in rng.sample(FILES, rng.randint(0, 5) if rng.random() < 0.15 else rng.randint(2, 5)):
            folder = root / name / rng.choice(("", "", "", "inner", "inner/deep"))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        if rng.random() < 0.3:
            hidden = rng.choice(HIDDEN)
            (root / name / hidden).mkdir(exist_ok=True)
            (root / name / hidden / "1.png").touch()
    if rng.random() < 0.2:
        (root / rng.choice(HIDDEN)).mkdir()
    if rng.random() < 0.2:
        (root / "stray.png").touch()
    if rng.random() < 0.2:
        some = sorted(path for path in root.iterdir() if path.is_dir())
        (root / "linked").symlink_to(rng.choice(some))


def check_folders(seed: int, count: int, folder: Path) -> int:
    refused = 0
    for number in range(count):
        rng, root = random.Random(seed * 1_000_003 + number), folder / str(number)
        root.mkdir()
        write_layout(rng, root)
        peer = ImageFolder(root, allow_empty=True)
        classes = [name for name in peer.classes if is_data(name)]
        samples = [(Path(path).relative_to(root).as_posix(), peer.classes[label]) for path, label in peer.samples]
        expected = sorted((path, name) for path, name in samples if is_data(path))
        storage = open_storage(str(root))
        try:
            ours = find_class_folders("key=x", storage, list_paths(storage, "key=x"))
        except ConfigError as refusal:
            refused, rule = refused + 1, str(refusal)
            assert "splits of a data set" in rule or "holds one folder" in rule, (seed, number)
            assert len({name for _, name in expected}) == 1, (seed, number)
        else:
            found = [] if ours is None else [(path, path.partition("/")[0]) for path in ours.images]
            assert sorted(found) == expected, (seed, number)
            if ours is not None:
                with_images = [name for name in classes if name not in ours.empty]
                assert list(dict.fromkeys(name for _, name in found)) == with_images, (seed, number)
                assert sorted({*with_images, *ours.empty}) == classes, (seed, number)
        shutil.rmtree(root)
    return refused


def test_random_class_folders_have_the_classes_and_labels_of_torchvision(folder):
    assert check_folders(1, FEW, folder) < FEW / 10


@pytest.mark.soak
@pytest.mark.timeout(3600)
@seeds_of_soak
def test_many_class_folders_have_the_classes_and_labels_of_torchvision(folder, seed):
    check_folders(seed, MANY, folder)


# ------------------------------------------------------------------------------------------------------ tars and webdataset


def random_members(rng: random.Random) -> list[tuple[str, bytes]]:
    members = []
    for number in range(rng.randint(1, 5)):
        key = rng.choice((f"{number:03}", f"a/{number}", f"./{number}", f"ü {number}", f"{number}"))
        label = rng.choice((b"0", b"1", b" 1\n", b"01", b"0\r\n"))
        own = [(f"{key}.{rng.choice((*EXTENSIONS, 'PNG', 'seg.png'))}", b"image %d" % number), (f"{key}.cls", label)]
        if rng.random() < 0.2:
            own.append((f"{key}.{rng.choice(EXTENSIONS)}", b"second %d" % number))
        if rng.random() < 0.2:
            own.append((f"{key}.json", b"{}"))
        if rng.random() < 0.1:
            own.append(rng.choice(own))
        rng.shuffle(own)
        members += own
        if rng.random() < 0.2:
            folder, _, base = key.rpartition("/")
            members.append(
                (rng.choice((f"{folder}/._{base}.png".lstrip("/"), "README", ".hidden", f"__MACOSX/._{base}.cls")), b"junk")
            )
    if rng.random() < 0.1:
        rng.shuffle(members)
    return members


def ours_of(path: Path) -> list[tuple[str, int, bytes]] | None:
    storage = open_storage(str(path.parent))
    try:
        images = TarImageSet("key=x", storage, "", [path.name], False, ALONE)
    except ConfigError:
        return None
    return [
        (one.key, int(label), one.image) for one, label in zip(images.read(0, images.num_samples), images.labels(), strict=True)
    ]


def peers_of(path: Path) -> list[tuple[str, int, bytes]] | None:
    """What clip-benchmark's pipeline yields: the first image extension of each sample, and the number in .cls."""
    found = []
    try:
        for sample in wds.tariterators.tarfile_samples([{"url": str(path)}]):
            extension = next(extension for extension in EXTENSIONS if extension in sample)
            found.append((sample["__key__"].removeprefix("./"), int(sample["cls"]), sample[extension]))
    except (ValueError, KeyError, StopIteration):
        return None
    return found


def check_tars(seed: int, count: int, folder: Path) -> int:
    refused, path = 0, folder / "0.tar"
    for number in range(count):
        path = folder / f"{number}.tar"
        members = random_members(random.Random(seed * 1_000_003 + number))
        path.write_bytes(tar_bytes(members))
        ours = ours_of(path)
        # webdataset makes a sample of a Mac's metadata in a folder, and we do not
        path.write_bytes(tar_bytes([one for one in members if is_data(one[0])]))
        refused += ours is None
        assert ours == peers_of(path), (seed, number)
        path.unlink()
    return refused


def test_random_tars_have_the_samples_and_labels_of_webdataset(folder):
    assert 0 < check_tars(1, FEW, folder) < FEW * 0.7


@pytest.mark.soak
@pytest.mark.timeout(3600)
@seeds_of_soak
def test_many_tars_have_the_samples_and_labels_of_webdataset(folder, seed):
    check_tars(seed, MANY, folder)


# ---------------------------------------------------------------------------------------- names files and what was written


def spelt(rng: random.Random, name: str) -> str:
    """Another spelling of a folder's name that a person would take for the same."""
    choice = rng.randrange(5)
    if choice == 0:
        return name.upper() if name.upper().lower() == name.lower() else name
    if choice == 1:
        return name.replace("_", " ").replace("-", "_")
    if choice == 2:
        return unicodedata.normalize(rng.choice(("NFC", "NFD")), name)
    return name


def write_names(rng: random.Random, truth: dict[str, str]) -> tuple[str, bool]:
    """Writes label -> name in a random form and order. Returns the text, and whether it leaves nothing to guess."""
    pairs = list(truth.items())
    rng.shuffle(pairs)
    form = rng.choice(("tab", "comma", "semicolon", "json", "python", "reversed json", "class index", "space", "lines", "list"))
    if form == "tab":
        return "".join(f"{label}\t{name}\n" for label, name in pairs), True
    if form in ("comma", "semicolon"):
        file = io.StringIO()
        writer = csv.writer(
            file, delimiter={"comma": ",", "semicolon": ";"}[form], quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        )
        writer.writerows([["label", "name"], *pairs] if rng.random() < 0.5 else pairs)
        return file.getvalue(), True
    if form == "json":
        return json.dumps(dict(pairs), ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2))), True
    if form == "python":
        return f"{rng.choice(('', 'classes = '))}{dict(pairs)!r}", True
    if form == "reversed json":
        return json.dumps({name: label for label, name in pairs}), True
    if form == "class index":
        return json.dumps({str(place): list(pair) for place, pair in enumerate(sorted(pairs))}), True
    if form == "space":
        return "".join(f"{label} {name}\n" for label, name in pairs), False
    names = [truth[label] for label in sorted(truth)]
    return ("\n".join(names), False) if form == "lines" else (json.dumps(names), False)


def check_names(seed: int, count: int) -> tuple[int, int]:
    """Labels are folders. Returns how many files were refused, and how many were read with a guess."""
    refused = guessed = 0
    labels_of = (
        lambda rng: [f"n{rng.randrange(10**7, 10**8)}" for _ in range(rng.randint(2, 9))],
        lambda rng: [f"{place:03}.Some_Bird_{place}" for place in range(rng.randint(2, 9))],
        lambda rng: rng.sample(["cat", "dog", "golden_retriever", "emu-bird", "Fox", "café"], rng.randint(2, 6)),
        lambda rng: [str(place) for place in range(rng.randint(2, 12))],
    )
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        labels = sorted(set(rng.choice(labels_of)(rng)))
        truth = (
            dict(zip(labels, rng.sample(WORDS, len(labels)), strict=True))
            if rng.random() < 0.7
            else {one: spelt(rng, one) for one in labels}
        )
        own = all(normalize(name) == normalize(label) for label, name in truth.items())
        if own and rng.random() < 0.7:
            lines = list(truth.values())
            rng.shuffle(lines)
            text, stated = rng.choice(("\n".join(lines), json.dumps(lines))), True
        else:
            text, stated = write_names(rng, truth)
        encoding, mark = rng.choice(
            (("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE))
        )
        data = mark + text.replace("\r\n", "\n").replace("\n", rng.choice(("\n", "\r\n"))).encode(encoding)
        try:
            naming = name_labels(parse_class_list(decode_text(data, "f"), "f"), labels, "folder", "key=x")
        except ConfigError as refusal:
            refused, rule = refused + 1, str(refusal)
            assert not stated or "gives numbers as names" in rule or "may call" in rule, (seed, number, text, rule)
            continue
        guessed += bool(naming.guess)
        assert naming.guess or {label: naming.names[label] for label in labels} == truth, (seed, number, text, naming)
        if naming.guess:
            assert not stated, (seed, number, text)
            assert [naming.names[label] for label in labels] == [truth[label] for label in sorted(labels)], (seed, number, text)
    return refused, guessed


def test_random_names_files_give_the_names_that_were_written_or_say_what_is_guessed():
    refused, guessed = check_names(1, FEW * 4)
    assert 0 < refused < FEW
    assert 0 < guessed < FEW


@pytest.mark.soak
@pytest.mark.timeout(3600)
@seeds_of_soak
def test_many_names_files_give_the_names_that_were_written_or_say_what_is_guessed(seed):
    check_names(seed, MANY)


# ------------------------------------------------------------------------------------------ small texts and Python's codecs


def check_texts(seed: int, count: int) -> None:
    alphabet = "ab é犬🐕\u2028\x85,;\t'\"{}"
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        lines = ["".join(rng.choices(alphabet, k=rng.randint(0, 6))) + "x" for _ in range(rng.randint(1, 5))]
        text = rng.choice(("\n", "\r\n", "\r")).join(lines) + rng.choice(("", "\n", "\r\n\r\n", " \n"))
        encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252", "gb18030"))
        data = text.encode(encoding, "ignore")
        expected = [line.strip() for line in lines]
        try:
            found = split_lines(decode_text(data, "f"))
        except ConfigError:
            assert encoding in ("utf-16-le", "cp1252", "gb18030"), (seed, number, text)
            continue
        if encoding in ("cp1252", "gb18030"):  # bytes that happen to be UTF-8 too
            expected = [line.strip() for line in data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        while not expected[-1]:
            expected.pop()
        assert found == expected, (seed, number, text)


def test_random_texts_in_random_encodings_are_read_as_they_were_written_or_refused():
    check_texts(1, FEW * 4)


@pytest.mark.soak
@seeds_of_soak
def test_many_texts_in_random_encodings_are_read_as_they_were_written_or_refused(seed):
    check_texts(seed, MANY)
