"""Typed keys without an effect are told with what to type instead; what they need makes them effective."""

import pytest

from jobs.cli.config import key_names, load_config
from jobs.cli.ineffective_keys import _RULES
from pipeline.errors import ConfigError


def test_every_rule_is_about_keys_that_exist():
    keys = set(key_names()) | {"evaluation.zero_shot"}
    assert [key for rule in _RULES for key in rule.keys if key not in keys] == []


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        (["checkpoint.best_is=lowest"], "checkpoint.keep_best=1"),
        (["data.max_skipped_samples=5"], "data.on_damage=skip"),
        (["train.max_skipped_steps=5"], "train.on_non_finite=skip"),
        (["data.cache_bytes=5000"], "data.cache_dir=/nvme"),
        (["tracking.wandb_entity=us", "tracking.wandb_mode=disabled"], "tracking.wandb_mode=online"),
        (["cluster.resize_every_s=5"], "cluster.num_workers=[1,3]"),
        (["evaluation.batch_size=16"], "evaluation.retrieval_uri=data/heldout"),
        (["cluster.use_gpu=true"], "train.device=auto"),
        (["data.version=3", "data.mixture=[{uri: a}, {uri: b}]"], "data.mixture=[]"),
    ],
)
def test_the_remedy_makes_the_key_effective(typed, remedy):
    with pytest.raises(ConfigError, match="has no effect"):
        load_config("debug_cpu", typed, "train")
    load_config("debug_cpu", [*typed, remedy], "train")


def test_keys_of_another_job_s_work_are_judged_for_that_job_alone():
    load_config("debug_cpu", ["evaluation.every_steps=5"], "train")
    with pytest.raises(ConfigError, match=r"evaluation\.every_steps: has no effect"):
        load_config("debug_cpu", ["evaluation.every_steps=5"], "evaluate")
    load_config("debug_cpu", ["evaluation.every_steps=5"])
