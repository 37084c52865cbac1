"""The plan of a run: its schedule, its data sets and its checkpoint fit together, or bad input is refused before any step."""

from types import SimpleNamespace

import pytest
import torch

from jobs.cli.config import load_config
from pipeline.dataset.manifest import ManifestError
from pipeline.errors import ConfigError
from tests.support.runs import ALONE, config_of
from training.data.order_layout import Source
from training.optimizer import Schedule
from training.run_plan import (
    _shows_one,
    check_config,
    describe_rate_change,
    fit_together,
    open_run,
    plan_order,
    plan_run,
    plan_schedule,
)
from training.trainer import train


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ([], [1, 1]),
        (["optimizer.warmup_steps=5"], [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1]),
        (["optimizer.warmup_epochs=1"], [1 / 2, 1, 1]),
        (["optimizer.warmup_samples=65"], [1 / 3, 2 / 3, 1, 1]),
        (["train.max_steps=40"], [1 / 4, 2 / 4, 3 / 4, 1, 1]),
        (["train.max_samples=250", "optimizer.warmup_steps=5"], [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1]),
        (
            [
                "optimizer.warmup_steps=0",
                "optimizer.schedule=constant_with_cooldown",
                "optimizer.cooldown_epochs=1.5",
                "train.max_steps=6",
            ],
            [1, 1, 1, 3 / 4, 2 / 4, 1 / 4],
        ),
    ],
)
def test_schedules_are_given_in_steps_samples_or_epochs(data_set, tmp_path, overrides, rates):
    schedule = plan_run(config_of(data_set, tmp_path, *overrides)).schedule  # an epoch has two steps
    for step, rate in enumerate(rates):
        assert schedule.rate(step) == pytest.approx(1e-3 * rate)


@pytest.mark.parametrize("recipe", ["demo", "default", "small", "debug_cpu"])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_a_recipe_to_try_things_with_has_a_warm_up_that_fits_any_number_of_steps(recipe, steps):
    config = load_config(recipe, [f"train.max_steps={steps}"])
    assert plan_schedule(config, steps_per_epoch=10).warmup_steps == steps // 10


def test_a_run_ends_with_the_first_of_epochs_steps_and_samples(data_set, tmp_path):
    for overrides, total in (
        (["train.max_steps=null", "train.num_epochs=4"], 8),
        (["train.max_steps=6", "train.num_epochs=4"], 6),
        (["train.max_samples=250", "train.num_epochs=4"], 7),
        (["train.max_samples=250", "train.num_epochs=3"], 6),
    ):
        assert plan_run(config_of(data_set, tmp_path, *overrides)).total_steps == total


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_the_synchronisation_of_batch_norm_is_refused_without_a_gpu(data_set, tmp_path):
    overrides = ("model.name=debug-rn", "train.sync_batch_norm=true")
    with pytest.raises(ConfigError, match=r"train\.sync_batch_norm=True: debug-rn on train\.device=cpu"):
        plan_run(config_of(data_set, tmp_path, *overrides))
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size=8: with train\.sync_batch_norm all samples"):
        plan_run(config_of(data_set, tmp_path, *overrides, "train.device=auto", "train.micro_batch_size=8"))
    with pytest.raises(ConfigError, match="on GPUs only"):
        train(config_of(data_set, tmp_path, *overrides, "train.device=auto"), ALONE)


def test_a_resume_may_spell_out_a_default_and_must_not_end_before_it_begins(data_set, tmp_path):
    train(config_of(data_set, tmp_path), ALONE)
    spelled = ("model.activation=quick_gelu", "model.image_size_px=32", "train.max_steps=20", "run.allow_config_changes=true")
    assert plan_run(config_of(data_set, tmp_path, *spelled)).start.step == 12
    with pytest.raises(ConfigError, match=r"amount to 10 steps, but run\.name=debug_cpu has already done 12"):
        plan_run(config_of(data_set, tmp_path, "train.max_steps=10", "run.allow_config_changes=true"))


def test_a_resume_into_other_samples_or_another_model_is_refused(data_set, make_data_set, tmp_path):
    config = config_of(data_set, tmp_path)
    train(config, ALONE)
    for override, named in (
        ("train.seed=9", r"seed=9 \(the checkpoint has 0\)"),
        ("train.global_batch_size=16", "global_batch_size=16"),
        ("data.num_streams=1", "num_streams=1"),
        ("model.name=debug-rn", r"model.name=debug-rn \(it has debug-vit\)"),
    ):
        with pytest.raises(ConfigError, match=named):
            plan_run(config_of(data_set, tmp_path, override))
    other = make_data_set(str(tmp_path / "other"), seed=3)
    with pytest.raises(ConfigError, match=r"choose another run\.name"):
        plan_run(config_of(other, tmp_path))


def test_a_run_keeps_its_version_of_a_growing_data_set_and_says_how_to_use_the_newer_one(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (40,))
    config = config_of(uri, tmp_path)
    train(config, ALONE)
    assert list(plan_run(config).newer_data()) == []
    make_data_set(uri, (40,), seed=2)
    plan = plan_run(config)
    assert plan.data_sets[0].manifest.version == 1
    (line,) = plan.newer_data()
    assert f"the run keeps version 1 of {uri}; version 2 is available" in line
    assert list(plan_run(config_of(uri, tmp_path, "data.version=1")).newer_data()) == [], "who asks for it knows"
    with pytest.raises(ConfigError, match=r"its checkpoint .* does not continue .*\(it has .*set version 1\)"):
        plan_run(config_of(uri, tmp_path, "data.version=2"))
    fresh = plan_run(config_of(uri, tmp_path, "run.name=fresh", line.split()[-1]))
    assert (fresh.data_sets[0].manifest.version, fresh.start.step) == (2, 0)
    branch = plan_run(config_of(uri, tmp_path, "run.name=branch", f"run.resume={tmp_path / 'debug_cpu'}"))
    assert (branch.data_sets[0].manifest.version, branch.start.step) == (1, 12), (
        "a branch is the same order of the same samples"
    )


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.uri="], ConfigError, r"data\.uri: is empty"),
        (["data.uri=/nowhere"], ManifestError, "there is no data set"),
        (["train.global_batch_size=4000"], ConfigError, r"must hold at least one batch\. The data set has 64 samples"),
        (["data.version=5"], ManifestError, r"data\.version=5"),
        (["optimizer.warmup_steps=12"], ConfigError, r"optimizer\.warmup_steps=12: the run has 12 steps"),
        (
            ["optimizer.warmup_steps=null", "optimizer.warmup_samples=400"],
            ConfigError,
            r"optimizer\.warmup_samples=400: the run",
        ),
        (
            [
                "optimizer.warmup_steps=0",
                "optimizer.schedule=constant_with_cooldown",
                "optimizer.cooldown_steps=12",
            ],
            ConfigError,
            r"optimizer\.warmup_steps=0 and optimizer\.cooldown_steps=12: the run has 12 steps",
        ),
        (
            ["train.compile=true", "train.activation_checkpointing=[image]", "model.name=debug-rn"],
            ConfigError,
            r"train\.activation_checkpointing=image: with train\.compile",
        ),
        (["train.max_samples=31"], ConfigError, r"train\.max_samples=31: is less than one step"),
        (
            ["train.patch_dropout=0.5", "model.name=debug-rn"],
            ConfigError,
            r"train\.patch_dropout=0\.5: debug-rn has no patches",
        ),
        (["model.image_size_px=36"], ConfigError, r"model\.image_size_px=36: .*multiple of 8"),
        (["model.lock=[image]"], ConfigError, r"model\.lock=\['image'\]: .*give model\.weights"),
        (["model.lock=[image, text]", "model.weights=w.pt"], ConfigError, "nothing but the temperature"),
        (["model.weights=/no/w.pt"], ConfigError, r"model\.weights=/no/w\.pt: there is no such file"),
        (["cluster.num_workers=33"], ConfigError, r"cluster\.num_workers=33"),
        (
            ["data.prefetch_bytes=9000", "cluster.num_workers=[2,8]"],
            ConfigError,
            r"data\.prefetch_bytes=9000 .*with 16 samples",
        ),
        (["evaluation.retrieval_uri=/nowhere"], ConfigError, "holds no data set of ours"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(data_set, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        plan_run(config_of(data_set, tmp_path, *overrides))
    assert not (tmp_path / "debug_cpu").exists()


def test_the_configuration_is_checked_before_anything_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("training.run_plan.open_storage", lambda uri: pytest.fail(f"{uri} was opened"))
    for overrides, message in (
        (["cluster.num_workers=33"], r"cluster\.num_workers=33: every worker needs at least one sample"),
        (["model.lock=[image]"], r"model\.lock=\['image'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_run(config_of("/nowhere", tmp_path, *overrides))
    check_config(config_of("/nowhere", tmp_path))


def test_what_is_opened_is_pinned_and_fits_together_as_the_plan(data_set, tmp_path):
    config = config_of(data_set, tmp_path, "data.version=latest")
    opened = open_run(config)
    assert opened.config.data.version == 1
    assert opened.config.model.activation is None
    plan = fit_together(opened)
    assert plan.order.identity() == plan_run(config).order.identity()
    assert (plan.total_steps, plan.start.step, plan.changes) == (12, 0, ())
    assert not (tmp_path / "debug_cpu").exists(), "a plan writes nothing"


def test_a_jump_of_the_learning_rate_is_described_and_a_schedule_that_continues_is_not():
    short, longer = (Schedule(1e-3, "cosine", total, warmup_steps=0) for total in (30, 60))
    told = describe_rate_change(short, longer, 30)
    assert told == "learning rate: 2.74e-06 at step 30 -> 0.0005 at step 31, since the run has 60 steps instead of 30"
    assert describe_rate_change(short, short, 12) == ""
    assert describe_rate_change(short, longer, 60) == "", "no step is left"
    assert describe_rate_change(Schedule(1e-3, "constant", 30, 0), Schedule(1e-3, "constant", 60, 0), 30) == ""
    told = describe_rate_change(Schedule(1e-3, "constant", 30, 0), Schedule(5e-4, "constant", 30, 0), 10)
    assert told == "learning rate: 0.001 at step 10 -> 0.0005 at step 11"


@pytest.mark.parametrize(("begun", "version"), [(None, 3), (2, 2), (3, 3), (1, 3)])
def test_a_run_keeps_the_version_of_its_order(data_set, tmp_path, begun, version):
    """Of version 1, no run can be resumed: the comparison with the checkpoint says so."""
    plan = plan_run(config_of(data_set, tmp_path))
    checkpoint = None if begun is None else SimpleNamespace(order=plan.order.identity() | {"version": begun})
    assert plan_order(plan.config, plan.data_sets, checkpoint).identity()["version"] == version


def test_the_weight_that_a_message_names_shows_a_sample():
    for samples in (*range(2, 500), 9_999, 10_000, 10_001, 12_345_678, 10**10):
        weight = float(f"{_shows_one(samples):g}")
        assert 1 <= Source((samples,), weight).epoch_samples < max(3, samples // 4_000)


@pytest.mark.parametrize("weight", [".inf", "1e300", ".nan", "0", "-1"])
def test_a_weight_is_a_number_of_times(data_set, tmp_path, weight):
    with pytest.raises(ConfigError, match=r"data\.mixture\.0\.weight"):
        config_of(data_set, tmp_path, "data.uri=", f"data.mixture=[{{uri: {data_set}, weight: {weight}}}]")


def test_the_batch_is_halved_until_a_small_epoch_has_its_steps(data_set, tmp_path):
    plan = plan_run(config_of(data_set, tmp_path, "train.global_batch_size=512", "train.min_steps_per_epoch=10"))
    assert plan.config.train.global_batch_size == 4, "of 64 samples"
    assert plan.order.steps_per_epoch == 16
    again = plan_run(plan.config)
    assert (again.config, again.order.identity()) == (plan.config, plan.order.identity())
    with pytest.raises(ConfigError, match=r"use at most train\.global_batch_size=4 workers"):
        plan_run(config_of(data_set, tmp_path, "train.min_steps_per_epoch=10", "cluster.num_workers=5"))
