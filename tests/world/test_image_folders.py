"""Folders of images as people have them, with captions in text files or in names (README.md names the sources)."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.ingest.image_folder import as_table_input, list_new_images
from tests.support.stored_tables import Stored, ingest


def picture(seed: int = 0, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(data := io.BytesIO(), form)
    return data.getvalue()


def make(folder: Path, captions_from: str, files: dict[str, str | None]) -> Stored:
    """Ingests a folder with these files; None stands for an image."""
    for seed, (name, text) in enumerate(files.items()):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed) if text is None else text.encode())
    config = IngestConfig(input=str(folder / "images"), output=str(folder / "out"), captions_from=captions_from)
    list_new_images(config)
    tables = as_table_input(config)
    return ingest(tables.input, folder / "out", fetch=tables.fetch, bytes_column="")


def captions(stored: Stored) -> dict[str, object]:
    rows = stored.sidecar.to_pylist()
    return {Path(row["url"]).name: row["caption"] if row["status"] == "success" else row["reason"] for row in rows}


@pytest.mark.parametrize("suffix", [".caption", ".txt", ".TXT", ".png.txt"])
def test_captions_have_the_suffixes_of_other_tools(suffix, tmp_path):
    assert captions(make(tmp_path, "txt", {"1.png": None, f"1{suffix}": "a girl in a garden\n"})) == {
        "1.png": "a girl in a garden"
    }


def test_texts_lie_in_a_folder_of_their_own(tmp_path):
    files = {"images/p1.jpg": None, "text/p1.txt": "first", "images/p2.jpg": None, "text/p2.txt": "second"}
    assert captions(make(tmp_path, "txt", files)) == {"p1.jpg": "first", "p2.jpg": "second"}


def test_a_text_elsewhere_belongs_to_no_image_if_two_have_its_name(tmp_path):
    files = {"a/1.png": None, "b/1.PNG": None, "text/1.txt": "which one?", "c/2.png": None, "c/2.txt": "two"}
    found = captions(make(tmp_path, "txt", files))
    assert found == {"1.png": "empty_caption", "1.PNG": "empty_caption", "2.png": "two"}


def test_several_captions_lie_in_lines(tmp_path):
    files = {"1.jpg": None, "1.txt": "a dog runs\na brown dog\n\nan animal\n"}
    assert captions(make(tmp_path / "lines", "txt_lines", files)) == {"1.jpg": ["a dog runs", "a brown dog", "an animal"]}
    assert captions(make(tmp_path / "whole", "txt", files)) == {"1.jpg": "a dog runs a brown dog an animal"}


def test_the_names_of_files_are_captions(tmp_path):
    files = {"a_red bicycle.jpg": None, "Ein Haus_am_See.PNG": None, "赤い円.webp": None}
    assert captions(make(tmp_path, "file_name", files)) == {
        "a_red bicycle.jpg": "a red bicycle",
        "Ein Haus_am_See.PNG": "Ein Haus am See",
        "赤い円.webp": "赤い円",
    }


def test_class_folders_are_captions_and_what_systems_add_is_no_image(tmp_path):
    files = {
        "train/golden_retriever/_DSC0001.JPG": None,
        "train/golden_retriever/._DSC0001.JPG": "Mac OS X",
        "train/.ipynb_checkpoints/cat-checkpoint.png": None,
        "__MACOSX/train/golden_retriever/2.png": "resource fork",
        "train/tabby/@eaDir/1.jpg": "thumbnail",
        "train/tabby/1.jpg": None,
        "train/tabby/.DS_Store": "",
    }
    assert captions(make(tmp_path, "folder", files)) == {"_DSC0001.JPG": "golden retriever", "1.jpg": "tabby"}


def test_images_of_browsers_and_phones_are_rows_also_where_they_cannot_be_read(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jfif").write_bytes(picture(form="JPEG"))  # as Chrome on Windows saves
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    (tmp_path / "images" / "2.HEIC").write_bytes(heic)
    texts = {"1.txt": "one", "2.txt": "two", "3.txt": "three", "notes.pdf": ""}
    assert captions(make(tmp_path, "txt", texts)) == {"1.jfif": "one", "2.HEIC": "unsupported_format"}
    assert "skipped 1 file that is there without an image: 3.txt" in caplog.text
    assert "skipped 1 file that is no images: notes.pdf" in caplog.text


def test_an_image_without_a_caption_is_counted(tmp_path):
    files = {"000000000009.jpg": None, "000000000025.jpg": None, "000000000025.txt": "a giraffe"}
    assert captions(make(tmp_path, "txt", files)) == {"000000000009.jpg": "empty_caption", "000000000025.jpg": "a giraffe"}


def test_a_caption_that_is_a_pointer_of_git_lfs_is_refused(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 12\n"
    with pytest.raises(InputError, match=r"1\.txt: is a Git LFS pointer, .*git lfs pull"):
        make(tmp_path, "txt", {"1.jpg": None, "1.txt": pointer})


def test_a_hugging_face_data_set_on_disk_keeps_its_images_and_all_captions(tmp_path):
    images = pa.array([{"bytes": picture(seed), "path": f"{seed}.png"} for seed in range(2)])
    texts = pa.array([["a dog", "a brown dog"], ["a cat"]])
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": images, "caption": texts}), tmp_path / "data" / "train-00000-of-00001.parquet")
    stored = ingest(str(tmp_path / "data" / "train-*.parquet"), tmp_path / "out", bytes_column="image")
    rows = stored.sidecar.to_pylist()
    assert [(row["caption"], row["status"]) for row in rows] == [(["a dog", "a brown dog"], "success"), (["a cat"], "success")]


def test_a_hugging_face_data_set_of_arrow_files_says_how_to_write_it_as_parquet(tmp_path):
    (tmp_path / "hf").mkdir()
    for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
        (tmp_path / "hf" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"load_from_disk\('.*hf'\)\.to_parquet\('TABLE\.parquet'\)"):
        ingest(str(tmp_path / "hf"), tmp_path / "out")
