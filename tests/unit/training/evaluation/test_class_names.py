"""Classes and prompts have names, whatever they come from; what does not fit together is refused."""

import pytest

from pipeline.errors import ConfigError
from tests.support.evaluation_sets import NAMES, measure_zero_shot, refusal, write_benchmark
from tests.support.runs import ALONE
from training.config import ZeroShotConfig
from training.evaluation.class_names import read_classes, read_templates
from training.evaluation.evaluation_data import open_image_set


def test_class_names_come_in_the_folders_order_or_by_label_or_as_they_are(as_folders, tmp_path):
    source = open_image_set("evaluation.zero_shot.uri", as_folders, ALONE)
    path = tmp_path / "names.txt"
    for text, names in {
        "thin bar\nround disc\nring\nbox": ["thin bar", "round disc", "ring", "box"],
        "ring\tr\nbar\tb\nsquare\ts\ndisc\td": ["r", "b", "s", "d"],
        "square\nring\ndisc\nbar": ["square", "ring", "disc", "bar"],
    }.items():
        path.write_text(text)
        classes = read_classes(source, ZeroShotConfig(uri=as_folders, class_names_file=str(path)))
        assert list(classes.names) == names
        first = classes.names[classes.labels[0]]  # the first image is of the folder "bar"
        assert first == {"thin bar": "thin bar", "r": "b", "square": "bar"}[names[0]]
    assert read_templates(source, ZeroShotConfig(uri=as_folders)) == ("a photo of a {}.",)


def test_class_names_with_a_blank_line_are_refused_since_labels_count_lines(as_folders, tmp_path):
    (tmp_path / "names.txt").write_text("a\n\nb\nc\n")
    config = ZeroShotConfig(uri=as_folders, class_names_file=str(tmp_path / "names.txt"))
    with pytest.raises(ConfigError, match=r"names\.txt: line 2 is blank; write what belongs there"):
        read_classes(open_image_set("evaluation.zero_shot.uri", as_folders, ALONE), config)


def test_class_names_and_images_that_do_not_fit_together_are_refused(tmp_path, benchmark, data_set, as_folders, clip):
    root = tmp_path / "wds_shapes"
    (root / "classnames.txt").write_text("\n".join([*NAMES, "moon", "sun"]))
    message = refusal(zero_shot={"uri": benchmark})
    assert "2 of 8 class names have no image (moon, sun); remove them, or set " in message
    harder = measure_zero_shot(clip, benchmark, allow_empty_classes=True)
    assert harder["evaluation/zero_shot_chance"] == 1 / 8
    (root / "classnames.txt").write_text("\n".join(NAMES[:4]))
    message = refusal(zero_shot={"uri": benchmark})
    assert "16 samples are of classes without a name (4, 5); there are 4 class names" in message
    (root / "classnames.txt").unlink()
    assert "has no classnames.txt" in refusal(zero_shot={"uri": benchmark})
    names = tmp_path / "names.txt"
    names.write_text("disc\nring\nsquare")
    by_file = {"class_names_file": str(names)}
    assert "of classes without a name (bar)" in refusal(zero_shot={"uri": data_set, "label_column": "shape", **by_file})
    assert "holds 4 folders of images, but 3 class names were given" in refusal(zero_shot={"uri": as_folders, **by_file})
    assert "there is no such file" in refusal(zero_shot={"uri": as_folders, "class_names_file": str(tmp_path / "no.txt")})
    assert "evaluation.zero_shot.label_column: is empty" in refusal(zero_shot={"uri": data_set})
    assert "column colour" in refusal(zero_shot={"uri": data_set, "label_column": "colour"})


def test_templates_without_a_place_are_refused_wherever_they_come_from(tmp_path, benchmark):
    path = tmp_path / "wds_shapes" / "zeroshot_classification_templates.txt"
    path.write_text("a {c}\na photo\n")
    message = refusal(zero_shot={"uri": benchmark})
    assert message.startswith(f"evaluation.zero_shot.uri={benchmark}: {path.name}: template 'a photo': has no place")
    assert "templates_file=" in refusal(zero_shot={"uri": benchmark, "templates_file": str(path)})


def test_a_probe_on_classes_that_training_does_not_show_is_refused(benchmark, data_set, as_folders, tmp_path):
    probe = {"train_uri": as_folders, "test_uri": benchmark}
    assert "holds classes that evaluation.linear_probe.train_uri=" in refusal(linear_probe=probe)
    one = [{"jpg": b"x%d" % number, "cls": b"0"} for number in range(3)]
    probe = {"train_uri": write_benchmark(tmp_path / "one", one), "test_uri": benchmark}
    assert "all samples are of class 0" in refusal(linear_probe=probe)
