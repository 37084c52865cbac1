"""Class folders, names files and clip-benchmark tars as people have them, built in a temporary folder."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from tests.support.runs import ALONE
from training.config import EvaluationConfig
from training.evaluation.evaluation_data import open_evaluation


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_folders(root: Path, *paths: str) -> str:
    """Writes an image at each path; a path that ends in `/` is an empty folder."""
    for number, path in enumerate(paths):
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(number))
    return str(root)


def tar_bytes(members, end=True) -> bytes:
    """A tar of (name, content); without its end if `end` is false."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        whole = tar.offset
    return file.getvalue() if end else file.getvalue()[:whole]


def write_tars(root: Path, labels, names: bytes | None = b"cat\ndog\n", **files: bytes) -> str:
    """A clip-benchmark data set of one tar, with an image for each label."""
    members = []
    for number, label in enumerate(labels):
        members += [
            (f"{number:03}.png", png(number)),
            (f"{number:03}.cls", label if isinstance(label, bytes) else str(label).encode()),
        ]
    (root / "test").mkdir(parents=True)
    (root / "test" / "0.tar").write_bytes(tar_bytes(members))
    if names is not None:
        (root / "classnames.txt").write_bytes(names)
    for name, content in files.items():
        (root / f"{name}.txt").write_bytes(content)
    return str(root)


def open_zero_shot(uri: str, names: bytes | str | None = None, suffix: str = "txt", **settings):
    """Opens what a zero-shot evaluation reads; `names` is the content of class_names_file."""
    if names is not None:
        path = Path(uri).parent / f"given_names.{suffix}"
        path.write_bytes(names if isinstance(names, bytes) else names.encode())
        settings["class_names_file"] = str(path)
    return open_evaluation(EvaluationConfig(zero_shot={"uri": uri, **settings}), ALONE).zero_shot


def names_of(uri: str, names: bytes | str | None = None, **settings) -> list[str]:
    """The class name of each sample, in order."""
    classes = open_zero_shot(uri, names, **settings).classes
    return [classes.names[label] for label in classes.labels]


def notes_of(uri: str, names: bytes | str | None = None, **settings) -> str:
    data = open_zero_shot(uri, names, **settings)
    return "; ".join((*data.classes.notes, *data.images.notes))
