"""The model card: what is known of a model, and nothing else. tests/unit/jobs/test_export.py runs its Python blocks."""

import yaml

from jobs.reporting.model_card import Origin, card, package_versions
from model.clip import build_clip


def test_weights_of_unknown_origin_have_a_card_that_says_so():
    text = card(build_clip("debug-rn"), Origin("mine", "mine.pt"), ["a notice"])
    assert text.startswith("---\nlibrary_name: open_clip\n")
    assert "\n# mine\n" in text
    assert "Unknown: the weights were not trained by a run of RayCLIP." in text
    assert "No metrics were measured at this step." in text
    assert "CLIPModel" not in text, "transformers has no ResNets"
    assert "\na notice.\n" in text
    assert "## Recipe" not in text


def test_a_run_has_its_data_metrics_and_recipe_on_the_card():
    origin = Origin("run", "runs/run/checkpoints/step_00000003", step=3, samples_seen=96, is_average=True)
    known = {"data_sets": ({"uri": "data/a", "version": 2, "identity": "abc"},), "metrics": {"evaluation/r1": 0.25}}
    text = card(build_clip("debug-vit"), Origin(**(vars(origin) | known | {"config": {"train": {"seed": 7}}})), [])
    assert "| `data/a` | 2 | `abc` |" in text
    assert "| evaluation/r1 | 0.2500 |" in text
    assert "the moving average of its weights" in text
    assert "3 steps, 96 samples seen" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == {"train": {"seed": 7}}
    assert all(f"{name} {version}" in text for name, version in package_versions().items())


def test_what_a_figure_rests_on_is_said_below_the_results():
    metrics = {"evaluation/zero_shot_top1": 0.5, "evaluation_notes/zero_shot_top1": "names by position"}
    text = card(build_clip("debug-vit"), Origin("run", "runs/run", step=3, samples_seen=9, metrics=metrics), [])
    assert "| evaluation/zero_shot_top1 | 0.5000 |" in text
    assert "\nzero_shot_top1: names by position.\n" in text
    assert "evaluation_notes" not in text
