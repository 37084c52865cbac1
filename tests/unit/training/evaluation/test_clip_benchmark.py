"""Tars of the clip-benchmark community are read as they are, and refused if they are broken."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.preprocess import Preprocess
from pipeline.storage.address import open_storage
from tests.support.evaluation_sets import NAMES, TEMPLATES, measure_zero_shot, refusal, write_benchmark
from tests.support.runs import ALONE
from training.evaluation.evaluation_data import open_image_set


def test_a_clip_benchmark_data_set_has_open_clips_own_accuracy_on_the_same_weights(benchmark, drawn_images, clip, monkeypatch):
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
    images = torch.stack([preprocess(Image.open(io.BytesIO(image))) for (_, image), _ in drawn_images])
    with torch.no_grad():
        logits = 100.0 * peer.encode_image(images, normalize=True) @ classifier
    labels = torch.tensor([label for _, label in drawn_images])
    top1, top5 = (hits / len(labels) for hits in peers.accuracy(logits, labels, topk=(1, 5)))
    found = measure_zero_shot(clip, benchmark)
    assert (found["evaluation/zero_shot_top1"], found["evaluation/zero_shot_top5"]) == (top1, top5)
    recalls = [(logits.argmax(1) == labels)[labels == label].double().mean() for label in range(6)]
    assert found["evaluation/zero_shot_mean_per_class"] == pytest.approx(float(torch.stack(recalls).mean()))
    assert 0 < top1 < 1


def test_a_split_that_is_named_itself_finds_the_names_above_it(benchmark, clip):
    assert measure_zero_shot(clip, f"{benchmark}/test") == measure_zero_shot(clip, benchmark)


def test_tars_in_object_storage_are_read_like_those_on_a_disk(benchmark, bucket, clip):
    storage, local = open_storage(f"{bucket}/wds"), open_storage(benchmark)
    for item in local.list(""):
        storage.write(item.path, local.read(item.path))
    assert measure_zero_shot(clip, f"{bucket}/wds") == measure_zero_shot(clip, benchmark)
    assert measure_zero_shot(clip, f"{bucket}/wds/test") == measure_zero_shot(clip, benchmark)


def test_a_copy_of_a_tar_is_refused(tmp_path, drawn_images, clip):
    (extension, image), _ = drawn_images[0]
    samples = [{extension: image + bytes([number]), "cls": b"%d" % (number % 2)} for number in range(3)]
    uri = write_benchmark(tmp_path / "a", samples, names=("a", "b"))
    (tmp_path / "a" / "test" / "nshards.txt").unlink()
    assert measure_zero_shot(clip, uri), "tars with equal places and sizes are no copies"
    shutil.copy(tmp_path / "a" / "test" / "0.tar", tmp_path / "a" / "test" / "0 (1).tar")
    message = "test/0 (1).tar has the same bytes as test/0.tar, so its samples would count twice; remove one"
    assert message in refusal(zero_shot={"uri": uri})


@pytest.mark.parametrize(
    ("there", "note"),
    [
        (("0.tar", "1.tar", "2.tar"), None),
        (("00000.tar", "00002.tar"), "numbered up to 2, but number 1 is not there"),
        (("1.tar", "2.tar"), "but number 0 is not there"),
        (("0.tar", "2.tar.crdownload"), "test/2.tar.crdownload looks like a tar that is not complete yet"),
        (("a.tar", "c.tar"), None),
    ],
)
def test_tars_of_a_copy_that_is_not_finished_are_noted(tmp_path, drawn_images, clip, there, note):
    (extension, image), _ = drawn_images[0]
    samples = [{extension: image + bytes([number]), "cls": b"%d" % (number % 2)} for number in range(6)]
    uri = write_benchmark(tmp_path / "a", samples, names=("a", "b"))
    folder = tmp_path / "a" / "test"
    (folder / "nshards.txt").unlink()
    tars = sorted(folder.glob("*.tar"))
    assert len(tars) >= len(there)
    for tar, name in zip(tars, there, strict=False):
        tar.rename(folder / f"new-{name}")
    for tar in tars[len(there) :]:
        tar.unlink()
    for name in there:
        (folder / f"new-{name}").rename(folder / name)
    notes = open_image_set("evaluation.zero_shot.uri", uri, ALONE).notes
    assert [note in one for one in notes] == ([] if note is None else [True])


def test_names_come_from_the_folder_above_a_split_alone(benchmark, drawn_images, tmp_path):
    """`data/classnames.txt` may be that of something else in data/."""
    folder = Path(benchmark) / "test"
    moved = tmp_path / "above" / "flowers"
    shutil.copytree(folder, moved)
    shutil.copy(Path(benchmark) / "classnames.txt", tmp_path / "above" / "classnames.txt")
    opened = open_image_set("evaluation.zero_shot.uri", str(moved), ALONE)
    assert opened.class_names is None
    moved.rename(tmp_path / "above" / "val")
    assert open_image_set("evaluation.zero_shot.uri", str(tmp_path / "above" / "val"), ALONE).class_names is not None


def test_equal_lines_of_a_sample_are_one_caption(tmp_path, drawn_images):
    (extension, image), _ = drawn_images[0]
    uri = write_benchmark(tmp_path / "a", [{extension: image, "txt": b"a dog\na cat\na dog\n"}], kind="retrieval")
    (sample,) = open_image_set("evaluation.retrieval_uri", uri, ALONE, ("caption",)).read(0, 1)
    assert sample.captions == ("a dog", "a cat")


def test_lines_are_captions_only_where_dataset_type_says_so(tmp_path, drawn_images):
    """clip_benchmark takes `str.splitlines` of a .txt, and does so if dataset_type.txt is `retrieval`."""
    (extension, image), _ = drawn_images[0]
    uri = write_benchmark(tmp_path / "a", [{extension: image, "txt": b"a dog\non a beach\n"}])
    message = refusal(retrieval_uri=uri)
    assert (
        "sample s0000000 has 2 lines in its .txt: as many captions in tars for retrieval, and one in those of img2data"
        in message
    )
    assert f"write retrieval into {uri}/dataset_type.txt" in message
    (tmp_path / "a" / "dataset_type.txt").write_text("retrieval")
    for address in (uri, f"{uri}/test"):
        (sample,) = open_image_set("evaluation.retrieval_uri", address, ALONE, ("caption",)).read(0, 1)
        assert sample.captions == ("a dog", "on a beach")
    one = write_benchmark(tmp_path / "b", [{extension: image, "txt": b"a dog on a beach\n"}])
    assert open_image_set("evaluation.retrieval_uri", one, ALONE, ("caption",)).num_samples == 1


def test_broken_tars_are_refused(tmp_path, drawn_images):
    (extension, image), _ = drawn_images[0]
    good = {extension: image, "cls": b"0"}

    def written(name, sample, **options):
        return write_benchmark(tmp_path / name, [good, good, sample], names=("a",), **options)

    assert "has the label 'cat', but .cls" in refusal(zero_shot={"uri": written("a", {**good, "cls": b"cat"})})
    assert "has the label None" in refusal(zero_shot={"uri": written("b", {extension: image})})
    assert "has no image" in refusal(zero_shot={"uri": written("c", {"cls": b"0"})})
    assert "is for retrieval" in refusal(zero_shot={"uri": written("d", good, kind="retrieval")})
    assert "says multilabel" in refusal(zero_shot={"uri": written("e", good, kind="multilabel")})
    root = tmp_path / "f"
    uri = written("f", good)
    (root / "test" / "nshards.txt").write_text("5")
    assert "nshards.txt says 5, but test/3.tar is missing" in refusal(zero_shot={"uri": uri})
    (root / "test" / "nshards.txt").write_text("3")
    cut = (root / "test" / "2.tar").read_bytes()[: 512 + len(image) // 2]
    (root / "test" / "2.tar").write_bytes(cut)
    assert "is not a complete tar" in refusal(zero_shot={"uri": uri})
    (root / "test" / "2.tar").write_bytes(b"no tar" * 1000)
    assert "is not a complete tar" in refusal(zero_shot={"uri": uri})
