"""Small text files that people write are read as they were meant in every place that takes one, or refused by name."""

import codecs

import pytest

from jobs.cli.config import load_config, read_recipe
from pipeline.config import CurateConfig
from pipeline.errors import ConfigError
from pipeline.versions.curation import read_rules
from tests.support.label_inputs import names_of, open_zero_shot, write_folders

LINES = ("http://host/1.jpg", "café/000000002", "http://host/犬.jpg")
WRITTEN = {
    "a mark of UTF-8": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 of Windows": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "CRLF, converted twice": lambda text: text.replace("\n", "\r\r\n").encode(),
    "blank lines at the end": lambda text: (text + "\n \n\t\n").encode(),
    "no end of the last line": lambda text: text.rstrip("\n").encode(),
    "the end mark of DOS": lambda text: (text + "\x1a").encode(),
    "files that were joined": lambda text: text.replace("\n", "\n\ufeff").encode(),
    "spaces at the ends": lambda text: text.replace("\n", "  \t\n  ").encode(),
}
NO_YAML = ("files that were joined", "spaces at the ends", "blank lines at the end")
REFUSED = {
    b"caf\xe9\n": r"line 1 is not UTF-8 \(byte 0xe9\); save the file as UTF-8, e\.g\. with iconv",
    b"a\nb\n\x93quoted\x94\n": "line 3 is not UTF-8",
    "北京烤鸭\n".encode("gb18030"): "line 1 is not UTF-8",
    "犬\n".encode("shift-jis"): "line 1 is not UTF-8",
    "cat\ndog\n".encode("utf-16-le"): "looks like UTF-16 without a byte-order mark",
    "cat\ndog\n".encode("utf-16-be"): "looks like UTF-16 without a byte-order mark",
    "кот".encode("utf-16-le"): "looks like UTF-16 without a byte-order mark",
    codecs.BOM_UTF16_LE + b"c\0a": "is not complete UTF-16",
    b"cat\0\ndog\n": "holds NUL characters",
    b"version https://git-lfs.github.com/spec/v1\n": "is a Git LFS pointer, not the file itself; run git lfs pull",
    b"\n<!DOCTYPE html>\n<html><body>404</body></html>\n": "is an HTML page",
    b"<html><body>Sign in</body></html>\n": "is an HTML page",
    b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>\n': "is XML",
    b"PK\x03\x04\x14\x00": "is a zip archive, as spreadsheets and documents are",
    b"\x1f\x8b\x08\x00": "is compressed with gzip",
    b"{\\rtf1\\ansi cat}": "is a Rich Text document",
    b"%PDF-1.7\n": "is a PDF",
    b"\x28\xb5\x2f\xfd\x00": "is compressed with zstd",
}  # fmt: skip


@pytest.mark.parametrize("how", WRITTEN)
def test_lists_for_a_takedown_are_read_from_any_editor(tmp_path, how):
    (tmp_path / "list.txt").write_bytes(WRITTEN[how]("\n".join(LINES) + "\n"))
    assert read_rules(CurateConfig(), str(tmp_path / "list.txt")).removed == set(LINES)


@pytest.mark.parametrize("how", WRITTEN)
def test_hashes_class_names_and_prompts_are_read_from_any_editor(tmp_path, how):
    hashes = ("a" * 64, "B" * 64)
    (tmp_path / "hashes.txt").write_bytes(WRITTEN[how]("\n".join(hashes) + "\n"))
    rules = read_rules(CurateConfig(exclude_hashes=str(tmp_path / "hashes.txt")))
    assert rules.excluded_hashes == {one.lower() for one in hashes}
    uri = write_folders(tmp_path / "pets", "café/1.png", "dog/1.png", "犬/1.png")
    assert names_of(uri, WRITTEN[how]("犬\ncafé\ndog\n")) == ["café", "dog", "犬"]
    (tmp_path / "t.txt").write_bytes(WRITTEN[how]("ein Foto: {}.\n“{c}”\n"))
    assert open_zero_shot(uri, templates_file=str(tmp_path / "t.txt")).templates == ("ein Foto: {}.", "“{c}”")


@pytest.mark.parametrize("how", [how for how in WRITTEN if how not in NO_YAML])
def test_recipes_are_read_from_any_editor(tmp_path, how):
    (tmp_path / "mine.yaml").write_bytes(WRITTEN[how]("tracking:\n  wandb_project: 犬\ntrain:\n  seed: 7\n"))
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.tracking.wandb_project, config.train.seed) == ("犬", 7)


@pytest.mark.parametrize("content", REFUSED)
def test_what_is_no_text_in_a_known_encoding_is_refused_for_what_it_is_in_every_place(tmp_path, content):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    uri = write_folders(tmp_path / "pets", "cat/1.png", "dog/1.png")
    for key, read in {
        f"--remove={path}": lambda: read_rules(CurateConfig(), str(path)),
        f"curate.exclude_hashes={path}": lambda: read_rules(CurateConfig(exclude_hashes=str(path))),
        f"--config={path}": lambda: read_recipe(str(path)),
        f"evaluation.zero_shot.class_names_file={path}": lambda: open_zero_shot(uri, class_names_file=str(path)),
        f"evaluation.zero_shot.templates_file={path}": lambda: open_zero_shot(uri, templates_file=str(path)),
    }.items():
        with pytest.raises(ConfigError, match=REFUSED[content]) as error:
            read()
        assert str(error.value).startswith(f"{key}: ")


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for address, rule in {
        f"{tmp_path}/none.txt": "there is no such file",
        str(tmp_path): "cannot be read",
        f"{tmp_path}/": "no such",
    }.items():
        with pytest.raises(ConfigError, match=rule) as error:
            read_rules(CurateConfig(), address)
        assert str(error.value).startswith(f"--remove={address}: ")


def test_an_empty_list_removes_nothing(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf\r\n")
    assert read_rules(CurateConfig(), str(tmp_path / "list.txt")).removed == frozenset()


def test_a_list_may_lie_in_object_storage(bucket):
    from pipeline.storage.address import open_storage

    open_storage(bucket).write("list.txt", b"\xef\xbb\xbfa\r\nb\r\n")
    assert read_rules(CurateConfig(), f"{bucket}/list.txt").removed == {"a", "b"}


@pytest.mark.parametrize(
    "text",
    [
        "train:\n  seed: 1\nrun:\n  name: x\ntrain:\n  seed: 2\n",
        "train:\n  seed: 1\n  seed: 2\n",
        "train: {seed: 1, seed: 2}\n",
    ],
)
def test_a_recipe_that_gives_a_key_twice_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"the key (train|seed) occurs twice .*line \d"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_a_recipe_may_merge_a_section_and_replace_a_key_of_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: &base {seed: 1, num_epochs: 3}\ntrain:\n  <<: *base\n  seed: 2\n")
    assert read_recipe(str(tmp_path / "mine.yaml"))["train"] == {"seed": 2, "num_epochs": 3}
