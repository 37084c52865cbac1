"""Small image sets in the layout of the clip-benchmark community, and evaluations on them."""

import io
import tarfile

import pytest
from PIL import Image

from tests.support.runs import ALONE
from training.config import EvaluationConfig, ZeroShotConfig
from training.evaluation.runner import check_evaluation, evaluate

NAMES = ("disc", "square", "bar", "ring", "cross", "star")
TEMPLATES = ("a {c}", "a drawing of a {c}.", "{c}, drawn by hand")


def convert(image: bytes, extension: str) -> tuple[str, bytes]:
    file = io.BytesIO()
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}, "png": {}}[extension]
    Image.open(io.BytesIO(image)).save(file, "JPEG" if extension == "jpg" else extension, **options)
    return extension, file.getvalue()


def write_tar(path, samples) -> None:
    """Samples are dictionaries of members by extension, in the layout of webdataset's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"s{number:07d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_benchmark(root, samples, split="test", names=NAMES, templates=TEMPLATES, kind="") -> str:
    """A data set in the clip-benchmark community's layout, in three tars."""
    third = -(-len(samples) // 3)
    for number in range(3):
        write_tar(root / split / f"{number}.tar", samples[number * third : (number + 1) * third])
    (root / split / "nshards.txt").write_text("3\n")
    for name, lines in (("classnames.txt", names), ("zeroshot_classification_templates.txt", templates)):
        if lines:
            (root / name).write_text("\n".join(lines) + "\n")
    if kind:
        (root / "dataset_type.txt").write_text(kind)
    return str(root)


def measure_zero_shot(clip, uri, **settings):
    return evaluate(clip, EvaluationConfig(batch_size=10, zero_shot=ZeroShotConfig(uri=uri, **settings)), ALONE)


def refusal(**settings) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is checked)
        check_evaluation(EvaluationConfig(**settings))
    return str(error.value)
