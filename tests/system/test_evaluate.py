"""jobs/evaluate.py on real Ray Train workers gives the figures of one process."""

import json

import pytest
import torch

from jobs import evaluate
from jobs.cli.command_line import run
from model.clip import build_clip

pytestmark = pytest.mark.usefixtures("ray_session")


def test_two_workers_find_what_one_process_finds(data_set, tmp_path):
    torch.manual_seed(0)
    torch.save(build_clip("debug-vit").state_dict(), tmp_path / "weights.pt")
    zero_shot = f"{{uri: {data_set}, label_column: shape, templates: ['a {{}}', 'a drawn {{c}}']}}"
    probe = f"{{train_uri: {data_set}, test_uri: {data_set}, label_column: shape}}"
    found = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.json"
        options = [
            *("--config", "debug_cpu", "--weights", str(tmp_path / "weights.pt"), "--activation", "quick_gelu"),
            *(f"evaluation.retrieval_uri={data_set}", f"evaluation.zero_shot={zero_shot}", f"evaluation.linear_probe={probe}"),
            *(f"cluster.num_workers={workers}", "train.device=cpu", "--json", str(path)),
        ]
        assert run(evaluate.arguments(), evaluate.job, options) == 0
        found.append(json.loads(path.read_text()))
    one, two = (
        {name: figures.pop(name) for name in list(figures) if name.startswith("evaluation_notes/")} for figures in found
    )
    assert one == two
    assert "train_uri" in str(one), "the probe is tested on its training images"
    assert found[1] == pytest.approx(found[0], abs=1e-9)
    assert {name.partition("/")[0] for name in found[0]} == {"evaluation", "evaluation_bounds"}
    assert not (tmp_path / "debug_cpu").exists()  # no folder is made for a run that does not exist
