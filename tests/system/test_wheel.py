"""The wheel in an empty environment without the repository, from a folder of images to a search, as a user meets it first.

PATH says which Pythons are tried: python3.11 to python3.14, of those that run. Each installs some 7 GB.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("disc", "square", "bar", "ring")


def pythons() -> list[str]:
    """The interpreters on PATH that RayCLIP is for, and that run."""
    named = [shutil.which(f"python3.{minor}") for minor in range(11, 15)]
    return [one for one in named if one and subprocess.run([one, "-c", ""], capture_output=True, check=False).returncode == 0]


@pytest.mark.soak
def test_a_wheel_goes_from_a_folder_of_images_to_a_search(tmp_path, draw_shape):
    found = pythons() or [sys.executable]
    source = tmp_path / "source"  # the build writes into its folder
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("rayclip-*.whl")
    for python in found:
        place = tmp_path / Path(python).name
        subprocess.run([python, "-m", "venv", place / "venv"], check=True)
        subprocess.run([place / "venv" / "bin" / "python", "-m", "pip", "install", "-q", wheel], check=True)
        walk(place, draw_shape)
        shutil.rmtree(place)
    print(f"the wheel ran on {', '.join(found)}")


def walk(place: Path, draw_shape) -> None:
    """Makes a folder of images, and calls the command on it, in a folder with nothing else."""
    work = place / "work"
    images = work / "my photos"
    for colour in COLOURS:
        for number, shape in enumerate(SHAPES * 6):
            path = images / colour / f"{shape} {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw_shape(colour, shape, number))
            path.with_suffix(".txt").write_text(f"a {colour} {shape}\n")

    def rayclip(*words: str) -> str:
        environment = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
        command = [str(place / "venv" / "bin" / "rayclip"), *words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    assert "ray" in rayclip("--version")
    assert "96 rows" in rayclip("ingest", "ingest.input=my photos", "ingest.captions_from=txt", "ingest.output=data/pairs")
    run = ("run.name=debug_cpu", "evaluation.retrieval_uri=data/pairs")
    rayclip("train", "--config", "debug_cpu", "data.uri=data/pairs", "cluster.num_workers=2")
    rayclip("evaluate", *run, "--json", "figures.json")
    assert json.loads((work / "figures.json").read_text())["evaluation/image_to_text_r10"] > 0
    rayclip("export", "run.name=debug_cpu", "--output", "exports/mine")
    rayclip("search", "my photos", "--weights", "exports/mine", "--text", "a red disc", "--json", "hits.json")
    assert len(json.loads((work / "hits.json").read_text())["hits"]) == 10
    code = "import rayclip; print(rayclip.load('runs/debug_cpu').encode_text(['a red disc']).shape)"
    subprocess.run([place / "venv" / "bin" / "python", "-c", code], cwd=work, check=True)
