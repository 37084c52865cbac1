"""Three kinds of data sets under one form of address, with the same figures for the same pictures, and clear refusals."""

import io
import tarfile

import pytest
import torch
from PIL import Image

from model.clip import build_clip
from model.preprocess import Preprocess
from model.tokenizer import tokenize
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.storage.address import open_storage
from training.config import EvaluationConfig, LinearProbeConfig, ZeroShotConfig
from training.data.shard_reader import ShardReader
from training.distributed import World
from training.evaluation.inputs import open_source, read_classes, read_templates
from training.evaluation.runner import check_evaluation, evaluate

ALONE = World(0, 1, torch.device("cpu"))
NAMES = ("disc", "square", "bar", "ring", "cross", "star")
TEMPLATES = ("a {c}", "a drawing of a {c}.", "{c}, drawn by hand")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(3)
    return build_clip("debug-vit").eval()


@pytest.fixture(scope="module")
def pictures(draw_shape):
    """(picture, number of its class), 48 of them in no order."""
    colours, shapes = ("red", "green", "blue", "yellow"), ("disc", "square", "bar", "ring")
    drawn = [(draw_shape(colours[place % 4], shapes[place * 7 % 4], place), place * 5 % 6) for place in range(48)]
    return [(converted(picture, ("webp", "png", "jpg")[place % 3]), label) for place, (picture, label) in enumerate(drawn)]


def converted(picture: bytes, extension: str) -> tuple[str, bytes]:
    file = io.BytesIO()
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}, "png": {}}[extension]
    Image.open(io.BytesIO(picture)).save(file, "JPEG" if extension == "jpg" else extension, **options)
    return extension, file.getvalue()


def write_tar(path, samples) -> None:
    """Samples are dictionaries of members by extension, as webdataset's writer puts them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"s{number:07d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_benchmark(root, samples, split="test", names=NAMES, templates=TEMPLATES, kind="") -> str:
    """A data set in the clip-benchmark community's layout, in three tars."""
    third = -(-len(samples) // 3)
    for number in range(3):
        write_tar(root / split / f"{number}.tar", samples[number * third : (number + 1) * third])
    (root / split / "nshards.txt").write_text("3\n")
    for name, lines in (("classnames.txt", names), ("zeroshot_classification_templates.txt", templates)):
        if lines:
            (root / name).write_text("\n".join(lines) + "\n")
    if kind:
        (root / "dataset_type.txt").write_text(kind)
    return str(root)


@pytest.fixture
def benchmark(tmp_path, pictures):
    return write_benchmark(
        tmp_path / "wds_shapes", [{extension: picture, "cls": str(label).encode()} for (extension, picture), label in pictures]
    )


def zero_shot(clip, uri, **settings):
    return evaluate(clip, EvaluationConfig(batch_size=10, zero_shot=ZeroShotConfig(uri=uri, **settings)), ALONE)


def test_a_clip_benchmark_data_set_has_open_clips_own_accuracy_on_the_same_weights(benchmark, pictures, clip, monkeypatch):
    import open_clip
    import open_clip_train.zero_shot as peers

    # NumPy makes no number of an array of one any more, which open_clip 3.3.0 counts on.
    monkeypatch.setattr(peers, "float", lambda array: array.item(), raising=False)

    peer = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    ).eval()
    peer.load_state_dict(clip.state_dict(), strict=False)
    templates = [template.replace("{c}", "{}") for template in TEMPLATES]
    classifier = open_clip.build_zero_shot_classifier(peer, open_clip.get_tokenizer("ViT-B-32"), NAMES, templates)
    preprocess = Preprocess(clip.architecture.image_size_px)
    images = torch.stack([preprocess(Image.open(io.BytesIO(picture))) for (_, picture), _ in pictures])
    with torch.no_grad():
        logits = 100.0 * peer.encode_image(images, normalize=True) @ classifier
    labels = torch.tensor([label for _, label in pictures])
    top1, top5 = (hits / len(labels) for hits in peers.accuracy(logits, labels, topk=(1, 5)))
    found = zero_shot(clip, benchmark)
    assert (found["evaluation/zero_shot_top1"], found["evaluation/zero_shot_top5"]) == (top1, top5)
    recalls = [(logits.argmax(1) == labels)[labels == label].double().mean() for label in range(6)]
    assert found["evaluation/zero_shot_mean_per_class"] == pytest.approx(float(torch.stack(recalls).mean()))
    assert 0 < top1 < 1


def test_a_split_that_is_named_itself_finds_the_names_above_it(benchmark, clip):
    assert zero_shot(clip, f"{benchmark}/test") == zero_shot(clip, benchmark)


def test_tars_in_object_storage_are_read_like_those_on_a_disk(benchmark, bucket, clip):
    storage, local = open_storage(f"{bucket}/wds"), open_storage(benchmark)
    for item in local.list(""):
        storage.write(item.path, local.read(item.path))
    assert zero_shot(clip, f"{bucket}/wds") == zero_shot(clip, benchmark)
    assert zero_shot(clip, f"{bucket}/wds/test") == zero_shot(clip, benchmark)


@pytest.fixture
def as_folders(data_set, tmp_path):
    """The pictures of a data set of ours, in a folder for each class; a hidden folder and a note among them."""
    storage = open_storage(data_set)
    manifest = read_manifest(storage)
    reader, number = ShardReader(storage, manifest), 0
    for shard, record in enumerate(manifest.shards):
        shapes = reader.columns(shard, ["shape"])["shape"].to_pylist()
        for sample, shape in zip(reader.read(shard, 0, record.num_samples), shapes, strict=True):
            folder = tmp_path / "folders" / shape
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:04d}.PNG").write_bytes(sample.image)
            number += 1
    (tmp_path / "folders" / ".cache").mkdir()
    (tmp_path / "folders" / ".cache" / "0.png").write_bytes(b"")
    (tmp_path / "folders" / "README.md").write_text("shapes")
    return str(tmp_path / "folders")


def test_class_folders_and_a_manifest_have_the_same_figures_for_the_same_pictures(data_set, as_folders, clip, tmp_path):
    ours = zero_shot(clip, data_set, label_column="shape", templates=TEMPLATES)
    assert ours == pytest.approx(zero_shot(clip, as_folders, templates=TEMPLATES))
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    assert ours == pytest.approx(zero_shot(clip, as_folders, templates_file=str(tmp_path / "templates.txt")))
    for uri in (data_set, as_folders):
        probe = LinearProbeConfig(train_uri=uri, test_uri=uri, validation_uri=uri, label_column="shape")
        assert evaluate(clip, EvaluationConfig(linear_probe=probe), ALONE)["evaluation/linear_probe_top1"] == 1.0


def test_an_evaluation_is_of_the_newest_version_when_it_begins(make_data_set, tmp_path):
    uri = make_data_set(str(tmp_path / "set"), (20,))
    before = open_source("evaluation.retrieval_uri", uri, ALONE, captions=("caption",))
    make_data_set(uri, (13,), seed=2)
    assert (before.num_samples, len(before.read(0, 40))) == (20, 20), "one that has begun stays with its version"
    after = open_source("evaluation.retrieval_uri", uri, ALONE, captions=("caption",))
    assert (after.num_samples, len(after.read(0, 40))) == (33, 33)


def test_class_names_come_in_the_folders_order_or_by_label_or_as_they_are(as_folders, tmp_path):
    source = open_source("evaluation.zero_shot.uri", as_folders, ALONE)
    path = tmp_path / "names.txt"
    for text, names in {
        "thin bar\nround disc\nring\nbox": ["thin bar", "round disc", "ring", "box"],
        "ring\tr\nbar\tb\nsquare\ts\ndisc\td": ["r", "b", "s", "d"],
        "square\nring\ndisc\nbar": ["square", "ring", "disc", "bar"],
    }.items():
        path.write_text(text)
        classes = read_classes(source, ZeroShotConfig(uri=as_folders, class_names_file=str(path)))
        assert list(classes.names) == names
        first = classes.names[classes.labels[0]]  # the first picture is of the folder "bar"
        assert first == {"thin bar": "thin bar", "r": "b", "square": "bar"}[names[0]]
    assert read_templates(source, ZeroShotConfig(uri=as_folders)) == ("a photo of a {}.",)


def test_all_captions_of_a_picture_are_right_from_tars_and_from_a_column(tmp_path, pictures, clip, data_set):
    lines = [
        (f"a {NAMES[label]} of place {place}", f"no. {place}", f"drawn {place} times")
        for place, (_, label) in enumerate(pictures)
    ]
    captions = [three[: place % 3 + 1] for place, three in enumerate(lines)]
    samples = [
        {"txt": ("\n".join(lines) + "\n\n").encode(), extension: picture}
        for lines, ((extension, picture), _) in zip(captions, pictures, strict=True)
    ]
    uri = write_benchmark(tmp_path / "wds_retrieval", samples, names=(), templates=(), kind="retrieval\n")
    found = evaluate(clip, EvaluationConfig(batch_size=7, retrieval_uri=uri), ALONE)
    preprocess = Preprocess(clip.architecture.image_size_px)
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(one))) for (_, one), _ in pictures])
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


# -------------------------------------------------------------------------------------------------------------- bad input


def test_class_names_with_a_blank_line_are_refused_since_labels_count_lines(as_folders, tmp_path):
    (tmp_path / "names.txt").write_text("a\n\nb\nc\n")
    config = ZeroShotConfig(uri=as_folders, class_names_file=str(tmp_path / "names.txt"))
    with pytest.raises(ConfigError, match=r"names\.txt: line 2 is blank; write what belongs there"):
        read_classes(open_source("evaluation.zero_shot.uri", as_folders, ALONE), config)


def test_an_evaluation_says_again_and_again_that_it_goes_on(data_set, clip):
    heard = []
    probe = LinearProbeConfig(train_uri=data_set, test_uri=data_set, label_column="shape")
    for what, at_least in (({"retrieval_uri": data_set}, 8), ({"linear_probe": probe}, 2 * 8 + 15)):
        heard.clear()
        evaluate(clip, EvaluationConfig(batch_size=8, **what), ALONE, lambda: heard.append(1))
        assert len(heard) >= at_least, "for every batch, and every fit"


def refusal(**settings) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is what is looked at)
        check_evaluation(EvaluationConfig(**settings))
    return str(error.value)


def test_addresses_that_hold_nothing_to_evaluate_on_are_refused(tmp_path, benchmark, as_folders):
    (tmp_path / "empty").mkdir()
    assert "holds no data set of ours (manifests/), no tars" in refusal(retrieval_uri=str(tmp_path / "empty"))
    assert "evaluation.zero_shot.uri=" in refusal(zero_shot={"uri": str(tmp_path / "none")})
    assert "without captions" in refusal(retrieval_uri=as_folders)
    assert "has no captions (.txt, one a line)" in refusal(retrieval_uri=benchmark)
    write_benchmark(tmp_path / "train_only", [{"jpg": b"x", "cls": b"0"}] * 3, split="train")
    assert "holds tars in train, none in test; name " in refusal(zero_shot={"uri": str(tmp_path / "train_only")})
    write_benchmark(tmp_path / "nothing", [])
    assert "the data set holds no samples" in refusal(zero_shot={"uri": str(tmp_path / "nothing")})


def test_class_names_and_pictures_that_do_not_fit_together_are_refused(tmp_path, benchmark, data_set, as_folders, clip):
    root = tmp_path / "wds_shapes"
    (root / "classnames.txt").write_text("\n".join([*NAMES, "moon", "sun"]))
    message = refusal(zero_shot={"uri": benchmark})
    assert "2 of 8 class names have no picture (moon, sun); take them out, or set " in message
    harder = zero_shot(clip, benchmark, allow_empty_classes=True)
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
    assert "holds 4 folders of pictures, and 3 class names were given" in refusal(zero_shot={"uri": as_folders, **by_file})
    assert "there is no such file" in refusal(zero_shot={"uri": as_folders, "class_names_file": str(tmp_path / "no.txt")})
    assert "evaluation.zero_shot.label_column: is empty" in refusal(zero_shot={"uri": data_set})
    assert "column colour" in refusal(zero_shot={"uri": data_set, "label_column": "colour"})


def test_templates_without_a_place_are_refused_wherever_they_come_from(tmp_path, benchmark):
    path = tmp_path / "wds_shapes" / "zeroshot_classification_templates.txt"
    path.write_text("a {c}\na photo\n")
    message = refusal(zero_shot={"uri": benchmark})
    assert message.startswith(f"evaluation.zero_shot.uri={benchmark}: {path.name}: template 'a photo' has no place")
    assert "templates_file=" in refusal(zero_shot={"uri": benchmark, "templates_file": str(path)})


def test_broken_tars_are_refused(tmp_path, pictures):
    (extension, picture), _ = pictures[0]
    good = {extension: picture, "cls": b"0"}

    def written(name, sample, **options):
        return write_benchmark(tmp_path / name, [good, good, sample], names=("a",), **options)

    assert "has the label 'cat', and .cls holds the number" in refusal(zero_shot={"uri": written("a", {**good, "cls": b"cat"})})
    assert "has the label None" in refusal(zero_shot={"uri": written("b", {extension: picture})})
    assert "has no picture" in refusal(zero_shot={"uri": written("c", {"cls": b"0"})})
    assert "is for retrieval" in refusal(zero_shot={"uri": written("d", good, kind="retrieval")})
    assert "says multilabel" in refusal(zero_shot={"uri": written("e", good, kind="multilabel")})
    root = tmp_path / "f"
    uri = written("f", good)
    (root / "test" / "nshards.txt").write_text("5")
    assert "nshards.txt says 5, and test/3.tar is not there" in refusal(zero_shot={"uri": uri})
    (root / "test" / "nshards.txt").write_text("3")
    cut = (root / "test" / "2.tar").read_bytes()[: 512 + len(picture) // 2]
    (root / "test" / "2.tar").write_bytes(cut)
    assert "is no whole tar" in refusal(zero_shot={"uri": uri})
    (root / "test" / "2.tar").write_bytes(b"no tar" * 1000)
    assert "is no whole tar" in refusal(zero_shot={"uri": uri})


def test_a_probe_on_classes_that_training_does_not_show_is_refused(benchmark, data_set, as_folders, tmp_path):
    probe = {"train_uri": as_folders, "test_uri": benchmark}
    assert "holds classes that evaluation.linear_probe.train_uri=" in refusal(linear_probe=probe)
    one = [{"jpg": b"x", "cls": b"0"}] * 3
    probe = {"train_uri": write_benchmark(tmp_path / "one", one), "test_uri": benchmark}
    assert "all samples are of class 0" in refusal(linear_probe=probe)


def test_a_caption_column_that_says_nothing_names_its_own_key(make_data_set, tmp_path, clip):
    uri = make_data_set(str(tmp_path / "some"), (5,))
    config = EvaluationConfig(retrieval_uri=uri, retrieval_captions=("json.none",))
    with pytest.raises(ValueError, match=r"no caption in json.none; name another place in evaluation.retrieval_captions"):
        evaluate(clip, config, ALONE)
