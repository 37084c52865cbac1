"""An address is opened as what lies there, at one version; a configuration that names nothing to evaluate on is refused."""

import pytest

from tests.support.evaluation_sets import NAMES, refusal, write_benchmark
from tests.support.runs import ALONE
from training.config import EvaluationConfig, LinearProbeConfig, ZeroShotConfig
from training.evaluation.evaluation_data import open_evaluation, open_image_set


def test_a_configuration_is_opened_as_image_sets_with_classes_templates_and_labels(data_set, benchmark, as_folders):
    probe = LinearProbeConfig(train_uri=as_folders, test_uri=data_set, label_column="shape")
    config = EvaluationConfig(retrieval_uri=data_set, zero_shot=ZeroShotConfig(uri=benchmark), linear_probe=probe)
    data = open_evaluation(config, ALONE)
    assert (data.retrieval.num_samples, data.zero_shot.images.num_samples) == (64, 48)
    assert data.zero_shot.classes.names == NAMES
    assert data.zero_shot.templates[0] == "a {c}"
    assert sorted(data.linear_probe.train.labels) == sorted(data.linear_probe.test.labels)
    assert set(data.linear_probe.train.labels) == {0, 1, 2, 3}
    assert data.linear_probe.validation is None
    nothing = open_evaluation(EvaluationConfig(), ALONE)
    assert (nothing.retrieval, nothing.zero_shot, nothing.linear_probe) == (None, None, None)


def test_an_evaluation_is_of_the_newest_version_when_it_begins(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (20,))
    before = open_image_set("evaluation.retrieval_uri", uri, ALONE, captions=("caption",))
    make_data_set(uri, (13,), seed=2)
    assert (before.num_samples, len(before.read(0, 40))) == (20, 20), "an image set that is open keeps its version"
    after = open_image_set("evaluation.retrieval_uri", uri, ALONE, captions=("caption",))
    assert (after.num_samples, len(after.read(0, 40))) == (33, 33)


def test_addresses_that_hold_nothing_to_evaluate_on_are_refused(tmp_path, benchmark, as_folders):
    (tmp_path / "empty").mkdir()
    assert "holds no data set of ours (manifests/), no tars" in refusal(retrieval_uri=str(tmp_path / "empty"))
    assert "evaluation.zero_shot.uri=" in refusal(zero_shot={"uri": str(tmp_path / "none")})
    assert "without captions" in refusal(retrieval_uri=as_folders)
    assert "has no captions (.txt, one per line)" in refusal(retrieval_uri=benchmark)
    write_benchmark(tmp_path / "train_only", [{"jpg": b"x", "cls": b"0"}] * 3, split="train")
    assert "holds tars in train, none in test; name " in refusal(zero_shot={"uri": str(tmp_path / "train_only")})
    write_benchmark(tmp_path / "nothing", [])
    assert "the data set holds no samples" in refusal(zero_shot={"uri": str(tmp_path / "nothing")})


def test_templates_without_a_place_and_probes_without_test_data_are_refused():
    with pytest.raises(ValueError, match="has no place for the class name"):
        ZeroShotConfig(uri="x", label_column="y", templates=("a photo",))
    with pytest.raises(ValueError, match="give one of the two"):
        ZeroShotConfig(uri="x", templates=("a {}",), templates_file="y")
    with pytest.raises(ValueError, match="test_uri"):
        LinearProbeConfig(train_uri="x")


def test_a_probe_that_is_tested_on_its_training_images_has_a_note(data_set, as_folders, tmp_path):
    (tmp_path / "link").symlink_to(as_folders)
    note = "test_uri is train_uri, whose images the probe has seen"
    for test, seen in ((as_folders, True), (f"{as_folders}/", True), (str(tmp_path / "link"), True), (data_set, False)):
        probe = LinearProbeConfig(train_uri=as_folders, test_uri=test, label_column="shape")
        assert (note in open_evaluation(EvaluationConfig(linear_probe=probe), ALONE).linear_probe.notes) == seen
