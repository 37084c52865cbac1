"""Curation, takedowns and indexing of foreign tars on a real Ray, with data like the demo's."""

import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from jobs.cli.command_line import run
from jobs.cli.config import load_config
from jobs.curate import arguments
from jobs.curate import job as curate
from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.manifest import commit, list_versions, read_manifest, read_samples, read_sidecar
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage
from pipeline.versions.audit import verify
from training.data.shard_reader import ShardReader
from training.distributed import World
from training.record.tracking import read_metrics
from training.trainer import train

pytestmark = pytest.mark.usefixtures("ray_session")


def png(width, height, shade):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 7, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pairs(web, tmp_path):
    """60 images of one size, some of them planted: duplicates, tiny images, one of an evaluation set, a dead link."""
    import hashlib

    rows, hashes = ["url,caption,lang"], []
    for number in range(60):
        image = png(64, 64, number)
        if number in (20, 40):
            image = png(64, 64, 3)  # the same as number 3
        elif number in (11, 31):
            image = png(9, 64, number)
        elif number == 50:
            hashes.append(hashlib.sha256(image).hexdigest())
        url = f"{web.address}/gone" if number == 30 else web.put(f"/{number}.png", image)
        rows.append(f"{url},picture number {number},{'en' if number % 2 else 'de'}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "hashes.txt").write_text("\n".join(hashes) + "\n")
    config = IngestConfig(
        input=str(tmp_path / "t.csv"),
        output=str(tmp_path / "set"),
        partition_size_rows=15,
        fetch=FetchConfig(allow_addresses=("127.0.0.1/32",)),
        image=ImageConfig(size_px=32, format="png", quality=1),
    )
    storage = open_storage(config.output)
    commit(storage, [ingest_partition(spec, config) for spec in plan_ingest(config).partitions])
    return storage, config


def choose(storage, *words):
    options = [word for word in words if word.startswith("--") or "=" not in word]
    settings = [f"curate.data={storage.uri}", *(word for word in words if word not in options)]
    curate(load_config("default", settings), arguments().parse_args(options))
    return read_manifest(storage)


def captions(storage, manifest):
    rows = [row for shard in manifest.shards for row in read_samples(storage, shard, ["caption"]).to_pylist()]
    return [int(row["caption"].split()[-1]) for row in rows]


ALL = [number for number in range(60) if number != 30]


def test_planted_duplicates_tiny_images_and_evaluation_images_are_dropped_and_nothing_else(pairs, tmp_path, capsys):
    storage, _ = pairs
    tars = {item.path for item in storage.list("shards/")}
    manifest = choose(
        storage, "curate.min_side_px=10", "curate.drop_duplicates=true", f"curate.exclude_hashes={tmp_path}/hashes.txt"
    )
    assert captions(storage, manifest) == [number for number in ALL if number not in (11, 31, 20, 40, 50)]
    assert {item.path for item in storage.list("shards/")} == tars, "no image was rewritten"
    output = capsys.readouterr().out
    for line in ("duplicate                    -2", "too_small                    -2", "excluded_hash                -1"):
        assert line in output
    assert captions(storage, read_manifest(storage, 1)) == ALL
    assert verify(storage, manifest) == []

    reader = ShardReader(storage, manifest)
    samples = [sample for number, shard in enumerate(manifest.shards) for sample in reader.read(number, 0, shard.num_samples)]
    assert [int(sample.caption.split()[-1]) for sample in samples] == captions(storage, manifest)
    assert all(Image.open(io.BytesIO(sample.image)).size == (32, 32) for sample in samples)


def test_a_selection_of_a_selection_is_written_as_compact_shards(pairs):
    storage, config = pairs
    choose(storage, "curate.where=lang == 'en'")
    manifest = choose(storage, "curate.sample_share=0.5", "curate.seed=3", "--materialize")
    kept = captions(storage, manifest)
    assert 5 < len(kept) < 25
    assert all(number % 2 for number in kept)
    assert sum(shard.num_samples > 0 for shard in manifest.shards) == 1
    assert all(shard.selection is None for shard in manifest.shards)
    assert verify(storage, manifest) == []
    rows = [row for shard in manifest.shards for row in read_sidecar(storage, shard, ["reason"]).to_pylist()]
    assert len(rows) == 60
    assert sum(row["reason"] == "http_404" for row in rows) == 1
    assert plan_ingest(config).partitions == [], "dropped rows are not fetched again"
    assert (manifest.version, list_versions(storage)) == (4, [1, 2, 3, 4]), (
        "each run selected from the newest version and added another"
    )


def test_a_condition_that_cannot_be_evaluated_is_refused(pairs, capsys):
    storage, _ = pairs
    for condition, words in (
        ("nothing > 3", "write a condition on the columns"),
        ("width + 3", "is not true or false for each sample"),
    ):
        code = run(arguments(), curate, ["--config", "default", f"curate.data={storage.uri}", f"curate.where={condition}"])
        assert code == 2
        assert words in capsys.readouterr().err
    assert list_versions(storage) == [1]


def test_a_takedown_leaves_no_byte_and_names_the_versions_and_runs_that_had_it(pairs, web, tmp_path, capsys):
    storage, _ = pairs
    choose(storage, "curate.where=lang == 'en'")
    url = f"{web.address}/4.png"  # German: version 1 has it, version 2 does not
    key = next(
        row["key"]
        for row in read_sidecar(storage, read_manifest(storage).shards[0]).to_pylist()
        if row["caption"] == "picture number 7"
    )
    (tmp_path / "remove.txt").write_text(f"{url}\n{key}\n")
    run_folder = tmp_path / "runs" / "a" / "checkpoints" / "step_00000001"
    run_folder.mkdir(parents=True)
    (run_folder / "checkpoint.json").write_text(json.dumps({"data_sets": [{"uri": storage.uri, "version": 1}]}))
    capsys.readouterr()
    manifest = choose(storage, "--remove", str(tmp_path / "remove.txt"), "--purge", "--runs", str(tmp_path / "runs"))
    output = capsys.readouterr().out
    assert "version 1 held some of the removed samples; it can no longer be read" in output
    assert "version 2 held some of the removed samples; it can no longer be read" in output
    assert "run a was trained on version 1" in output
    assert captions(storage, manifest) == [number for number in ALL if number % 2 and number != 7]
    assert verify(storage, manifest) == []
    for item in storage.list(""):
        data = storage.read(item.path)
        assert url.encode() not in data, item.path
        assert b"picture number 7\x00" not in data, item.path
    rows = [row for shard in manifest.shards for row in read_sidecar(storage, shard).to_pylist()]
    assert sum(row["reason"] == "removed" for row in rows) == 2
    assert all(row["url"] != url for row in rows)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_an_img2dataset_folder_is_indexed_and_trained_on(web, tmp_path, request, place, draw_shape):
    import img2dataset

    from jobs.index import job as index

    urls = [web.put(f"/{number}.png", draw_shape("red", "disc", number)) for number in range(64)]
    rows = [f"{url},a disc number {number}" for number, url in enumerate([*urls, f"{web.address}/gone"])]
    (tmp_path / "t.csv").write_text("url,caption\n" + "\n".join(rows) + "\n")
    img2dataset.download(
        url_list=str(tmp_path / "t.csv"),
        input_format="csv",
        caption_col="caption",
        output_folder=str(tmp_path / "theirs"),
        output_format="webdataset",
        image_size=32,
        number_sample_per_shard=40,
        processes_count=1,
        thread_count=8,
    )
    source, output = str(tmp_path / "theirs"), str(tmp_path / "index")
    if place == "s3":
        output, source = f"{request.getfixturevalue('bucket')}/index", f"{request.getfixturevalue('bucket')}/theirs"
        for path in (tmp_path / "theirs").glob("*.tar"):
            open_storage(source).write_file(path.name, path)
    config = load_config("default", [f"index.input={source}", f"index.output={output}"])
    index(config, None)
    storage = open_storage(output)
    manifest = read_manifest(storage)
    assert manifest.num_samples == 64
    assert verify(storage, manifest) == []
    assert not any(item.path.endswith(".tar") for item in storage.list(""))
    index(config, None)
    assert list_versions(storage) == [1], "a second run has nothing to do"
    training = load_config("debug_cpu", [f"data.uri={output}", f"run.dir={tmp_path}/runs", "train.max_steps=6"])
    result = train(training, World(0, 1, torch.device("cpu")))
    assert result.samples_seen == 6 * 32
    assert len(read_metrics(tmp_path / "runs" / "debug_cpu" / "metrics.jsonl")) == 6


def test_tars_in_any_order_with_captions_in_json_are_read_correctly(tmp_path):
    from pipeline.config import IndexConfig
    from pipeline.versions.foreign_tars import index_tar

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number in range(5):
            image = png(20, 10, number)
            members = {
                "json": json.dumps({"text": f"caption {number}", "score": number / 2}).encode(),
                "png": image,
                "cls": b"1",
            }
            if number == 3:
                del members["png"]
            for extension, data in members.items():
                info = tarfile.TarInfo(f"folder/{number:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    config = IndexConfig(input=str(tmp_path / "t.tar"), output=str(tmp_path / "index"), caption_key="text")
    record = index_tar(config.input, config)
    assert record.counts == {"no_image": 1, "success": 4}
    storage = open_storage(config.output)
    manifest = commit(storage, [record])
    samples = ShardReader(storage, manifest).read(0, 0, 4)
    assert [(sample.key, sample.caption, sample.image) for sample in samples] == [
        (f"folder/{number:04d}", f"caption {number}", png(20, 10, number)) for number in (0, 1, 2, 4)
    ]
    rows = read_sidecar(storage, manifest.shards[0]).to_pylist()
    assert [row["score"] for row in rows] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_carelessly_written_tars_are_indexed_and_rewritten_as_ours(tmp_path):
    from pipeline.config import IndexConfig
    from pipeline.versions.foreign_tars import index_tar
    from pipeline.versions.rewrite import rewrite

    keys = ["plain", "ümläut/" + "long" * 40, "c", "d"]
    metadata = [b'{"caption": "a", "score": 1, "width": 99999999999}', b'{"caption": "b", "score": "high"}', b"no json", b"[]"]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number, (key, content) in enumerate(zip(keys, metadata, strict=True)):
            for extension, data in (("JPG", png(20, 10, number)), ("json", content)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    config = IndexConfig(input=str(tmp_path / "t.tar"), output=str(tmp_path / "index"))
    record = index_tar(config.input, config)
    assert record.counts == {"empty_caption": 2, "success": 2}
    storage = open_storage(config.output)
    shard = rewrite(storage, list(record.shards), f"{record.id}-000")
    manifest = commit(storage, [record.model_copy(update={"shards": (shard,)})])
    assert [sample.key for sample in ShardReader(storage, manifest).read(0, 0, 2)] == keys[:2]
    assert [row["score"] for row in read_sidecar(storage, shard).to_pylist()] == ["1", "high", None, None]
    with tarfile.open(storage.root / shard.tar_path) as tar:
        assert [name.rpartition(".")[0] for name in tar.getnames()[::2]] == keys[:2]


def test_a_truncated_tar_is_refused_by_name(tmp_path):
    from pipeline.config import IndexConfig
    from pipeline.errors import InputError
    from pipeline.versions.foreign_tars import index_tar

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(bytes(100_000)))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:50_000])
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 1000)
    for name in ("cut.tar", "none.tar"):
        config = IndexConfig(input=str(tmp_path / name), output=str(tmp_path / "index"))
        with pytest.raises(InputError, match=f"{name}: is not a complete tar"):
            index_tar(config.input, config)
