"""Commands without training or fetching end on SIGINT and SIGTERM too, and leave nothing half written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.clip import build_clip
from model.weights import save_weights
from pipeline.dataset.manifest import read_manifest, read_sidecar
from pipeline.storage.address import open_storage
from pipeline.versions.audit import verify
from tests.support.moments import Moments
from tests.support.runs import ALONE, config_of
from training.trainer import train


@pytest.fixture(scope="module")
def tuned(data_set, tmp_path_factory):
    """Settings that name a short run, which started from weights."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    save_weights(build_clip("debug-vit"), folder / "start.safetensors")
    start = (f"model.weights={folder / 'start.safetensors'}", "tracking.wandb_mode=disabled")
    train(config_of(data_set, folder, *start), ALONE)
    return (f"run.dir={folder}", "run.name=debug_cpu")


def averaging(data: str, run: tuple[str, ...]) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        files = ("--json", str(folder / "line.json"), "--save", str(folder / "half.safetensors"))
        return ["jobs/average.py", *run, f"evaluation.retrieval_uri={data}", "train.device=cpu", "--points", "3", *files]

    return command


def reporting(_data: str, run: tuple[str, ...]) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        return ["jobs/report.py", *run, "--output", str(folder / "report.html")]

    return command


def exporting(_data: str, run: tuple[str, ...]) -> Callable[[Path], list[str]]:
    return lambda folder: ["jobs/export.py", *run, "--output", str(folder), "--overwrite"]


def curating(data: str, _run: tuple[str, ...]) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        if not folder.exists():
            shutil.copytree(data, folder)
        return ["jobs/curate.py", f"curate.data={folder}", "curate.where=shape != 'ring'", "--materialize"]

    return command


def indexing(data: str, _run: tuple[str, ...]) -> Callable[[Path], list[str]]:
    return lambda folder: ["jobs/index.py", f"index.input={data}/shards", f"index.output={folder}", "index.caption_key=caption"]


def files_of(folder: Path) -> dict[str, object]:
    """Name -> content, without what is random in it."""
    return {str(path.relative_to(folder)): _content(path) for path in folder.rglob("*") if path.is_file()}


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":  # its metadata have no order
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    if path.name == "export.json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "files"}
    return re.sub(r"""nonce(-|=")[-\w]+""", "", path.read_text())


def checked_samples_of(uri: Path) -> list[object]:
    storage = open_storage(str(uri))
    manifest = read_manifest(storage)
    assert verify(storage, manifest) == []
    keys = [row["key"] for shard in manifest.shards for row in read_sidecar(storage, shard, ["key", "status"]).to_pylist()]
    return [manifest.num_samples, sorted(keys)]


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (exporting, files_of),
        pytest.param(averaging, files_of, marks=pytest.mark.soak),
        pytest.param(reporting, files_of, marks=pytest.mark.soak),
        pytest.param(curating, checked_samples_of, marks=pytest.mark.soak),
        pytest.param(indexing, checked_samples_of, marks=pytest.mark.soak),
    ],
    ids=lambda value: value.__name__,
)
def test_a_job_that_is_stopped_leaves_nothing_half_written(kind, result, data_set, tuned, tmp_path, environment):
    moments = Moments(kind.__name__, kind(data_set, tuned), result, tmp_path, environment)
    moments.run(1)
    assert not list(tmp_path.rglob("*.part"))
