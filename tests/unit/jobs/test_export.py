"""Exports give the same features in open_clip and in transformers as here, and come back bit-equal."""

import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from jobs import evaluate, export
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from jobs.export import publish, staged, write_export
from jobs.reporting.model_card import Origin
from model.preprocess import STD
from model.tokenizer import tokenize
from model.weights import load_clip
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from tests.support.models import Archive, blobs, random_clip
from tests.support.runs import ALONE, config_of
from tests.support.wandb_file import artifacts_of
from training.checkpoint.initial_weights import local_weights
from training.evaluation import runner
from training.trainer import train

CAPTIONS = ["a diagram", "two dogs on a beach,  one of them asleep", "It's 2021, and Rock & Roll!", "", "word " * 100]
CASES = {
    "vit_quick_gelu": ("debug-vit", {}),
    "vit_gelu": ("debug-vit", {"activation": "gelu"}),
    "vit_siglip_48px": ("debug-vit", {"has_logit_bias": True, "image_size_px": 48}),
    "vit_24_tokens": ("debug-vit", {"context_length": 24}),
    "resnet_quick_gelu": ("debug-rn", {}),
    "resnet_gelu_96px": ("debug-rn", {"activation": "gelu", "image_size_px": 96, "has_logit_bias": True}),
    "demo": ("demo", {}),
}
VITS = [name for name in CASES if name.startswith("vit")]
NAMED = [name for name in CASES if name != "vit_24_tokens"]
"""Those that a row of model/config.py describes."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """name -> (folder, model, what a person is told) of every case."""
    made = {}
    for name, (architecture, fields) in CASES.items():
        clip = random_clip(architecture, **fields)
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, clip, write_export(folder, clip, Origin(name, "a test")))
    return made


@pytest.fixture(scope="module")
def pictures():
    """Of several shapes and modes: noise that was enlarged, as smooth as photographs are."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    sizes = ((64, 64), (120, 80), (50, 333))
    smooth = [Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC) for size in sizes]
    return [*smooth, smooth[0].convert("L")]


def features_of(clip, texts):
    images = blobs(clip.architecture.image_size_px)
    with torch.no_grad():
        return images, clip.encode_image(images, normalize=True), clip.encode_text(texts, normalize=True)


def assert_close(ours, theirs):
    assert float((ours[0] - ours[1]).abs().max()) > 1e-2, "features that are all the same prove nothing"
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_open_clip_computes_the_same_features(exports, name):
    import open_clip

    folder, clip, _ = exports[name]
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    texts = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    assert torch.equal(texts, tokenize(CAPTIONS, clip.architecture.context_length))
    images, image_features, text_features = features_of(clip, texts)
    with torch.no_grad():
        assert_close(image_features, model.eval().encode_image(images, normalize=True))
        assert_close(text_features, model.encode_text(texts, normalize=True))
    assert torch.equal(model.logit_scale, clip.logit_scale)
    assert (model.logit_bias is None) == (clip.logit_bias is None)
    if clip.logit_bias is not None:
        assert torch.equal(model.logit_bias, clip.logit_bias)
        assert model.logit_bias.item() != 0


@pytest.mark.parametrize("name", VITS)
def test_transformers_computes_the_same_features(exports, name):
    from transformers import CLIPModel, CLIPProcessor

    folder, clip, notices = exports[name]
    model = CLIPModel.from_pretrained(folder / "hf").eval()
    processor = CLIPProcessor.from_pretrained(folder / "hf")
    inputs = processor(text=CAPTIONS, padding=True, truncation=True, return_tensors="pt")
    texts = tokenize(CAPTIONS, clip.architecture.context_length)
    images, image_features, text_features = features_of(clip, texts)
    with torch.no_grad():
        found = model(**inputs, pixel_values=images)
    assert_close(image_features, found.image_embeds)
    assert_close(text_features, found.text_embeds)
    assert torch.equal(model.logit_scale, clip.logit_scale)
    assert any("logit_bias" in notice for notice in notices) == (clip.logit_bias is not None)


def test_the_other_activation_would_have_been_noticed(exports):
    _, image_features, text_features = features_of(exports["vit_quick_gelu"][1], tokenize(CAPTIONS))
    _, other_images, other_texts = features_of(exports["vit_gelu"][1], tokenize(CAPTIONS))
    assert float((image_features - other_images).abs().max()) > 1e-3
    assert float((text_features - other_texts).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["vit_quick_gelu", "vit_siglip_48px", "resnet_gelu_96px", "demo"])
def test_pictures_and_captions_are_prepared_as_here(exports, pictures, name):
    import open_clip
    from transformers import CLIPProcessor

    folder, clip, _ = exports[name]
    _, preprocess, tokens_of = load_clip(clip.architecture.name, folder)
    ours = torch.stack([preprocess(picture) for picture in pictures])
    two_levels = 2.01 / 255 / min(STD)  # open_clip resizes with Pillow
    _, their_preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    torch.testing.assert_close(torch.stack([their_preprocess(one) for one in pictures]), ours, rtol=0, atol=two_levels)
    texts = tokens_of(CAPTIONS)
    assert texts.shape[1] == clip.architecture.context_length
    if name not in VITS:
        return
    processor = CLIPProcessor.from_pretrained(folder / "hf")
    inputs = processor(text=CAPTIONS, images=pictures, padding="max_length", truncation=True, return_tensors="pt")
    theirs = inputs["pixel_values"]
    if clip.architecture.image_size_px == 48:  # the tall picture's 319 pixels leave 135.5 on either side: it takes 135, we 136
        assert float((theirs[2] - ours[2]).abs().max()) > two_levels
        theirs[2, :, :-1] = theirs[2, :, 1:].clone()
        theirs[2, :, -1] = ours[2, :, -1]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=two_levels)
    for row, theirs in zip(texts.tolist(), inputs["input_ids"].tolist(), strict=True):
        end = row.index(49407) + 1
        assert theirs[:end] == row[:end]
        assert set(theirs[end:]) <= {49407}  # what it pads with, where ours has zeros


@pytest.mark.parametrize("name", NAMED)
def test_every_export_comes_back_bit_equal_with_its_activation(exports, name):
    folder, clip, _ = exports[name]
    sources = [folder, folder / "open_clip_model.safetensors"] + ([folder / "hf"] if name in VITS else [])
    for source in sources:
        back, preprocess, _ = load_clip(clip.architecture.name, source)
        assert_same(clip, back, {"logit_bias"} if source.name == "hf" else set())
        assert back.architecture.activation == clip.architecture.activation
        assert preprocess.size_px == clip.architecture.image_size_px


@pytest.mark.parametrize("name", ["vit_gelu", "resnet_quick_gelu"])
def test_what_open_clip_saves_of_an_export_comes_back_bit_equal(exports, name, tmp_path):
    import open_clip

    folder, clip, _ = exports[name]
    model = open_clip.create_model(f"local-dir:{folder}")
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    back, _, _ = load_clip(clip.architecture.name, tmp_path)
    assert_same(clip, back)
    assert back.architecture.activation == clip.architecture.activation
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "epoch_3.pt")  # as its trainer does
    assert_same(clip, load_clip(clip.architecture.name, tmp_path / "epoch_3.pt", clip.architecture.activation)[0])


@pytest.mark.parametrize("name", ["vit_quick_gelu", "vit_gelu"])
def test_what_transformers_saves_of_an_export_comes_back_bit_equal(exports, name, tmp_path):
    from transformers import CLIPModel, CLIPProcessor

    folder, clip, _ = exports[name]
    model = CLIPModel.from_pretrained(folder / "hf")
    model.save_pretrained(tmp_path / "saved")
    CLIPProcessor.from_pretrained(folder / "hf").save_pretrained(tmp_path / "saved")
    back, _, _ = load_clip("debug-vit", tmp_path / "saved")
    assert_same(clip, back)
    assert back.architecture.activation == clip.architecture.activation
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # as older versions did
    (tmp_path / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
    assert_same(clip, load_clip("debug-vit", tmp_path / "pytorch_model.bin")[0])


def assert_same(clip, back, lost=frozenset()):
    state = {key: value for key, value in clip.state_dict().items() if key not in lost}
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())


def test_the_cards_python_runs_in_the_exports_folder(exports, monkeypatch):
    folder, clip, _ = exports["vit_quick_gelu"]
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict = {}
        exec(block, names)
        module = getattr(names["model"], "clip", names["model"])
        assert sum(one.numel() for one in module.parameters()) == sum(one.numel() for one in clip.parameters())


@pytest.fixture(scope="module")
def trained(data_set, tmp_path_factory):
    """A short run that was evaluated, and its checkpoint's folder."""
    folder = tmp_path_factory.mktemp("trained")
    result = train(config_of(data_set, folder, f"evaluation.retrieval_uri={data_set}", "tracking.wandb_mode=offline"), ALONE)
    return folder, folder / "debug_cpu" / result.checkpoint


def call(job, *arguments):
    return run(job.arguments(), job.job, [str(one) for one in arguments])


def test_a_run_becomes_a_folder_with_its_data_recipe_results_and_versions(trained, data_set, tmp_path, capsys):
    folder, checkpoint = trained
    output = tmp_path / "exports" / "first"
    assert call(export, f"run.dir={folder}", "run.name=debug_cpu", "--output", output) == 0
    assert str(output) in capsys.readouterr().out
    written = json.loads((checkpoint / "checkpoint.json").read_text())
    record = json.loads((output / "export.json").read_text())
    assert record["origin"]["data_sets"] == written["data_sets"]
    assert record["origin"]["metrics"] == written["metrics"]
    assert record["origin"]["step"] == 12
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert set(record["files"]) == files - {"export.json"}
    card = (output / "README.md").read_text()
    data = written["data_sets"][0]
    for piece in (data["uri"], data["identity"], "12 steps", f"torch {torch.__version__.split('+')[0]}", "quick_gelu"):
        assert piece in card
    for name, value in written["metrics"].items():
        assert (value if isinstance(value, str) else f"| {name} | {value:.4f} |") in card
    assert "evaluation/image_to_text_r1" in card
    recipe = re.search(r"```yaml\n(.*?)```", card, flags=re.DOTALL)
    assert yaml.safe_load(recipe.group(1)) == written["config"]
    back, _, _ = load_clip("debug-vit", output)
    assert_same(back, load_clip("debug-vit", checkpoint / "model.safetensors")[0])
    *_, last = sorted((folder / "debug_cpu").glob("wandb/offline-run-*/*.wandb"))
    (model,) = artifacts_of(last)
    assert (model["type"], model["used"]) == ("model", False)
    assert model["metadata"]["sha256"] == record["files"]["open_clip_model.safetensors"]["sha256"]


def test_an_export_is_replaced_only_when_that_is_asked_for_and_other_things_never(trained, tmp_path, capsys):
    _, checkpoint = trained
    source, output = ("--checkpoint", checkpoint), tmp_path / "out"
    assert call(export, *source, "--output", output) == 0
    (output / "hf" / "config.json").unlink()
    assert call(export, *source, "--output", output) == EXIT_BAD_INPUT
    assert f"--output={output}: holds an export already; choose another folder or pass --overwrite" in capsys.readouterr().err
    assert call(export, *source, "--output", output, "--overwrite") == 0
    assert (output / "hf" / "config.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for place, message in (
        ("mine", "holds other files"),
        ("mine/thesis.txt", "is a file"),
        ("mine/thesis.txt/x", "cannot be"),
    ):
        assert call(export, *source, "--output", tmp_path / place, "--overwrite") == EXIT_BAD_INPUT
        assert message in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"], "nothing half-written is left"


def test_what_fails_on_the_way_leaves_the_export_that_was_there(trained, tmp_path):
    output = tmp_path / "out"
    assert call(export, "--checkpoint", trained[1], "--output", output) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    target = open_storage(str(output))
    with pytest.raises(ConfigError, match="cannot be written"), staged(target) as folder:
        (folder / "open_clip_model.safetensors" / "below").write_bytes(b"half")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == [output]
    with staged(target) as folder:
        (folder / "whole").write_bytes(b"new")
        publish(folder, target)
    assert [path.name for path in output.iterdir()] == ["whole"]


def test_weights_are_exported_too_and_evaluated_from_their_folder(data_set, exports, tmp_path, capsys):
    clip = exports["vit_gelu"][1]
    torch.save(clip.state_dict(), tmp_path / "foreign.pt")
    source = ("--weights", tmp_path / "foreign.pt", "model.name=debug-vit")
    assert call(export, *source, "--output", tmp_path / "out") == EXIT_BAD_INPUT
    assert "does not say which one" in capsys.readouterr().err
    assert call(export, *source, "--activation", "gelu", "--output", tmp_path / "out") == 0
    figures = {}
    evaluation = config_of(data_set, tmp_path, f"evaluation.retrieval_uri={data_set}").evaluation
    figures["here"] = runner.evaluate(clip, evaluation, ALONE)
    for name, weights in {"ours": tmp_path / "out", "theirs": tmp_path / "out" / "hf"}.items():
        told = ("--weights", weights, "model.name=debug-vit", f"evaluation.retrieval_uri={data_set}")
        assert call(evaluate, *told, "train.device=cpu", "--json", tmp_path / "figures.json") == 0
        figures[name] = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ours"] == figures["theirs"]
    numbers = {key: value for key, value in figures["here"].items() if not isinstance(value, str)}
    assert all(math.isclose(figures["ours"][key], value) for key, value in numbers.items())
    assert {*figures["here"]} - {*numbers} == {key for key in figures["here"] if key.startswith("evaluation_notes/")}
    assert call(evaluate, *("--weights", tmp_path / "out", "model.name=debug-rn", f"evaluation.retrieval_uri={data_set}")) == 2
    assert "its model.name is debug-vit" in capsys.readouterr().err


def test_an_export_in_object_storage_is_whole_and_comes_back(trained, bucket, tmp_path, capsys):
    _, checkpoint = trained
    output = f"{bucket}/exports/first"
    assert call(export, "--checkpoint", checkpoint, "--output", output) == 0
    target = open_storage(output)
    names = {item.path for item in target.list("")}
    assert {"README.md", "export.json", "open_clip_model.safetensors", "hf/vocab.json"} <= names
    assert call(export, "--checkpoint", checkpoint, "--output", output) == EXIT_BAD_INPUT
    target.delete("export.json")  # as one that was killed is left
    target.write("hf/of_an_older_one.json", b"")
    assert call(export, "--checkpoint", checkpoint, "--output", output) == 0
    assert {item.path for item in target.list("")} == names
    for source in (output, f"{output}/hf", f"{output}/open_clip_model.safetensors"):
        with local_weights(source) as path:
            assert_same(load_clip("debug-vit", path)[0], load_clip("debug-vit", checkpoint / "model.safetensors")[0])
    capsys.readouterr()
    assert call(export, "--weights", f"{bucket}/none", "model.name=debug-vit", "--output", tmp_path / "x") == EXIT_BAD_INPUT
    assert f"weights={bucket}/none: there is no such object" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_archive_becomes_an_export_only_with_the_flag_or_the_key(tmp_path, capsys):
    clip = random_clip("debug-vit")
    torch.jit.script(Archive(clip)).save(str(tmp_path / "archive.pt"))
    source = ("--weights", tmp_path / "archive.pt", "--activation", "quick_gelu", "model.name=debug-vit")
    assert call(export, *source, "--output", tmp_path / "no") == EXIT_BAD_INPUT
    assert "is a TorchScript archive" in capsys.readouterr().err
    for name, allowed in {"flag": "--allow-torchscript", "key": "model.allow_torchscript=true"}.items():
        assert call(export, *source, allowed, "--output", tmp_path / name) == 0
        assert_same(clip.half().float(), load_clip("debug-vit", tmp_path / name)[0])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_published_sizes_compute_the_same_features_in_the_other_tools(name, tmp_path):
    import open_clip
    from transformers import CLIPModel

    clip = random_clip(name)
    write_export(tmp_path, clip, Origin(name, "a test"))
    texts = tokenize(CAPTIONS)
    images, image_features, text_features = features_of(clip, texts)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        assert_close(image_features, model.encode_image(images, normalize=True))
        assert_close(text_features, model.encode_text(texts, normalize=True))
        if name.startswith("ViT"):
            found = CLIPModel.from_pretrained(tmp_path / "hf").eval()(input_ids=texts, pixel_values=images)
            assert_close(image_features, found.image_embeds)
            assert_close(text_features, found.text_embeds)
