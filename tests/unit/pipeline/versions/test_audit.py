"""Damage is found, orphans are removed, and needed objects stay."""

import os
import time

import pytest

from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.manifest import commit
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage
from pipeline.storage.local import LocalStorage
from pipeline.versions import audit
from pipeline.versions.audit import clean, verify

DAY_S = 86_400


@pytest.fixture
def config(web, tmp_path, draw_shape):
    rows = ["url,caption,n"]
    for number in range(12):
        rows.append(f"{web.put(f'/{number}.png', draw_shape('red', 'disc', number))},picture {number},{number}")
    rows += [f"{web.address}/gone,gone,12", f"{web.put('/html', b'<html>')},html,13"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    return IngestConfig(
        input=str(tmp_path / "t.csv"),
        output=str(tmp_path / "out"),
        partition_size_rows=5,
        fetch=FetchConfig(allow_addresses=("127.0.0.1/32",)),
        image=ImageConfig(size_px=32, format="png", quality=1),
    )


def ingest(config):
    plan = plan_ingest(config)
    storage = open_storage(config.output)
    return commit(storage, [*plan.adopted, *(ingest_partition(spec, config) for spec in plan.partitions)])


def age(config):
    """Makes every object two days old."""
    then = time.time() - 2 * DAY_S
    for path in open_storage(config.output).root.rglob("*"):
        os.utime(path, (then, then))


def test_a_whole_data_set_has_no_problems(config):
    assert verify(open_storage(config.output), ingest(config)) == []


@pytest.mark.parametrize("kind", ["tar_path", "sidecar_path"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "grown", "missing"])
def test_every_damage_is_found_and_named(config, kind, damage):
    manifest = ingest(config)
    storage = open_storage(config.output)
    path = getattr(manifest.shards[1], kind)
    data = bytearray(storage.read(path))
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[-1]
    elif damage == "grown":
        data += b"\0"
    storage.write(path, bytes(data))
    if damage == "missing":
        storage.delete(path)
    (problem,) = verify(storage, manifest)
    assert problem.path == path
    words = {"flipped": "sha256", "cut": "bytes; the manifest says", "grown": "more than", "missing": "is missing"}
    assert words[damage] in problem.problem


def test_cleaning_removes_orphans_that_are_old_and_nothing_else(config, web, draw_shape):
    manifest = ingest(config)
    storage = open_storage(config.output)
    # Another attempt at a partition, which began before the first was done: its tar differs, its record comes second.
    web.put("/0.png", draw_shape("blue", "disc", 0))
    (storage.root / "manifests" / "00000001.json").rename(storage.root / "manifest.kept")
    spec = next(spec for spec in plan_ingest(config.model_copy(update={"output": f"{config.output}-2"})).partitions)
    record = next((storage.root / "partitions").glob(f"*{spec.id}*"))
    first = record.read_bytes()
    record.unlink()
    ingest_partition(spec, config)
    record.write_bytes(first)
    (storage.root / "manifest.kept").rename(storage.root / "manifests" / "00000001.json")
    tars = {item.path for item in storage.list("shards/") if item.path.endswith(".tar")}
    named = {shard.tar_path for shard in manifest.shards}
    (orphan,) = tars - named
    (storage.root / "shards" / ".half.0.part").write_bytes(b"half")
    assert clean(storage, DAY_S) == [], "it is young: somebody may be about to name it"
    age(config)
    removed = clean(storage, DAY_S)
    assert orphan in removed
    assert "shards/.half.0.part" in removed
    assert not any(path in named for path in removed)
    assert verify(storage, manifest) == []
    assert clean(storage, DAY_S) == []


def test_cleaning_spares_what_a_running_job_has_finished(config):
    plan = plan_ingest(config)
    records = [ingest_partition(spec, config) for spec in plan.partitions]  # finished, and not committed yet
    age(config)
    clean(open_storage(config.output), DAY_S)
    storage = open_storage(config.output)
    again = plan_ingest(config)
    assert (again.partitions, again.adopted) == ([], records)
    assert verify(storage, commit(storage, again.adopted)) == []


def test_rows_that_wait_go_when_they_are_committed(config):
    ingest(config)
    storage = open_storage(config.output)
    assert len(list(storage.list("inputs/"))) == 3
    age(config)
    clean(storage, DAY_S)
    assert list(storage.list("inputs/")) == []


def test_an_object_of_a_store_that_sends_more_than_it_is_asked_for_is_a_problem_and_checked_once(tmp_path):
    class Whole(LocalStorage):
        def read_range(self, path, start, length):
            asked.append(start)
            return self.read(path)

    asked = []
    storage = Whole(str(tmp_path))
    storage.write("x", b"0123456789")
    (problem,) = audit._check_object(storage, "x", 10, "")
    assert "has more than 10 bytes" in str(problem)
    assert len(asked) <= 2
