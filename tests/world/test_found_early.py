"""Faults of a configuration that people found hours into a run, here while it is planned.

docs/decisions/0026-found-before-the-work.md has the rules. Each test builds its input, and names the report that it comes from.
"""

import json
import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import evaluate as evaluate_job
from jobs import train as train_job
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.cli.config import load_config
from model.clip import build_clip
from model.weights import save_weights
from pipeline.dataset.columns import Extra
from pipeline.dataset.manifest import ManifestError, PartitionRecord, commit
from pipeline.dataset.shard import Row, StoredImage, write_shard
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.evaluation_sets import write_tar
from tests.support.loaders import batches
from tests.support.runs import ALONE, config_of
from training.config import EvaluationConfig
from training.errors import EvaluationFailedError
from training.evaluation.runner import check_evaluation, evaluate
from training.record.tracking import read_metrics
from training.run_plan import plan_run
from training.trainer import train


@pytest.fixture
def data_set_of(tmp_path, draw_shape):
    """Writes a data set of one shard for each table: (name, tables) -> uri; a table is a list of rows of other columns."""

    def make(name: str, *tables: pa.RecordBatch | int, captions=("a caption",)) -> str:
        uri = str(tmp_path / name)
        storage, records = open_storage(uri), []
        for number, table in enumerate(tables):
            count = table if isinstance(table, int) else table.num_rows
            extra = None if isinstance(table, int) else Extra(table)
            image = draw_shape("red", "disc", number)
            rows = [
                Row(
                    f"{number:04d}-{row:06d}",
                    f"http://e.org/{row}",
                    captions[row % len(captions)],
                    StoredImage(image, 40, 40, 40, 40, "{}"),
                    extra.row(row) if extra else None,
                )
                for row in range(count)
            ]
            with tempfile.TemporaryDirectory() as temporary:
                shard = write_shard(rows, f"{number:016x}-000", "png", datetime.now(UTC), Path(temporary))
                for path in (shard.tar_path, shard.sidecar_path):
                    storage.write_file(path, Path(temporary) / Path(path).name)
            records.append(
                PartitionRecord(
                    id=f"{number:016x}",
                    input_path=f"table-{number}",
                    first_row=0,
                    num_rows=count,
                    rows_sha256="",
                    options_fingerprint="",
                    counts={"success": count},
                    shards=(shard,),
                )
            )
        commit(storage, records)
        return uri

    return make


def alts(count: int = 40, name: str = "alt", values=None) -> pa.RecordBatch:
    return pa.record_batch({name: values if values is not None else [f"a text {row}" for row in range(count)]})


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """What a command that is refused before Ray starts writes on standard error."""
    for job in (train_job, evaluate_job):
        monkeypatch.setattr(job, "connect_ray", lambda _cluster: pytest.fail("Ray was started for bad input"))

    def complain(job, *arguments: str) -> str:
        assert run(job.arguments(), job.job, list(arguments)) == EXIT_BAD_INPUT
        return capsys.readouterr().err

    return complain


def refused_plan(data_set: str, folder, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        plan_run(config_of(data_set, folder, *overrides))
    return str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ caption columns


@pytest.mark.parametrize("on_damage", ["fail", "skip"])
@pytest.mark.parametrize("place", ["json.nothing", "nothing", "Caption", "json.Shape"])
def test_captions_of_a_column_that_no_sample_has_are_refused_open_clip_1016(data_set, tmp_path, place, on_damage):
    message = refused_plan(data_set, tmp_path, f"data.captions=[{place}]", f"data.on_damage={on_damage}")
    assert message.startswith(f"data.captions=['{place}']: ")
    assert not list(tmp_path.iterdir())


def test_the_refusal_names_the_column_that_was_meant(data_set, tmp_path):
    message = refused_plan(data_set, tmp_path, "data.captions=[shap]")
    assert "(did you mean shape?)" in message
    assert "name one of caption, shape" in message
    plan_run(config_of(data_set, tmp_path, "data.captions=[shape]"))
    plan_run(config_of(data_set, tmp_path, "data.captions=[json.shape]"))


def test_a_misspelled_column_among_others_is_refused_and_not_passed_over(data_set, tmp_path):
    assert "no data set has shap (did you mean shape?)" in refused_plan(data_set, tmp_path, "data.captions=[caption,shap]")
    message = refused_plan(data_set, tmp_path, "data.captions=[caption,json.shap]")
    assert "no data set has json.shap" in message


@pytest.mark.parametrize("values", [[1] * 40, [b"a"] * 40, [None] * 40, [""] * 40, [[1]] * 40, [{"en": "a"}] * 40])
def test_a_column_without_any_text_is_refused(data_set_of, tmp_path, values):
    uri = data_set_of("set", alts(values=values))
    assert "data.captions=['alt']" in refused_plan(uri, tmp_path, "data.captions=[alt]", "data.on_damage=skip")


def test_a_mixture_of_which_one_set_lacks_a_column_is_bad_input_open_clip_637(data_set_of, tmp_path):
    web, shop = data_set_of("web", alts()), data_set_of("shop", 40)
    overrides = ("data.uri=", f"data.mixture=[{{uri: {web}}}, {{uri: {shop}}}]", "data.on_damage=skip")
    message = refused_plan("", tmp_path, *overrides, "data.captions=[alt]")
    assert f"{shop}/shards/" in message
    assert "data.captions=[alt,caption]), those that a data set has are used" in message
    train(config_of("", tmp_path, *overrides, "data.captions=[alt,caption]", "train.max_steps=6"), ALONE)
    rows = read_metrics(tmp_path / "debug_cpu" / "metrics.jsonl")
    assert [row["skipped_samples"] for row in rows] == [0] * 6


def test_a_table_without_the_column_is_bad_input_as_well_as_a_whole_set(data_set_of, tmp_path):
    uri = data_set_of("set", alts(), alts(), 40)
    assert "has no such column" in refused_plan(uri, tmp_path, "data.captions=[alt]", "data.on_damage=skip")
    plan_run(config_of(uri, tmp_path, "data.captions=[alt,caption]"))


def test_a_shard_without_the_column_is_not_skipped_sample_by_sample(data_set_of):
    uri = data_set_of("set", 40)
    with pytest.raises(ManifestError, match=r"column alt: .* of several, those that a shard has are used"):
        batches(uri, 1, captions=("alt",), on_damage="skip")


def test_a_loader_without_any_whole_sample_ends_with_a_reason_instead_of_trying_for_ever(data_set_of):
    uri = data_set_of("set", 40)
    with pytest.raises(ManifestError, match=r"substitutes, 100 in a row are damaged too, the last: .* has no caption"):
        batches(uri, 1, captions=("json.nothing",), on_damage="skip")
    for tar in Path(uri, "shards").glob("*.tar"):
        tar.unlink()
    with pytest.raises(ManifestError, match=r"substitutes, 100 in a row are damaged too, the last: .* is gone"):
        batches(uri, 1, on_damage="skip")


def test_a_run_whose_tars_are_all_gone_is_refused_while_it_is_planned(data_set_of, tmp_path):
    uri = data_set_of("set", 40)
    for tar in Path(uri, "shards").glob("*.tar"):
        tar.unlink()
    assert "is gone; restore it" in refused_plan(uri, tmp_path, "data.on_damage=skip")


# ----------------------------------------------------------------------------------------------------- columns of evaluations


@pytest.mark.parametrize("captions", ["[capton]", "[json.nothing]", "[shape,capton]"])
def test_misspelled_captions_of_retrieval_are_refused_while_planning_fairseq_2140(data_set, tmp_path, captions, refused):
    evaluation = (f"evaluation.retrieval_uri={data_set}", f"evaluation.retrieval_captions={captions}")
    common = ("--config", "debug_cpu", f"run.dir={tmp_path}")
    printed = refused(train_job, *common, f"data.uri={data_set}", *evaluation)
    assert "bad input:\n  evaluation.retrieval_captions=" in printed
    save_weights(build_clip("debug-vit"), tmp_path / "weights.safetensors")
    weights = ("--weights", str(tmp_path / "weights.safetensors"), "model.name=debug-vit")
    printed = refused(evaluate_job, "--config", "debug_cpu", *weights, *evaluation)
    assert "bad input:\n  evaluation.retrieval_captions=" in printed


def test_one_held_out_sample_without_a_caption_is_counted_before_the_run(data_set, data_set_of, tmp_path):
    heldout = data_set_of("heldout", alts(values=["a", "b", " ", "d"]))
    overrides = (f"evaluation.retrieval_uri={heldout}", "evaluation.retrieval_captions=[alt]")
    assert "1 of 4 samples of evaluation.retrieval_uri=" in refused_plan(data_set, tmp_path, *overrides)
    plan_run(config_of(data_set, tmp_path, overrides[0], "evaluation.retrieval_captions=[alt,caption]"))


def test_columns_of_a_set_that_has_none_are_refused(tmp_path, draw_shape):
    image = draw_shape("red", "disc", 0)
    write_tar(tmp_path / "tars" / "0.tar", [{"png": image, "txt": b"a disc"}] * 2)
    with pytest.raises(ConfigError, match=r"evaluation\.retrieval_captions=\['alt'\]: .* has no columns"):
        check_evaluation(EvaluationConfig(retrieval_uri=str(tmp_path / "tars"), retrieval_captions=("alt",)))
    for name in ("a", "b"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "0.png").write_bytes(image)
    zero_shot = {"uri": str(tmp_path / "folders"), "label_column": "class"}
    with pytest.raises(ConfigError, match=r"evaluation\.zero_shot\.label_column=class: .* omit the key"):
        check_evaluation(EvaluationConfig.model_validate({"zero_shot": zero_shot}))


def test_a_linear_probe_without_anything_to_validate_on_is_refused_while_planning(data_set, data_set_of, tmp_path):
    small = data_set_of("small", alts(name="class", values=["a", "b", "a", "b"]))
    probe = f"{{train_uri: {small}, test_uri: {small}, label_column: class}}"
    message = refused_plan(data_set, tmp_path, f"evaluation.linear_probe={probe}")
    assert "no class has 5 samples" in message


# ---------------------------------------------------------------------------------------------------------------- best metric


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.best_metric=evaluation/image_to_txt_r1"], "did you mean evaluation/image_to_text_r1?"),
        (["checkpoint.best_metric=image_to_text_r1"], "did you mean evaluation/image_to_text_r1?"),
        (["checkpoint.best_metric=val_loss"], "use one of loss, evaluation/image_to_text_r1"),
        (["checkpoint.best_metric=evaluation/zero_shot_top1"], "no step"),
        (["evaluation.every_steps=7"], "meet only every 35 steps"),
        (["evaluation.every_steps=null"], "only the last checkpoint would have evaluation/image_to_text_r1"),
        (["checkpoint.every_steps=null", "checkpoint.every_minutes=1"], "set checkpoint.every_steps=5"),
        (["checkpoint.best_metric=loss"], "set checkpoint.best_is=lowest"),
        (["checkpoint.best_metric=evaluation/text_to_image_median_rank"], "set checkpoint.best_is=lowest"),
        (
            ["checkpoint.best_metric=loss", "checkpoint.best_is=lowest", "train.log_every_steps=3"],
            "train.log_every_steps=3 meet",
        ),
    ],
)
def test_a_best_metric_that_checkpoints_will_not_have_is_refused_keras_21109_transformers_12685(
    data_set, tmp_path, overrides, message
):
    evaluation = (f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=5")
    settings = (*evaluation, "checkpoint.every_steps=5", "checkpoint.keep_best=1")
    assert message in refused_plan(data_set, tmp_path, *settings, *overrides)


def test_a_best_metric_without_any_evaluation_is_answered_with_what_to_set(data_set, tmp_path):
    message = refused_plan(data_set, tmp_path, "checkpoint.keep_best=1")
    assert "use one of loss, or set evaluation.retrieval_uri" in message
    loss = ("checkpoint.best_metric=loss", "checkpoint.best_is=lowest")
    plan_run(config_of(data_set, tmp_path, "checkpoint.keep_best=1", *loss))


@pytest.mark.parametrize(("evaluated", "saved"), [(2, 4), (4, 2), (2, 2)])
def test_the_best_checkpoints_of_all_are_kept(data_set, tmp_path, monkeypatch, evaluated, saved):
    scores = iter([0.2, 0.9, 0.1, 0.8, 0.3, 0.4])
    monkeypatch.setattr("training.loop_evaluation.evaluate", lambda *_: {"evaluation/image_to_text_r1": next(scores)})
    evaluation = (f"evaluation.retrieval_uri={data_set}", f"evaluation.every_steps={evaluated}")
    settings = (f"checkpoint.every_steps={saved}", "checkpoint.keep_best=1", "checkpoint.keep_last=1")
    train(config_of(data_set, tmp_path, *evaluation, *settings), ALONE)
    found = {}
    for folder in (tmp_path / "debug_cpu" / "checkpoints").iterdir():
        metrics = json.loads((folder / "checkpoint.json").read_text())["metrics"]
        found[int(folder.name[5:])] = metrics["evaluation/image_to_text_r1"]
    best = {(2, 4): {4: 0.9, 12: 0.4}, (4, 2): {8: 0.9, 12: 0.1}, (2, 2): {4: 0.9, 12: 0.4}}[evaluated, saved]
    assert found == best


# ------------------------------------------------------------------------------------------- small data sets and mixtures


@pytest.mark.parametrize(
    ("count", "batch", "streams", "steps"), [(50, 16, 50, 3), (96, 16, 48, 6), (16, 16, 16, 1), (97, 32, 48, 3)]
)
def test_streams_adapt_to_a_small_data_set_slideflow_248(data_set_of, tmp_path, capsys, count, batch, streams, steps):
    uri = data_set_of("set", count)
    settings = ("data.num_streams=64", f"train.global_batch_size={batch}", "train.max_steps=6")
    plan = plan_run(config_of(uri, tmp_path, *settings))
    assert (plan.order.layout.num_streams, plan.order.steps_per_epoch) == (streams, steps)
    assert plan.order.remainder == count % batch
    train(config_of(uri, tmp_path, *settings), ALONE)
    assert f"data.num_streams: {streams} instead of 64" in capsys.readouterr().out
    assert plan_run(config_of(uri, tmp_path, *settings)).order.identity() == plan.order.identity(), "it resumes"


def test_the_remedy_for_a_batch_that_is_too_large_works(data_set_of, tmp_path):
    uri = data_set_of("set", 50)
    message = refused_plan(uri, tmp_path, "train.global_batch_size=64", "data.num_streams=64")
    assert "The data set has 50 samples; use 50 or less" in message
    for batch in (50, 49, 2):
        plan = plan_run(config_of(uri, tmp_path, f"train.global_batch_size={batch}", "data.num_streams=64"))
        assert plan.order.remainder == 50 % batch
    single = data_set_of("single", 1)
    assert "use a larger data set" in refused_plan(single, tmp_path, "train.global_batch_size=2")


def test_a_run_that_began_in_more_streams_than_fit_keeps_them(data_set_of, tmp_path, monkeypatch):
    uri = data_set_of("set", 96)
    settings = ("data.num_streams=64", "train.global_batch_size=16")
    with monkeypatch.context() as patch:  # the version before
        patch.setattr("training.run_plan.fit_num_streams", lambda _samples, _batch, streams: streams)
        train(config_of(uri, tmp_path, *settings), ALONE)
    plan = plan_run(config_of(uri, tmp_path, *settings, "train.max_steps=20", "run.allow_config_changes=true"))
    assert (plan.start.step, plan.order.layout.num_streams) == (12, 64)


def test_a_part_of_a_mixture_that_an_epoch_would_never_show_is_refused(data_set, data_set_of, tmp_path):
    mixture = f"data.mixture=[{{uri: {data_set}}}, {{uri: {data_set_of('few', 50)}, weight: 0.01}}]"
    message = refused_plan("", tmp_path, "data.uri=", mixture)
    assert "data.mixture.1.weight=0.01: of the 50 samples" in message
    assert "use 0.02 or more" in message
    mixture = mixture.replace("0.01", "0.02")
    plan_run(config_of("", tmp_path, "data.uri=", mixture))


# ------------------------------------------------------------------------------------------------- an evaluation that fails


def steps_saved(folder) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in Path(folder, "debug_cpu", "checkpoints").glob("*/checkpoint.json"))


class KilledError(BaseException):
    """Ends a run at once, as a kill does."""


@pytest.fixture
def broken_evaluation(monkeypatch):
    """Makes evaluations fail after the first `good` ones."""

    def breaks(good: int, error: BaseException | None = None):
        calls = []

        def broken(*arguments):
            calls.append(1)
            if len(calls) > good:
                raise error or ManifestError("evaluation.retrieval_uri=x: sample 7: cut; restore it")
            return evaluate(*arguments)

        monkeypatch.setattr("training.loop_evaluation.evaluate", broken)

    return breaks


def evaluation_of(data_set: str) -> tuple[str, ...]:
    return (f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=4", "checkpoint.every_steps=6")


@pytest.mark.parametrize(("good", "step"), [(0, 4), (2, 12)])
def test_an_evaluation_that_fails_costs_no_steps_and_is_repeated(
    data_set, tmp_path, monkeypatch, broken_evaluation, good, step
):
    config = config_of(data_set, tmp_path / "failed", *evaluation_of(data_set))
    with monkeypatch.context() as patch:
        patch.setattr("training.loop_evaluation.evaluate", evaluate)
        broken_evaluation(good)
        with pytest.raises(EvaluationFailedError, match=rf"evaluation at step {step} failed: .*sample 7: cut") as failed:
            train(config, ALONE)
    assert f"checkpoints/step_{step:08d}" in str(failed.value)
    assert max(steps_saved(tmp_path / "failed")) == step
    assert not (tmp_path / "failed" / "debug_cpu" / "result.json").exists()
    monkeypatch.setattr("training.loop_evaluation.evaluate", evaluate)
    again = train(config, ALONE)
    undisturbed = train(config_of(data_set, tmp_path / "whole", *evaluation_of(data_set)), ALONE)
    assert again.evaluation == undisturbed.evaluation != {}
    assert rows_of(tmp_path / "failed") == rows_of(tmp_path / "whole")


def rows_of(folder) -> list[tuple[int, float]]:
    rows = read_metrics(folder / "debug_cpu" / "metrics.jsonl")
    return [(row["step"], row["loss"] if "loss" in row else row["evaluation/image_to_text_r1"]) for row in rows]


@pytest.mark.parametrize("good", [0, 2])
def test_an_evaluation_may_be_let_fail_with_a_warning(data_set, tmp_path, broken_evaluation, caplog, good):
    broken_evaluation(good)
    with caplog.at_level(logging.WARNING):
        result = train(config_of(data_set, tmp_path, *evaluation_of(data_set), "evaluation.on_failure=warn"), ALONE)
    assert (result.step, result.finished, result.evaluation) == (12, True, {})
    assert "the evaluation at step 12 failed: " in caplog.text
    assert [step for step, _ in rows_of(tmp_path)].count(4) == 1 + (good > 0)


def test_a_run_that_is_killed_in_its_last_evaluation_has_its_last_checkpoint(
    data_set, tmp_path, monkeypatch, broken_evaluation
):
    config = config_of(data_set, tmp_path, *evaluation_of(data_set), "checkpoint.every_steps=null")
    with monkeypatch.context() as patch:
        patch.setattr("training.loop_evaluation.evaluate", evaluate)
        broken_evaluation(2, KilledError())
        with pytest.raises(KilledError):
            train(config, ALONE)
    assert steps_saved(tmp_path) == [12]
    monkeypatch.setattr("training.loop_evaluation.evaluate", evaluate)
    result = train(config, ALONE)
    assert result.evaluation["evaluation/image_to_text_r1"] >= 0
    assert [step for step, _ in rows_of(tmp_path)][-2:] == [12, 12]
    record = json.loads((tmp_path / "debug_cpu" / result.checkpoint / "checkpoint.json").read_text())
    assert record["metrics"].items() >= result.evaluation.items()


def test_figures_that_a_kill_kept_from_a_checkpoint_are_added_when_the_run_resumes(data_set, tmp_path, monkeypatch):
    overrides = (f"evaluation.retrieval_uri={data_set}", "evaluation.every_steps=6", "checkpoint.every_steps=6")
    config = config_of(data_set, tmp_path, *overrides)
    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoint.store.CheckpointStore.add_metrics", lambda *_: None)
        patch.setattr("training.trainer.Trainer._finish", lambda _self: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            train(config, ALONE)
    before = (tmp_path / "debug_cpu" / "metrics.jsonl").read_text()
    result = train(config, ALONE)
    assert (tmp_path / "debug_cpu" / "metrics.jsonl").read_text() == before
    folder = tmp_path / "debug_cpu" / "checkpoints" / "step_00000012"
    assert json.loads((folder / "checkpoint.json").read_text())["metrics"].items() >= result.evaluation.items()


# ------------------------------------------------------------------------------------------------------ pairs of settings


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("checkpoint.best_metric=loss", "set checkpoint.keep_best=1"),
        ("data.max_skipped_samples=5", "set data.on_damage=skip"),
        ("train.max_skipped_steps=5", "set train.on_non_finite=skip"),
        ("data.cache_bytes=5000", "set data.cache_dir"),
        ("cluster.resize_every_s=5", "set cluster.num_workers=[MIN,MAX]"),
        ("evaluation.retrieval_captions=[alt]", "set evaluation.retrieval_uri"),
        ("evaluation.on_failure=warn", "nothing is measured"),
        ("model.allow_torchscript=true", "set model.weights"),
    ],
)
def test_a_typed_key_that_cannot_have_an_effect_is_refused_and_a_recipe_with_it_is_not(tmp_path, typed, why):
    with pytest.raises(ConfigError, match=typed.partition("=")[0]) as refusal:
        load_config("debug_cpu", [typed], "train")
    assert why in str(refusal.value)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{{{typed.partition('.')[0]}: {{{typed.partition('.')[2].replace('=', ': ')}}}}}")
    load_config(str(recipe), ["run.name=again"], "train")


def test_a_device_that_workers_do_not_get_is_refused(data_set, tmp_path):
    message = refused_plan(data_set, tmp_path, "train.device=cuda", "cluster.use_gpu=false")
    assert message.startswith("train.device=cuda: with cluster.use_gpu=False")


def test_keys_of_another_model_than_the_one_that_is_evaluated_are_refused(data_set, tmp_path, refused):
    save_weights(build_clip("debug-vit"), tmp_path / "weights.safetensors")
    common = ("--config", "debug_cpu", f"evaluation.retrieval_uri={data_set}")
    printed = refused(evaluate_job, *common, "run.name=a", "model.name=RN50")
    assert "model.name: has no effect: the model is that of a run" in printed
    printed = refused(evaluate_job, *common, "--weights", str(tmp_path / "weights.safetensors"), "run.name=a")
    assert "run.name: has no effect: --weights=" in printed
    assert "evaluation.every_steps: has no effect" in refused(evaluate_job, *common, "evaluation.every_steps=5")


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("data.captions=caption", "write 'data.captions=[caption]'"),
        ("model.lock=image", "write 'model.lock=[image]'"),
        ("evaluation.zero_shot={uri: a, templates: 'a {c}'}", "write 'evaluation.zero_shot.templates=[\"a {c}\"]'"),
    ],
)
def test_a_text_where_a_list_belongs_is_not_taken_letter_by_letter_detectron2_1153(typed, remedy):
    with pytest.raises(ConfigError) as refusal:
        load_config("debug_cpu", [typed], "train")
    assert remedy in str(refusal.value)


def test_a_misspelled_column_of_labels_is_named_with_its_key(data_set, tmp_path):
    with pytest.raises(ManifestError, match=r"^evaluation\.zero_shot\.label_column=shap: column shap: .*, shape; name one"):
        plan_run(config_of(data_set, tmp_path, f"evaluation.zero_shot={{uri: {data_set}, label_column: shap}}"))
