"""A folder of images is ingested as it is, each image once, also as it grows, through the job itself."""

import os
import re
import shutil
from pathlib import Path

import pytest

from jobs import ingest
from jobs.cli.command_line import EXIT_BAD_INPUT, run
from pipeline.config import CurateConfig, IngestConfig
from pipeline.dataset.manifest import read_manifest, read_sidecar
from pipeline.errors import InputError
from pipeline.ingest.image_folder import as_table_input, is_listing, is_same_listing, list_new_images
from pipeline.storage.address import open_storage
from pipeline.versions.curation import Rules
from pipeline.versions.takedown import find_holders, purge, with_retries
from tests.support.ingestions import without_ray


class Folder:
    """A folder of images, and the data set that jobs/ingest.py makes of it."""

    def __init__(self, place: Path, picture: bytes, capsys) -> None:
        self.images, self.output = place / "images", place / "out"
        self.picture, self.capsys = picture, capsys
        self.images.mkdir()

    def add(self, name: str, caption: str | bytes | None = None, captions: str = ".txt") -> None:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.picture)
        if caption is not None:
            data = caption if isinstance(caption, bytes) else caption.encode()
            path.with_suffix(captions).write_bytes(data)

    def ingest(self, *words: str, captions_from: str = "txt", images: str = "") -> tuple[int, str]:
        keys = [f"ingest.input={images or self.images}", f"ingest.output={self.output}", "ingest.image.size_px=16"]
        code = run(ingest.arguments(), ingest.job, [*keys, f"ingest.captions_from={captions_from}", *words])
        return code, "".join(self.capsys.readouterr())

    def rows(self) -> dict[str, tuple]:
        """File -> (caption, folder, outcome) of the newest row of each image."""
        storage = open_storage(str(self.output))
        found = {}
        for shard in read_manifest(storage).shards:
            for row in read_sidecar(storage, shard).to_pylist():
                name = Path(row["url"]).name if row["url"] else ""
                found[name] = (row["caption"], row.get("folder"), row["reason"])
        return found

    def num_rows(self) -> int:
        return read_manifest(open_storage(str(self.output))).num_rows


@pytest.fixture
def folder(tmp_path, draw_shape, capsys, monkeypatch):
    without_ray(monkeypatch)
    return Folder(tmp_path, draw_shape("red", "disc", 1), capsys)


def test_a_growing_folder_with_caption_files_is_ingested_once(folder, caplog):
    folder.add("a.png", "a red disc\n")
    folder.add("more/Été 2.PNG", "un été".encode("utf-16"))
    folder.add("more/none.png")
    code, text = folder.ingest("--dry-run")
    assert (code, "3 images to list and to fetch" in text) == (0, True)
    assert not folder.output.exists()
    assert folder.ingest()[0] == 0
    assert "1 of 3 images have no caption, such as more/none.png" in caplog.text
    assert folder.rows() == {
        "a.png": ("a red disc", ".", "success"),
        "Été 2.PNG": ("un été", "more", "success"),
        "none.png": ("", "more", "empty_caption"),
    }
    assert folder.ingest()[0] == 0
    assert folder.num_rows() == 3
    folder.add("b.png", "new")
    (folder.images / "more/none.txt").write_text("a caption at last")
    assert folder.ingest()[0] == 0
    assert folder.rows()["b.png"] == ("new", ".", "success")
    assert folder.rows()["none.png"] == ("a caption at last", "more", "success")
    assert folder.num_rows() == 5, "the row that failed stays"
    assert folder.ingest("--dry-run")[1].splitlines()[-1].startswith("5 rows already held")


def test_names_of_folders_and_files_are_captions_too(folder):
    for name in ("golden_retriever/1.png", "golden_retriever/2.png", "tabby cat/1 a.png"):
        folder.add(name)
    assert folder.ingest(captions_from="folder")[0] == 0
    assert [row[0] for row in folder.rows().values()] == ["golden retriever", "golden retriever", "tabby cat"]
    shutil.rmtree(folder.output)
    assert folder.ingest(captions_from="file_name")[0] == 0
    assert folder.rows()["1 a.png"][0] == "1 a"


def test_each_line_of_a_caption_file_is_a_caption(folder):
    folder.add("a.png", "a dog\r\n\r\na brown dog\r\n")
    folder.add("b.png", "a cat")
    assert folder.ingest(captions_from="txt_lines")[0] == 0
    assert folder.rows() == {"a.png": (["a dog", "a brown dog"], ".", "success"), "b.png": (["a cat"], ".", "success")}


def test_a_caption_that_has_changed_is_refused_until_it_is_restored(folder):
    folder.add("a.png", "a dog")
    assert folder.ingest()[0] == 0
    folder.add("a.png", "a wolf")
    code, text = folder.ingest()
    assert code == EXIT_BAD_INPUT
    assert re.search(r"1 images have another caption .*a\.png: 'a dog', and now 'a wolf'; restore them", text)
    folder.add("a.png", "a dog")
    assert folder.ingest()[0] == 0


def test_failures_are_retried(folder):
    folder.add("a.png", "a dog")
    folder.add("b.png", "a cat")
    (folder.images / "b.png").write_bytes(b"no image")
    assert folder.ingest()[0] == 0
    folder.add("b.png", "a cat")
    code, text = folder.ingest("--retry-failed", "not_an_image")
    assert (code, folder.rows()["b.png"][2]) == (0, "success"), text


def test_a_takedown_leaves_nothing_of_an_image_in_the_list_and_it_does_not_come_back(folder):
    folder.add("a.png", "a dog")
    folder.add("b.png", "a secret")
    assert folder.ingest()[0] == 0
    storage = open_storage(str(folder.output))
    rules = with_retries(storage, Rules(CurateConfig(), removed=frozenset([str(folder.images / "b.png")])))
    purge(storage, rules, find_holders(storage, rules))
    assert not [path for path in folder.output.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    folder.add("c.png", "a cat")
    assert folder.ingest()[0] == 0
    assert [name for name, row in folder.rows().items() if row[2] == "success"] == ["a.png", "c.png"]
    assert not [path for path in folder.output.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_a_data_set_that_was_moved_still_knows_its_images(folder):
    folder.add("a.png", "a dog")
    assert folder.ingest()[0] == 0
    folder.output = folder.output.rename(folder.output.with_name("moved"))
    folder.add("b.png", "a cat")
    assert folder.ingest()[0] == 0
    assert folder.num_rows() == 2


def test_a_folder_that_was_moved_is_refused(folder, tmp_path):
    for number in range(100):
        folder.add(f"{number}.png", f"picture {number}")
    assert folder.ingest()[0] == 0
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    code, text = folder.ingest(images=str(tmp_path / "elsewhere"))
    assert (code, "100 of its images have the names and captions of some that the data set has" in text) == (
        EXIT_BAD_INPUT,
        True,
    )
    assert folder.ingest("ingest.allow_copies=true", images=str(tmp_path / "elsewhere"))[0] == 0
    assert folder.num_rows() == 200


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_no_text_is_a_failed_row_and_is_listed_once(folder):
    folder.add("a.png", "a dog")
    folder.add(os.fsdecode(b"caf\xe9.png"), "coffee")
    for _ in range(2):
        assert folder.ingest()[0] == 0
        assert folder.num_rows() == 2
    assert sorted(row[2] for row in folder.rows().values()) == ["bad_url", "success"]


def test_what_cannot_be_a_folder_of_images_is_refused(folder, tmp_path):
    folder.add("a.png")
    for source, remedy in (("txt", "write that of cat.jpg into cat.txt"), ("folder", "put the images into folders")):
        code, text = folder.ingest(captions_from=source)
        assert code == EXIT_BAD_INPUT
        assert "none of its 1 images has a caption" in text
        assert remedy in text
    (tmp_path / "t.csv").write_text("url,caption\n")
    code, text = folder.ingest(images=str(tmp_path / "t.csv"))
    assert (code, "tables need no ingest.captions_from, so remove it" in text) == (EXIT_BAD_INPUT, True)
    code, text = folder.ingest("ingest.caption_column=alt")
    assert (code, "ingest.caption_column=alt: is for tables" in text) == (EXIT_BAD_INPUT, True)
    code, text = folder.ingest(captions_from="column")
    assert (code, "ingest.captions_from=txt (in files beside them)" in text) == (EXIT_BAD_INPUT, True)
    for name, content in (("a.txt", "b"), ("a.caption", "c")):
        (folder.images / name).write_text(content)
    code, text = folder.ingest()
    assert (code, "a.png has two caption files, a.caption and a.txt" in text) == (EXIT_BAD_INPUT, True)
    (folder.images / "a.caption").unlink()
    for name in ("a", "b"):
        folder.add(f"{name}.png", b"Caf\xe9")
    code, text = folder.ingest()
    assert (code, bool(re.search(r"a\.txt: line 1 is not UTF-8 .*\(1 more such files\)", text))) == (EXIT_BAD_INPUT, True)


def test_images_in_object_storage_are_listed_and_allowed(bucket, draw_shape, tmp_path):
    images = open_storage(f"{bucket}/images")
    images.write("a b.png", draw_shape("red", "disc", 1))
    images.write("a b.txt", b"a disc")
    config = IngestConfig(input=images.uri, output=str(tmp_path / "out"), captions_from="txt")
    assert list_new_images(config) == 1
    assert list_new_images(config) == 0
    tables = as_table_input(config)
    assert tables.fetch.allow_s3 == (images.uri,)
    (table,) = (item.path for item in open_storage(str(tmp_path / "out")).list("listings/"))
    assert is_listing(table)
    assert is_same_listing(f"/old/{table}", f"s3://new/{table}")
    assert not is_same_listing("/old/listings/other.parquet", "/new/listings/other.parquet")


def test_two_runs_at_once_list_each_image_once(folder, monkeypatch):
    folder.add("a.png", "a dog")
    config = IngestConfig(input=str(folder.images), output=str(folder.output), captions_from="txt")
    storage = type(open_storage(str(folder.output)))
    write, raced = storage.write_if_absent, []

    def after_another(self, path, data):
        if not raced and path.startswith("listings/"):
            raced.append(path)
            assert list_new_images(config) == 1
        return write(self, path, data)

    monkeypatch.setattr(storage, "write_if_absent", after_another)
    assert list_new_images(config) == 0
    with pytest.raises(InputError, match="holds no images"):
        list_new_images(config.model_copy(update={"input": str(folder.output)}))


def test_nothing_else_is_touched(folder):
    config = IngestConfig(input="t.csv", output=str(folder.output))
    assert as_table_input(config) is config
    assert list_new_images(config) == 0
