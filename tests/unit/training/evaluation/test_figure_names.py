"""The names that are promised are those that an evaluation gives."""

from model.clip import build_clip
from tests.support.runs import ALONE
from training.config import EvaluationConfig
from training.evaluation.figure_names import asks_for_something, figure_directions
from training.evaluation.runner import measure


def test_names_and_bounds_are_those_of_what_is_measured(data_set):
    zero_shot = {"uri": data_set, "label_column": "shape"}
    probe = {"train_uri": data_set, "test_uri": data_set, "label_column": "shape"}
    config = EvaluationConfig.model_validate({"retrieval_uri": data_set, "zero_shot": zero_shot, "linear_probe": probe})
    figures = measure(build_clip("debug-vit").eval(), config, ALONE)
    results = {figure.name: figure for figure in figures if figure.low is not None}
    promised = figure_directions(config)
    names = {f"evaluation/{name}" for name in results}
    assert set(promised) == names | {f"evaluation_bounds/{name}_{bound}" for name in results for bound in ("low", "high")}
    for name, figure in results.items():
        better = "lowest" if figure.chance > 1 else "highest"  # a rank, or a share
        assert promised[f"evaluation/{name}"] == better


def test_only_what_is_configured_is_promised(data_set):
    assert figure_directions(EvaluationConfig()) == {}
    assert not asks_for_something(EvaluationConfig(every_steps=5))
    config = EvaluationConfig(retrieval_uri=data_set)
    assert asks_for_something(config)
    assert {name.split("/")[1].rpartition("_")[0] for name in figure_directions(config) if name.startswith("evaluation/")} == {
        "image_to_text", "text_to_image", "image_to_text_median", "text_to_image_median",
    }  # fmt: skip
