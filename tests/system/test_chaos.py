"""Ingestion that is killed, raced and cut off ends with every row once, and no torn object is ever visible."""

import json
import os
import random
import subprocess
import sys

import boto3
import pytest

from pipeline.config import FetchConfig, ImageConfig, IngestConfig
from pipeline.dataset.manifest import commit, read_manifest
from pipeline.ingest.partition import ingest_partition
from pipeline.ingest.plan import plan_ingest
from pipeline.storage.address import open_storage
from tests.support.chaos import ROOT, VICTIMS, Chaos, PersistentS3, Watcher, check_data_set, write_table
from tests.support.flaky_s3 import flaky_s3

NUM_ROWS = 240


@pytest.fixture
def fire(ray_session, tmp_path, s3_environment, monkeypatch):
    """An S3 server that survives SIGKILL, and the environment with which a job joins the shared Ray and reaches that server."""
    import ray

    from tests.conftest import free_port

    server = PersistentS3(tmp_path / "s3", free_port())
    settings = s3_environment | {"AWS_ENDPOINT_URL": server.address}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="fire")
    boto3.client("s3").put_object(Bucket="fire", Key="made", Body=b"")  # the server forgets an empty bucket when it is killed
    environment = os.environ | settings | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    environment |= {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": settings}})}
    environment |= {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    yield server, environment, str(ray._private.worker._global_node.get_session_dir_path())
    server.kill()


def chaos_of(fire, table, uri) -> Chaos:
    server, environment, session = fire
    settings = [
        f"ingest.input={table}",
        f"ingest.output={uri}",
        "ingest.partition_size_rows=20",
        "ingest.commit_every_s=1",
        "ingest.fetch.allow_addresses=[127.0.0.1/32]",
        "ingest.image.size_px=32",
    ]
    return Chaos([sys.executable, str(ROOT / "jobs" / "ingest.py"), *settings], environment, server, session)


def under_fire(fire, table, uri, victims, rng, longest_s) -> Chaos:
    """Write a data set while the victims are killed, and check it."""
    chaos = chaos_of(fire, table, uri)
    with Watcher(open_storage(uri)) as watcher:
        chaos.run(victims, rng, longest_s)
    watcher.check()
    assert watcher.torn == []
    assert watcher.num_checks > 5
    check_data_set(uri, NUM_ROWS)
    return chaos


def test_kills_of_the_job_a_worker_and_the_server_lose_no_row_and_duplicate_none(fire, web, tmp_path):
    table = write_table(tmp_path / "t.parquet", web, NUM_ROWS, slow_s=0.4)
    chaos = under_fire(fire, table, "s3://fire/set", VICTIMS, random.Random(1), longest_s=2)
    assert chaos.killed == dict.fromkeys(VICTIMS, 1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_kills(fire, web, tmp_path):
    table, rng, kills, sets = write_table(tmp_path / "t.parquet", web, NUM_ROWS, slow_s=1.5), random.Random(0), 0, 0
    killed = dict.fromkeys(VICTIMS, 0)
    while kills < 200:
        victims = [rng.choice(VICTIMS) for _ in range(12)]
        chaos = under_fire(fire, table, f"s3://fire/set-{sets}", victims, rng, longest_s=3)
        for victim, count in chaos.killed.items():
            killed[victim] += count
        sets, kills = sets + 1, kills + chaos.killed.total()
        print(f"{kills} kills, {sets} data sets, {killed}", flush=True)


def test_two_concurrent_ingestions_of_one_table_both_succeed(ray_session, web, bucket, tmp_path, s3_environment):
    import ray

    table, uri = write_table(tmp_path / "t.parquet", web, NUM_ROWS), f"{bucket}/set"
    command = [sys.executable, str(ROOT / "jobs" / "ingest.py"), f"ingest.input={table}", f"ingest.output={uri}"]
    command += ["ingest.fetch.allow_addresses=[127.0.0.1/32]", "ingest.num_workers=1"]
    environment = os.environ | s3_environment | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    jobs = [
        subprocess.Popen(
            [*command, f"ingest.partition_size_rows={rows}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rows in (30, 50)
    ]
    for job in jobs:
        output, _ = job.communicate(timeout=180)
        assert job.returncode == 0, output.decode()
    check_data_set(uri, NUM_ROWS)


def test_a_flaky_s3_gives_the_same_manifest_as_a_healthy_one(web, bucket, s3_endpoint, tmp_path, monkeypatch):
    table = write_table(tmp_path / "t.csv.parquet", web, 60)

    def ingest(output):
        config = IngestConfig(
            input=table,
            output=output,
            partition_size_rows=10,
            fetch=FetchConfig(allow_addresses=("127.0.0.1/32",)),
            image=ImageConfig(size_px=32),
        )
        storage = open_storage(output)
        for _ in range(2):
            plan = plan_ingest(config)
            commit(storage, [*plan.adopted, *(ingest_partition(spec, config) for spec in plan.partitions)])
        return read_manifest(storage)

    healthy = ingest(f"{bucket}/healthy")
    with flaky_s3(s3_endpoint) as flaky:
        monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.address)
        shaken = ingest(f"{bucket}/shaken")
        check_data_set(f"{bucket}/shaken", 60)
    assert flaky.refused >= 5
    assert flaky.cut >= 2

    assert shaken.partitions == healthy.partitions
