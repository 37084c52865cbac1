"""The Python of docs/python.md and docs/quickstart.ipynb, and a folder with what the page names."""

import json
import re
from pathlib import Path

from tests.support.models import random_clip
from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
_RAYS = re.compile(r"to_ray|rayclip\.(train|ingest)\(")


def needs_ray(block: str) -> bool:
    return _RAYS.search(block) is not None


def make_place(folder: Path, data_set: str) -> None:
    """Write photos/, pairs.csv, data/pairs and runs/mine into a folder; the run is an export, which is loaded alike."""
    from model.weights import save_weights
    from pipeline.dataset.manifest import read_manifest
    from pipeline.storage.address import open_storage
    from training.data.shard_reader import ShardReader

    storage = open_storage(data_set)
    first, second = ShardReader(storage, read_manifest(storage), captions=()).read(0, 0, 2)
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(first.image)
    (folder / "photos" / "b.png").write_bytes(second.image)
    rows = "".join(f"{folder}/photos/{name},a photo {name}\n" for name in ("a.jpg", "b.png"))
    (folder / "pairs.csv").write_text(f"url,caption\n{rows}")
    (folder / "data").mkdir()
    (folder / "data" / "pairs").symlink_to(data_set)
    (folder / "runs" / "mine").mkdir(parents=True)
    save_weights(random_clip("debug-vit"), folder / "runs" / "mine" / "weights.safetensors")
