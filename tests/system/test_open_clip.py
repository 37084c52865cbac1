"""Our training compared with open_clip's: the same losses from the same weights; fine-tuning from its weights."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

from jobs.benchmarks.parity import BOUND, compare, demo_data, planned, settings_of, summary, train_peer

ROOT = Path(__file__).parents[2]
NUM_HELDOUT = 283


# Where a gradient is zero, as before a batch norm with zero gain, Adam turns rounding errors into full steps.
@pytest.mark.parametrize(("name", "bound"), [("debug-vit", 1e-5), ("debug-rn", 1e-2)])
def test_the_first_steps_are_those_of_open_clips_own_loop(data_set, name, bound):
    uris = {"train": data_set, "heldout": data_set}
    found = compare(0, 12, uris, f"model.name={name}", "train.global_batch_size=32", "optimizer.warmup_steps=4")
    assert len(found.our_losses) == len(found.peer_losses) == 12
    assert found.our_losses == pytest.approx(found.peer_losses, rel=bound)
    assert found.our_losses[-1] < 0.9 * found.our_losses[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ray_session):
    """The demo's data sets."""
    return demo_data(str(tmp_path_factory.mktemp("demo") / "data"))


@pytest.mark.soak
def test_500_steps_on_the_demos_data_learn_what_open_clip_learns(demo):
    found = [compare(seed, 500, demo, *settings_of("debug-vit")) for seed in range(3)]
    print(summary(found))
    assert all(one.largest_difference() < BOUND for one in found)
    for way in range(2):
        ours, theirs = (mean(getattr(one, side)[way] for one in found) for side in ("our_recall", "peer_recall"))
        assert theirs > 0.5
        deviation = math.sqrt(theirs * (1 - theirs) / NUM_HELDOUT)  # of one measurement on this many pairs
        assert abs(ours - theirs) < 2 * deviation * math.sqrt(2 / len(found))


@pytest.mark.soak
def test_the_fine_tuning_recipe_makes_open_clips_weights_better_on_held_out_pairs(demo, tmp_path):
    with planned(0, 60, demo) as plan:  # few steps, which leave room to improve
        peer, _ = train_peer(plan)
    weights = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "name": "open_clip", "state_dict": peer.state_dict()}, weights)  # as open_clip saves it
    start = (f"model.weights={weights}", "model.name=demo", "model.activation=quick_gelu", f"data.uri={demo['train']}")
    place = (f"run.dir={tmp_path}", "train.device=cpu")
    # The recipe's learning rate is for models a hundred times larger.
    job("train.py", "--config", "finetune", *start, *place, "optimizer.learning_rate=3e-4", "cluster.num_workers=2")
    figures = tmp_path / "line.json"
    heldout = f"evaluation.retrieval_uri={demo['heldout']}"
    print(job("average.py", *place, "run.name=finetune", heldout, "--points", "5", "--json", str(figures)))
    line = json.loads(figures.read_text())
    for way in ("image_to_text", "text_to_image"):
        assert line[-1][f"evaluation/{way}_r1"] > line[0][f"evaluation/{way}_r1"] + 0.03


def job(name: str, *arguments: str) -> str:
    command = [sys.executable, f"jobs/{name}", *arguments]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
