"""A whole model is evaluated alike on any number of ranks, in any batch size, and on the same images in any layout."""

import io
import shutil

import pytest
import torch
from PIL import Image

from model.preprocess import Preprocess
from model.tokenizer import tokenize
from pipeline.dataset.manifest import ManifestError, read_manifest
from pipeline.storage.address import open_storage
from tests.support.evaluation_sets import NAMES, TEMPLATES, measure_zero_shot, write_benchmark
from tests.support.runs import ALONE
from training.config import EvaluationConfig, LinearProbeConfig, ZeroShotConfig
from training.evaluation.runner import encode_data_set, evaluate, measure


def test_a_whole_models_figures_do_not_depend_on_the_number_of_ranks(results):
    alone = results[1]["evaluated"]
    assert {name for name in alone if name.startswith("evaluation/")} >= {
        *(f"evaluation/{way}_{what}" for way in ("image_to_text", "text_to_image") for what in ("r1", "r10", "median_rank")),
        *(f"evaluation/zero_shot_{what}" for what in ("top1", "top5", "mean_per_class", "chance")),
        *(f"evaluation/linear_probe_{what}" for what in ("top1", "mean_per_class", "log10_lambda")),
    }
    for world_size in (2, 3):
        assert results[world_size]["evaluated"] == pytest.approx(alone, abs=1e-9), world_size


@pytest.mark.usefixtures("one_thread")
def test_a_data_set_is_evaluated_alike_in_any_batch_size(data_set, clip):
    config = EvaluationConfig(
        batch_size=10, retrieval_uri=data_set, zero_shot=ZeroShotConfig(uri=data_set, label_column="shape", templates=("{}",))
    )
    metrics = evaluate(clip, config, ALONE)
    assert metrics == pytest.approx(evaluate(clip, config.model_copy(update={"batch_size": 64}), ALONE))
    assert metrics["evaluation/zero_shot_chance"] == 0.25
    assert metrics["evaluation_bounds/image_to_text_r1_chance"] == pytest.approx(1 / 64)


@pytest.mark.usefixtures("one_thread")
def test_class_folders_and_a_manifest_have_the_same_figures_for_the_same_images(data_set, as_folders, clip, tmp_path):
    ours = measure_zero_shot(clip, data_set, label_column="shape", templates=TEMPLATES)
    assert ours == pytest.approx(measure_zero_shot(clip, as_folders, templates=TEMPLATES))
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    assert ours == pytest.approx(measure_zero_shot(clip, as_folders, templates_file=str(tmp_path / "templates.txt")))
    for uri in (data_set, as_folders):
        probe = LinearProbeConfig(train_uri=uri, test_uri=uri, validation_uri=uri, label_column="shape")
        assert evaluate(clip, EvaluationConfig(linear_probe=probe), ALONE)["evaluation/linear_probe_top1"] == 1.0


def test_all_captions_of_a_image_are_right_from_tars_and_from_a_column(tmp_path, drawn_images, clip, data_set):
    lines = [
        (f"a {NAMES[label]} of place {place}", f"no. {place}", f"drawn {place} times")
        for place, (_, label) in enumerate(drawn_images)
    ]
    captions = [three[: place % 3 + 1] for place, three in enumerate(lines)]
    samples = [
        {"txt": ("\n".join(lines) + "\n\n").encode(), extension: image}
        for lines, ((extension, image), _) in zip(captions, drawn_images, strict=True)
    ]
    uri = write_benchmark(tmp_path / "wds_retrieval", samples, names=(), templates=(), kind="retrieval\n")
    found = evaluate(clip, EvaluationConfig(batch_size=7, retrieval_uri=uri), ALONE)
    preprocess = Preprocess(clip.architecture.image_size_px)
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(one))) for (_, one), _ in drawn_images])
        images = clip.encode_image(pixels, normalize=True)
        texts = clip.encode_text(tokenize([line for lines in captions for line in lines]), normalize=True)
    of = torch.arange(48).repeat_interleave(torch.tensor([len(lines) for lines in captions]))
    scores = (images @ texts.T).double()
    best = torch.stack([scores[place, of == place].max() for place in range(48)])
    worse = torch.stack([(scores[place, of != place] >= best[place]).sum() for place in range(48)])
    assert found["evaluation/image_to_text_r10"] == float((worse < 10).double().mean())
    assert found["evaluation_bounds/text_to_image_r1_chance"] == pytest.approx(1 / 48)
    of_columns = EvaluationConfig(retrieval_uri=data_set, retrieval_captions=("caption", "shape"))
    assert evaluate(clip, of_columns, ALONE)["evaluation_bounds/image_to_text_r1_chance"] == pytest.approx(2 / 128)


def test_an_evaluation_reports_that_it_is_alive_for_every_batch_and_fit(data_set, clip):
    heard = []
    probe = LinearProbeConfig(train_uri=data_set, test_uri=data_set, label_column="shape")
    for what, at_least in (({"retrieval_uri": data_set}, 8), ({"linear_probe": probe}, 2 * 8 + 15)):
        heard.clear()
        evaluate(clip, EvaluationConfig(batch_size=8, **what), ALONE, lambda: heard.append(1))
        assert len(heard) >= at_least, "for every batch, and every fit"


def test_a_caption_column_that_says_nothing_names_its_own_key(make_data_set, tmp_path, clip):
    uri = make_data_set(str(tmp_path / "some"), (5,))
    config = EvaluationConfig(retrieval_uri=uri, retrieval_captions=("json.none",))
    with pytest.raises(ValueError, match=r"no caption in json.none; name another place in evaluation.retrieval_captions"):
        evaluate(clip, config, ALONE)


def test_an_encoded_data_set_holds_each_pair_once_in_order_with_its_columns(data_set, clip):
    images, texts, columns = encode_data_set(clip, data_set, 7, ALONE, ("key", "caption", "shape"))
    assert len(set(columns["key"])) == len(images) == len(texts) == read_manifest(open_storage(data_set)).num_samples
    assert all(shape in caption for shape, caption in zip(columns["shape"], columns["caption"], strict=True))
    with torch.no_grad():
        expected = clip.encode_text(tokenize(columns["caption"]), normalize=True)
    torch.testing.assert_close(texts, expected)
    with pytest.raises(ManifestError, match=r"column colour: .*shape; name one of them"):
        encode_data_set(clip, data_set, 7, ALONE, ("colour",))


def test_class_folders_that_are_copies_are_said_beside_the_figures(as_folders, clip, tmp_path):
    root = tmp_path / "copied"
    shutil.copytree(as_folders, root)
    first = min(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    copied = sum(1 for _ in first.iterdir())
    probe = LinearProbeConfig(train_uri=str(root), test_uri=str(root), validation_uri=str(root))
    config = EvaluationConfig(zero_shot=ZeroShotConfig(uri=str(root), templates=TEMPLATES), linear_probe=probe)
    assert not any("equals in another class" in note for figure in measure(clip, config, ALONE) for note in figure.notes)
    shutil.copytree(first, root / f"{first.name} copy")
    for number, path in enumerate(sorted((root / f"{first.name} copy").iterdir())):
        path.rename(path.with_name(f"renamed-{number}{path.suffix}"))
    for figure in measure(clip, config, ALONE):
        notes = [note for note in figure.notes if "equals in another class" in note]
        assert len(notes) == (3 if figure.name.startswith("linear_probe") else 1), figure
        assert f"{2 * copied} of its " in notes[0]
        assert f"({first.name}, {first.name} copy)" in notes[0]
