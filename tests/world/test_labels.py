"""Class folders, names files, prompts and labelled tars from the world are read right or refused; guesses are said."""

import codecs
import io
import json
import os
import tarfile
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from model.clip import build_clip
from pipeline.errors import ConfigError
from tests.support.label_inputs import names_of, notes_of, open_zero_shot, png, tar_bytes, write_folders, write_tars
from tests.support.runs import ALONE, config_of
from training.config import EvaluationConfig
from training.evaluation.figures import Figure, flatten, table
from training.evaluation.image_sets import ManifestImageSet
from training.evaluation.runner import check_evaluation, evaluate
from training.save_and_stop import Request
from training.trainer import train

PETS = ("abyssinian/1.png", "beagle/1.png", "chow_chow/1.png")
WORDNET = ("n01440764/1.png", "n01443537/1.png", "n01484850/1.png")
OFF = "tracking.wandb_mode=disabled"
FISH = ["tench", "goldfish", "great white shark"]


@pytest.fixture
def pets(tmp_path):
    return write_folders(tmp_path / "pets", *PETS)


@pytest.fixture
def fish(tmp_path):
    return write_folders(tmp_path / "fish", *WORDNET)


@pytest.fixture
def numbered(data_set, monkeypatch):
    """The address of a data set of ours, and a function that gives its samples other labels."""

    def with_labels(values, kind=None):
        column = pa.chunked_array([pa.array(values, kind)])
        monkeypatch.setattr(ManifestImageSet, "_label_column", "class", raising=False)
        monkeypatch.setattr("training.evaluation.image_sets.ShardReader.columns", lambda *_: {"class": column})
        return data_set

    return with_labels


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(3)
    return build_clip("debug-vit").eval()


def noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------- class names and folders


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_names_in_another_order_than_the_folders_are_matched_by_name_in_any_encoding(pets, encoding, end):
    text = end.join(["chow_chow", "abyssinian", "beagle", "", ""])
    content = (codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + text.encode(encoding)
    assert names_of(pets, content) == ["abyssinian", "beagle", "chow_chow"]
    assert notes_of(pets, content) == ""


def test_names_that_are_the_folders_own_but_for_case_and_separators_are_matched_by_name(pets):
    assert names_of(pets, "Chow Chow\nBeagle\nAbyssinian\n") == ["Abyssinian", "Beagle", "Chow Chow"]
    assert names_of(pets, "beagle\nchow-chow\nABYSSINIAN") == ["ABYSSINIAN", "beagle", "chow-chow"]


def test_folders_spelt_without_spaces_are_matched_by_name(tmp_path):
    uri = write_folders(tmp_path / "eurosat", "AnnualCrop/1.png", "SeaLake/1.png")
    assert names_of(uri, "sea lake\nannual crop\n") == ["annual crop", "sea lake"]


def test_a_decomposed_folder_name_is_matched_with_a_composed_class_name(tmp_path):
    folders = [unicodedata.normalize("NFD", name) for name in ("Café", "Über")]
    uri = write_folders(tmp_path / "words", *(f"{name}/1.png" for name in folders), "犬/1.png")
    assert names_of(uri, "犬\nÜber\nCafé\n") == ["Café", "Über", "犬"]


def test_other_names_are_matched_by_position_which_is_said_beside_the_figures(pets):
    assert names_of(pets, "cat\ndog\nlion dog\n") == ["cat", "dog", "lion dog"]
    assert "matched with the folders by position: abyssinian is 'cat', ..., chow_chow is 'lion'" in notes_of(
        pets, "cat\ndog\nlion\n"
    )


def test_names_of_which_some_are_folders_in_another_order_are_refused(pets):
    with pytest.raises(ConfigError, match=r"in another order \(beagle, chow chow\), but there is none for abyssinian"):
        names_of(pets, "beagle\nchow chow\nsome cat\n")


def test_another_number_of_names_is_refused_with_both_numbers(pets):
    with pytest.raises(ConfigError, match="holds 3 folders of images, but 2 class names were given"):
        names_of(pets, "cat\ndog\n")
    with pytest.raises(ConfigError, match=r"but 4 class names were given \(line 1 looks like a header\)"):
        names_of(pets, "class_name\ncat\ndog\nlion dog\n")


def test_numbers_as_folders_in_alphabetical_order_do_not_take_names_by_position(tmp_path):
    uri = write_folders(tmp_path / "numbers", *(f"{number}/1.png" for number in range(12)))
    names = [f"thing {chr(97 + number)}" for number in range(12)]
    with pytest.raises(ConfigError, match=r"alphabetical order \(0, 1, 10 and 9 more\) is not that of the numbers"):
        names_of(uri, "\n".join(names))
    found = names_of(uri, "".join(f"{number}\t{name}\n" for number, name in enumerate(names)))
    assert found == [names[int(folder)] for folder in sorted(map(str, range(12)))]
    padded = write_folders(tmp_path / "padded", *(f"{number:02}/1.png" for number in range(12)))
    assert names_of(padded, "\n".join(names)) == names
    assert names_of(padded, json.dumps(dict(enumerate(names)))) == names


@pytest.mark.parametrize(
    "text",
    [
        "n01484850\tgreat white shark\nn01440764\ttench\nn01443537\tgoldfish\n",
        "n01484850 great white shark\nn01440764 tench\nn01443537 goldfish\n",
        "n01484850,great white shark\nn01440764,tench\nn01443537,goldfish\n",
        'wnid,name\nn01484850,"great white shark"\nn01440764,tench\nn01443537,goldfish\n',
        "wnid;name\r\nn01484850;great white shark\r\nn01440764;tench\r\nn01443537;goldfish\r\n",
        "n01484850: great white shark\nn01440764: tench\nn01443537: goldfish\n",
        "tench,n01440764\ngoldfish,n01443537\ngreat white shark,n01484850\n",
        '{"n01484850": "great white shark", "n01440764": "tench", "n01443537": "goldfish"}',
        '{"tench": "n01440764", "goldfish": "n01443537", "great white shark": "n01484850"}',
        '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"], "2": ["n01484850", "great white shark"]}',
        "{'n01484850': 'great white shark', 'n01440764': 'tench', 'n01443537': 'goldfish'}",
        "NAMES = {\n    'n01484850': 'great white shark',  # a fish\n    'n01440764': 'tench', 'n01443537': 'goldfish'}\n",
    ],
)
def test_labels_with_their_names_are_read_in_every_usual_form(fish, text):
    assert names_of(fish, text) == FISH
    assert notes_of(fish, "\ufeff" + text) == ""


def test_the_synset_mapping_of_imagenet_keeps_all_words_of_a_class(fish):
    text = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark, white shark\n"
    assert names_of(fish, text) == ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark"]


@pytest.mark.parametrize(
    "text", ['["tench", "goldfish", "great white shark"]',
             "imagenet_classes = ['tench', 'goldfish',\n  'great white shark',]\n",
             '"tench",\n"goldfish",\n"great white shark",\n']
)  # fmt: skip
def test_lists_of_names_as_clip_and_open_clip_keep_them_are_names_in_order(fish, tmp_path, text):
    assert names_of(fish, text) == FISH
    assert "by position" in notes_of(fish, text)
    assert names_of(write_tars(tmp_path / "tars", [0, 1, 2], names=text.encode())) == FISH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1. cat\n2. dog\n3. lion dog\n", "numbered from 1, but these numbers are not the labels"),
        ("0 cat\n1 dog\n2 lion dog\n", "numbered from 0, but these numbers are not the labels"),
        ("cat\n\ndog\nlion dog\n", "line 2 is blank"),
        ("# pets\ncat\ndog\n", "line 1 begins with #"),
        ("- cat\n- dog\n- lion dog\n", "is a YAML list"),
        ("abyssinian 0\nbeagle 1\nchow_chow 2\n", "it is not clear where the names begin"),
        ("abyssinian\t0\nbeagle\t1\nchow_chow\t2\n", "gives numbers as names"),
        ('{"abyssinian": 0, "beagle": 1, "chow_chow": 2}', "3 samples are of classes without a name"),
        ("0\tabyssinian\tcat\n1\tbeagle\tdog\n2\tchow_chow\tdog\n", "holds more than two columns"),
        ("abyssinian\tcat\nabyssinian\tlynx\nbeagle\tdog\nchow_chow\tlion\n", "two names|several names|twice"),
        (
            '{"abyssinian": "cat", "abyssinian": "lynx", "beagle": "dog", "chow_chow": "lion"}',
            "holds the key 'abyssinian' twice",
        ),
        (
            "{'abyssinian': 'cat', 'abyssinian': 'lynx', 'beagle': 'dog', 'chow_chow': 'lion'}",
            "holds the key 'abyssinian' twice",
        ),
        ("abyssinian\tcat\nbeagle\tdog\n", r"1 samples are of classes without a name \(chow_chow\)"),
        ('["cat", "dog", null]', "must hold text alone"),
        ('["cat", "dog", ""]', "must hold text alone"),
        ('["cat", "dog", "lion"', "line 1 is not JSON"),
        ("names = get_names()\ncat = [1]\ndog = [2]\n", "code|text alone|lists of plain text|folders of images"),
        ("caf\ufffd\ndog\nlion\n", r"holds U\+FFFD"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_names_files_that_would_leave_their_syntax_or_a_wrong_name_in_the_prompts_are_refused(pets, text, message):
    with pytest.raises(ConfigError, match=message):
        names_of(pets, text)


def test_classes_with_one_name_are_said_and_counted_alike_whatever_the_batch(clip, tmp_path):
    labels = [0, 1, 2, 3] * 8
    uri = write_tars(tmp_path / "tars", labels, names=b"missile\nsunglasses\nMissile\ncat\n")
    assert "cannot be told apart, so each of their images is a miss at top-1: 'missile' (0, 2)" in notes_of(uri)
    rows = [evaluate(clip, EvaluationConfig(batch_size=size, zero_shot={"uri": uri}), ALONE) for size in (3, 32)]
    assert rows[0] == rows[1]
    assert "zero_shot_top1" in table(rows[0])
    assert "cannot be told apart" in table(rows[0])


def test_numbers_and_wordnet_ids_without_names_are_said_to_be_no_names(fish, tmp_path):
    assert "the class names are WordNet ids, as the labels are" in notes_of(fish)
    uri = write_folders(tmp_path / "digits", "0/1.png", "1/1.png")
    assert "the class names are numbers" in notes_of(uri)


@pytest.mark.parametrize("folders", [("n02085620-Chihuahua", "n02085782-Japanese_spaniel"), ("001.Albatross", "002.Auk")])
def test_folders_that_put_a_label_before_the_name_are_said_to_do_so(tmp_path, folders):
    uri = write_folders(tmp_path / "set", *(f"{name}/1.png" for name in folders))
    assert f"which get into the prompts ({', '.join(folders)}); give evaluation.zero_shot.class_names_file" in notes_of(uri)
    assert "get into the prompts" not in notes_of(uri, "one\ntwo\n")


def test_the_remedy_for_an_unknown_header_is_to_remove_it_and_another_choice_is_said(tmp_path):
    uri = write_tars(tmp_path / "tars", [0, 1], names=b"Species\ncat\ndog\n")
    with pytest.raises(
        ConfigError, match=r"if a header or another line shifts the names \(.*0 is 'Species', .*\), remove that line"
    ):
        names_of(uri)
    assert "0 is 'Species', ..., 1 is 'cat'" in notes_of(uri, allow_empty_classes=True)


# ----------------------------------------------------------------------------------------------------------- class folders


@pytest.mark.parametrize("inner", ["cat/1.png", "1.png"])
@pytest.mark.parametrize(
    ("splits", "best"),
    [
        (("train", "val"), "val"),
        (("Train", "Test"), "Test"),
        (("training", "validation"), "validation"),
        (("val",), "val"),
        (("train2017", "val2017"), "val2017"),
        (("test_01", "train_01"), "test_01"),
    ],
)
def test_splits_are_no_classes(tmp_path, splits, best, inner):
    uri = write_folders(tmp_path / "pets", *(f"{split}/{inner}" for split in splits))
    remedy = f"name {uri}/{best}" if "/" in inner else "put the images of each class into a folder of its own"
    with pytest.raises(ConfigError, match=f"splits of a data set, not its classes; {remedy}"):
        names_of(uri)


def test_the_parts_of_a_set_for_segmentation_are_no_classes(tmp_path):
    uri = write_folders(tmp_path / "voc", "JPEGImages/1.png", "masks/1.png")
    with pytest.raises(
        ConfigError, match="holds the folders JPEGImages, masks, which are parts of a data set, not its classes"
    ):
        names_of(uri)


def test_a_class_that_is_called_train_is_a_class(tmp_path):
    uri = write_folders(tmp_path / "cifar", "bicycle/1.png", "bus/1.png", "train/1.png")
    assert names_of(uri) == ["bicycle", "bus", "train"]


def test_one_folder_around_the_classes_and_a_single_class_are_refused(tmp_path):
    uri = write_folders(tmp_path / "around", "images/cat/1.png", "images/dog/1.png")
    with pytest.raises(ConfigError, match=f"holds one folder, images, with the folders cat, dog in it; name {uri}/images"):
        names_of(uri)
    uri = write_folders(tmp_path / "single", "cat/1.png", "cat/2.png")
    with pytest.raises(ConfigError, match="all samples are of the class cat, so every answer would be right"):
        names_of(uri)


def test_hidden_files_and_those_of_systems_are_no_data(tmp_path):
    uri = write_folders(
        tmp_path / "pets", "cat/1.png", "dog/1.png", ".ipynb_checkpoints/1.png", "__MACOSX/cat/1.png", "cat/._1.png",
        "cat/@eaDir/1.png/thumb.jpg", "@eaDir/x.png", "dog/.thumbnails/1.png", "dog/Thumbs.db", ".git/x.png", "cat/desktop.ini",
    )  # fmt: skip
    assert names_of(uri) == ["cat", "dog"]
    assert notes_of(uri) == ""


def test_folders_without_an_image_are_refused_or_said(tmp_path):
    uri = write_folders(tmp_path / "pets", "cat/1.png", "dog/1.png", "emu/", "fox/")
    with pytest.raises(ConfigError, match=r"2 of 4 class names have no image \(emu, fox\)"):
        names_of(uri)
    assert names_of(uri, allow_empty_classes=True) == ["cat", "dog"]
    assert "2 of 4 classes have no image" in notes_of(uri, allow_empty_classes=True)
    assert names_of(uri, "Cat\nBird\nHound\nVixen\n".replace("Bird\nHound", "Hound\nBird"), allow_empty_classes=True) == [
        "Cat",
        "Hound",
    ]


def test_what_is_left_out_of_class_folders_is_said(tmp_path):
    uri = write_folders(
        tmp_path / "pets", "cat/1.JPG", "cat/2.Png", "dog/1.jpeg", "dog/1.xml", "cat/notes.txt", "cat/noname", "stray.png"
    )
    assert names_of(uri) == ["cat", "cat", "dog"]
    notes = notes_of(uri)
    assert "3 files in class folders are no images by their names, and are skipped" in notes
    assert "1 images lie beside the class folders" in notes


def test_images_in_folders_inside_of_a_class_are_of_that_class_which_is_said(tmp_path):
    uri = write_folders(tmp_path / "pets", "cat/wild/1.png", "cat/2.png", "dog/1.png")
    assert names_of(uri) == ["cat", "cat", "dog"]
    assert "folders inside of a class folder (cat/wild) count for the class of the outer folder" in notes_of(uri)


def test_links_to_class_folders_and_to_images_are_followed_and_broken_ones_refused(tmp_path):
    write_folders(tmp_path / "store", "n1/1.png", "n1/2.png", "loose.png")
    uri = write_folders(tmp_path / "pets", "dog/1.png")
    (tmp_path / "pets" / "cat").symlink_to(tmp_path / "store" / "n1")
    (tmp_path / "pets" / "dog" / "2.png").symlink_to(tmp_path / "store" / "loose.png")
    (tmp_path / "pets" / "dog" / "loop").symlink_to(tmp_path / "pets" / "dog")
    assert names_of(uri) == ["cat", "cat", "dog", "dog"]
    (tmp_path / "store" / "loose.png").unlink()
    with pytest.raises(ConfigError, match=r"2\.png is a link to .*loose\.png, which does not exist"):
        names_of(uri)


def test_formats_that_torchvision_does_not_know_are_read_or_said(tmp_path):
    uri = write_folders(tmp_path / "pets", "cat/1.gif", "dog/1.avif", "dog/2.jfif", "dog/3.heic")
    assert names_of(uri) == ["cat", "dog", "dog"]
    assert ".heic: 1" in notes_of(uri)


def test_a_folder_name_that_is_not_utf_8_is_refused(tmp_path):
    write_folders(tmp_path / "pets", "cat/1.png")
    write_folders(tmp_path / "pets", os.fsdecode(b"caf\xe9/1.png"))
    with pytest.raises(ConfigError, match="is not UTF-8; rename it"):
        names_of(str(tmp_path / "pets"))


def test_a_tar_beside_class_folders_is_refused(tmp_path):
    uri = write_folders(tmp_path / "pets", "cat/1.png", "dog/1.png")
    (tmp_path / "pets" / "pets.tar").write_bytes(tar_bytes([("cat/1.png", png())]))
    with pytest.raises(ConfigError, match=r"holds both tars \(pets\.tar\) and folders of images"):
        names_of(uri)
    (tmp_path / "pets" / "pets.tar").rename(tmp_path / "pets" / "pets.tar.gz")
    assert names_of(uri) == ["cat", "dog"]


# --------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("values", [[2, 0, 1], [2.0, 0.0, 1.0], ["2", "0", "1"], ["02", "00", "01"]])
def test_integer_labels_take_the_names_of_a_file_in_label_order(numbered, tmp_path, values):
    (tmp_path / "n.txt").write_text("\ufefftench\r\ngoldfish\r\ngreat white shark\r\n\r\n")
    uri = numbered(values)
    assert names_of(uri, label_column="class", class_names_file=str(tmp_path / "n.txt"))[:3] == [FISH[2], FISH[0], FISH[1]]
    (tmp_path / "n.txt").write_text('{"tench": 0, "goldfish": 1, "great white shark": 2}')
    assert names_of(uri, label_column="class", class_names_file=str(tmp_path / "n.txt"))[:3] == [FISH[2], FISH[0], FISH[1]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([-1, 0, 1], "holds the label -1, but labels that count lines begin at 0"),
        ([0, 1, 3], r"without a name \(3\); there are 3 class names"),
        ([1, 2, 3], "its labels begin at 1, and line 1 of .* is the name of label 0"),
        ([1, 2, 2], "its labels begin at 1, and line 1 of .* is the name of label 0"),
        ([0, 1, 1], r"1 of 3 class names have no image \(great white shark\)"),
        ([0.5, 0.0, 1.0], "holds 0.5, which is not the number of a class"),
        ([[0], [1], [2]], "holds lists or structures"),
        ([None, 0, 1], "have no class"),
        (["cat", "dog", "emu"], "of classes without a name"),
    ],
)
def test_labels_that_are_no_lines_of_the_file_are_refused(numbered, tmp_path, values, message):
    (tmp_path / "n.txt").write_text("\n".join(FISH))
    with pytest.raises(ConfigError, match=message):
        names_of(numbered(values), label_column="class", class_names_file=str(tmp_path / "n.txt"))


def test_the_remedy_for_labels_from_one_works(numbered, tmp_path):
    (tmp_path / "n.txt").write_text("".join(f"{number}\t{name}\n" for number, name in enumerate(FISH, start=1)))
    assert names_of(numbered([3, 1, 2]), label_column="class", class_names_file=str(tmp_path / "n.txt"))[:3] == [
        FISH[2],
        FISH[0],
        FISH[1],
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("class_name\ntench\ngoldfish\n", "line 1 looks like a header"),
        ("1\n0\n", "numbers in another order than the labels"),
        ("1 tench\n2 goldfish\n", "numbered from 1, but these numbers are not the labels"),
    ],
)
def test_a_file_that_would_shift_the_names_of_numbers_is_refused(tmp_path, names, message):
    with pytest.raises(ConfigError, match=message):
        names_of(write_tars(tmp_path / "tars", [0, 1], names=names.encode()), allow_empty_classes=True)


# ------------------------------------------------------------------------------------------------------ clip-benchmark tars


def test_labels_in_tars_are_numbers_however_they_are_spelt(tmp_path):
    labels = [b"1\n", b" 0\r\n", b"\xef\xbb\xbf1", b"01", b"1.0", b'"0"']
    assert names_of(write_tars(tmp_path / "tars", labels)) == ["dog", "cat", "dog", "dog", "dog", "cat"]
    for number, wrong in enumerate([b"-1", b"1.5", b"", b"[1]", "²".encode(), "٣".encode(), b"1 0"]):
        with pytest.raises(ConfigError, match=r"\.cls must hold the number of a class"):
            names_of(write_tars(tmp_path / f"wrong{number}", [0, wrong]))


def test_text_files_beside_tars_may_come_from_any_editor(tmp_path):
    uri = write_tars(
        tmp_path / "tars", [0, 1], names="\ufeffcat\r\ndog\r\n\r\n".encode("utf-16"),
        dataset_type=b"\xef\xbb\xbfClassification\r\n",
        zeroshot_classification_templates=b"\xef\xbb\xbfa photo of a {c}.\r\nart of the {c}.\r\n\r\n",
    )  # fmt: skip
    (tmp_path / "tars" / "test" / "nshards.txt").write_bytes(b"\xef\xbb\xbf1\r\n")
    assert names_of(uri) == ["cat", "dog"]
    assert open_zero_shot(uri).templates == ("a photo of a {c}.", "art of the {c}.")
    (tmp_path / "tars" / "test" / "1.tar").write_bytes((tmp_path / "tars" / "test" / "0.tar").read_bytes())
    with pytest.raises(ConfigError, match=r"nshards\.txt says 1, but test/1\.tar is there too"):
        names_of(uri)


@pytest.mark.parametrize("junk", ["._000.png", "__MACOSX/000.png", ".DS_Store", "README", "__meta__", "./._000.cls"])
def test_members_without_a_key_are_skipped_as_webdataset_does(tmp_path, junk):
    members = [(junk, b"x"), ("000.png", png()), ("000.cls", b"0"), (junk, b"x"), ("./001.png", png()), ("./001.cls", b"1")]
    uri = write_tars(tmp_path / "tars", [])
    (tmp_path / "tars" / "test" / "0.tar").write_bytes(tar_bytes(members))
    assert names_of(uri) == ["cat", "dog"]


@pytest.mark.parametrize("folder", ["folder/.hidden", ".cache", "../data", "lost+found"])
def test_samples_in_any_folder_count_as_for_webdataset(tmp_path, folder):
    uri = write_tars(tmp_path / "tars", [])
    members = [("0.png", png()), ("0.cls", b"0"), (f"{folder}/1.png", png()), (f"{folder}/1.cls", b"1")]
    (tmp_path / "tars" / "test" / "0.tar").write_bytes(tar_bytes(members))
    assert open_zero_shot(uri).images.num_samples == 2


def test_members_of_no_sample_are_noted_beside_the_figures(tmp_path):
    uri = write_tars(tmp_path / "tars", [])
    link = tarfile.TarInfo("2.png")
    link.type, link.linkname = tarfile.LNKTYPE, "0.png"
    members = [("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", b"1"), ("README", b"x"), ("__meta__/2.cls", b"1")]
    with tarfile.open(tmp_path / "tars" / "test" / "0.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(link)
    assert open_zero_shot(uri).images.notes == (
        "2 members of its tars belong to no sample: files without a key, such as README",
        "1 members of its tars belong to no sample: links, such as 2.png",
    )


def test_a_tar_of_zeros_from_some_member_on_is_refused(tmp_path):
    content = tar_bytes(
        [(f"{n}.{end}", data) for n in range(4) for end, data in (("png", png() + bytes(1 << 20)), ("cls", b"1"))]
    )
    start = content.index(b"2.png")
    uri = write_tars(tmp_path / "tars", [])
    (tmp_path / "tars" / "test" / "0.tar").write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(
        ConfigError, match=f"is empty after byte {start:,}, as if a download had stopped.*truncate -s {start + 1024} "
    ):
        open_zero_shot(uri)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar_bytes([("0.png", png()), ("0.cls", b"0"), ("0.png", png()), ("0.cls", b"1")]), "sample 0 has two members .png"),
        (tar_bytes([("0.png", png()), ("1.png", png()), ("0.cls", b"0"), ("1.cls", b"1")]), "has the label None"),
        (
            tar_bytes([("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", b"1")], end=False),
            "is a tar without its end",
        ),
        (
            tar_bytes([("0.png", png()), ("0.cls", b"0")]) + tar_bytes([("1.png", png()), ("1.cls", b"1")]),
            "as cut and joined tars do",
        ),
    ],
)
def test_tars_of_which_samples_would_be_lost_are_refused(tmp_path, content, message):
    uri = write_tars(tmp_path / "tars", [0, 1])
    (tmp_path / "tars" / "test" / "0.tar").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        names_of(uri)


def test_compressed_tars_and_two_sets_of_tars_are_refused(tmp_path):
    uri = write_tars(tmp_path / "tars", [0, 1])
    (tmp_path / "tars" / "test" / "1.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ConfigError, match=r"test/1\.tar\.gz is compressed"):
        names_of(uri)
    (tmp_path / "tars" / "test" / "1.tar.gz").rename(tmp_path / "tars" / "0.tar")
    with pytest.raises(ConfigError, match="holds tars, and more of them in test"):
        names_of(uri)


# --------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    "text", ["a photo of a {}.\nart of the {c}.\n", '["a photo of a {}.", "art of the {c}."]',
             "templates = [\n    'a photo of a {}.',\n    'art of the {c}.',\n]\n", '"a photo of a {}.",\n"art of the {c}.",\n',
             '{"cifar10": ["a photo of a {}.", "art of the {c}."]}']
)  # fmt: skip
def test_prompts_are_read_in_every_usual_form(pets, tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    assert open_zero_shot(pets, templates_file=str(tmp_path / "t.txt")).templates == ("a photo of a {}.", "art of the {c}.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a photo of a {}.\na photo\n", "has no place for the class name"),
        ("a photo of a {classname}.\n", "has no place for the class name"),
        ("a {} of {classname}.\n", "{classname} would stay in the prompt"),
        ("a %s in a {}\n", "%s would stay in the prompt"),
        ("lambda c: f'a bad photo of a {c}.',\nlambda c: f'art of the {c}.',\n", "line 1 is code"),
        ("[lambda c: f'a bad photo of a {c}.']\n", "is Python code"),
        ("a {}\n\nthe {}\n", "line 2 is blank"),
        ("", "is empty"),
    ],
)
def test_prompts_without_a_place_or_with_syntax_in_them_are_refused(pets, tmp_path, text, message):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_zero_shot(pets, templates_file=str(tmp_path / "t.txt"))


def test_a_data_sets_own_empty_prompts_are_refused(tmp_path):
    uri = write_tars(tmp_path / "tars", [0, 1], zeroshot_classification_templates=b"\n")
    with pytest.raises(ConfigError, match=r"zeroshot_classification_templates\.txt: is empty"):
        names_of(uri)


# -------------------------------------------------------------------------------------------------------------- retrieval


@pytest.fixture
def repeated_pairs(tmp_path):
    """A retrieval set in which captions and images repeat, some in other batches than their equals."""
    members = []
    for number in range(48):
        words = [f"Drawing number {number % 7}", f"drawing   NUMBER {number % 5}"] if number % 3 else [f"only {number}"]
        members += [
            (f"{number:03}.png", noise(number if number % 11 else 0)),
            (f"{number:03}.txt", "\r\n".join(words).encode()),
        ]
    (tmp_path / "pairs" / "test").mkdir(parents=True)
    (tmp_path / "pairs" / "test" / "0.tar").write_bytes(tar_bytes(members))
    (tmp_path / "pairs" / "dataset_type.txt").write_bytes(b"\xef\xbb\xbfretrieval\r\n")
    return str(tmp_path / "pairs")


def test_figures_with_repeated_captions_and_images_do_not_depend_on_batches_or_threads(clip, repeated_pairs):
    before, rows = torch.get_num_threads(), []
    try:
        for threads, size in ((1, 5), (1, 64), (2, 7), (3, 64)):
            torch.set_num_threads(threads)
            rows.append(evaluate(clip, EvaluationConfig(batch_size=size, retrieval_uri=repeated_pairs), ALONE))
    finally:
        torch.set_num_threads(before)
    assert all(row == rows[0] for row in rows)


def test_a_caption_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "pairs" / "test").mkdir(parents=True)
    tar = tar_bytes([("0.png", png()), ("0.txt", b"caf\xe9"), ("1.png", png(9)), ("1.txt", b"a dog")])
    (tmp_path / "pairs" / "test" / "0.tar").write_bytes(tar)
    with pytest.raises(ConfigError, match=r"sample 0: \.txt: line 1 is not UTF-8"):
        check_evaluation(EvaluationConfig(retrieval_uri=str(tmp_path / "pairs")))


def test_a_line_of_a_caption_file_ends_only_at_an_end_of_line(tmp_path):
    from training.evaluation.evaluation_data import open_image_set

    (tmp_path / "pairs" / "test").mkdir(parents=True)
    (tmp_path / "pairs" / "dataset_type.txt").write_text("retrieval")
    text = "a dog\u2028on a beach\r\ntwo\x85dogs\rthree\n\n".encode()
    (tmp_path / "pairs" / "test" / "0.tar").write_bytes(tar_bytes([("0.png", png()), ("0.txt", text)]))
    images = open_image_set("evaluation.retrieval_uri", str(tmp_path / "pairs"), ALONE, captions=("caption",))
    assert images.read(0, 1)[0].captions == ("a dog\u2028on a beach", "two\x85dogs", "three")


# --------------------------------------------------------------------------------------------------- notes, and longer runs


def test_a_note_stands_beside_its_figure_wherever_figures_are_shown():
    row = flatten(
        [
            Figure("top1", 0.5, 0.1, 0.4, 0.6, 10, ("names by position", "2 files left out")),
            Figure("r1", 0.25, None, None, None, 4),
        ]
    )
    assert row["evaluation_notes/top1"] == "names by position; 2 files left out"
    assert "evaluation_notes/r1" not in row
    lines = table(row).splitlines()
    assert lines[1].endswith("*")
    assert not lines[2].endswith("*")
    assert lines[3] == "* top1: names by position; 2 files left out"


def test_a_finished_run_that_is_extended_and_stopped_does_not_say_that_it_is_finished(data_set, tmp_path, capsys, monkeypatch):
    train(config_of(data_set, tmp_path, "train.max_steps=6", "optimizer.warmup_steps=1", OFF), ALONE)
    assert (tmp_path / "debug_cpu" / "result.json").exists()
    longer = config_of(data_set, tmp_path, "optimizer.warmup_steps=1", OFF, "run.allow_config_changes=true")
    asked = iter([set(), {Request.STOP}])
    monkeypatch.setattr("training.save_and_stop.Requests.agreed", lambda self: next(asked, set()))
    capsys.readouterr()
    result = train(longer, ALONE)
    told = capsys.readouterr().out
    assert (result.finished, result.step) == (False, 8)
    assert not (tmp_path / "debug_cpu" / "result.json").exists()
    assert "learning rate: 9.55e-05 at step 6 -> 0.000571 at step 7, since the run has 12 steps instead of 6" in told
    assert train(longer, ALONE).finished
    assert (tmp_path / "debug_cpu" / "result.json").exists()
    assert "learning rate:" not in capsys.readouterr().out
