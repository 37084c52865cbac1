"""Checks every node of a cluster for problems that would stop a training run, before many GPUs are rented for it.

In: a configuration, on a cluster that this process has joined. Out: one line per check, and whether all passed.

Checked: package versions and clocks of every node; the run's folder, written and deleted from every node, and put-if-absent
there; as many shards of the data set as can be read in the time; then, on the workers, memory for the batch, one step, and the
network.
"""

from __future__ import annotations

import random
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cli.config import Config
from jobs.cli.room import find_room, training_demand
from pipeline.dataset.manifest import ShardRecord
from pipeline.errors import InputError
from pipeline.storage.address import open_storage
from pipeline.storage.base import Storage
from pipeline.storage.put_if_absent import ensure_put_if_absent
from pipeline.versions.audit import check_shard
from training.first_step_check import Finding

PACKAGES = ("torch", "ray", "rayclip", "numpy", "safetensors")
MOST_SKEW_S = 1.0
READ_FOR_S = 40.0
READERS = 8
PROBLEMS_SHOWN = 3


@dataclass(frozen=True)
class _Node:
    """Results of one node."""

    name: str
    versions: dict[str, str]
    skew_s: float
    storage: str  # problem with the run's folder on that node


def check(config: Config) -> bool:
    """Prints each finding as it is made. Returns whether a run can start."""
    began, fine = time.monotonic(), True
    for finding in _findings(config):
        print(finding, flush=True)
        fine &= finding.fine
    print(f"{'all fine' if fine else 'a run would fail'}; checked for {time.monotonic() - began:,.0f} s")
    return fine


def _findings(config: Config) -> Iterator[Finding]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    seen = [_inspect(node, config) for node in nodes]
    same_versions = list(_check_versions(seen))
    yield from same_versions
    yield from _check_clocks(seen)
    yield from _check_storage(seen, config)
    yield _check_put_if_absent(config)
    yield from _check_data(nodes, config)
    if not all(finding.fine for finding in same_versions):
        yield Finding("workers", False, "not started: install the same versions on all nodes first")
        return
    room = _check_room(nodes, config)
    yield room
    if room.fine:
        yield from _check_workers(config)


def _check_room(nodes: list[dict[str, Any]], config: Config) -> Finding:
    """Checks that the present nodes have room for the workers: a run would wait for more nodes, forever if none come."""
    room = find_room(training_demand(config.cluster), nodes)
    if not room.enough:
        return Finding("room", False, f"{room.text}, and cluster.num_workers={room.asked}; add nodes or ask for fewer workers")
    return Finding("room", True, room.text)


def _inspect(node: dict[str, Any], config: Config) -> _Node:
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    probe_file = f"probe-{uuid.uuid4().hex}"
    inspect = ray.remote(_on_a_node).options(num_cpus=0, scheduling_strategy=place)
    name, versions, storage = ray.get(inspect.remote(config.run.uri, probe_file))
    storage = storage or _read_probe(open_storage(config.run.uri), probe_file)
    clock = ray.remote(_now).options(num_cpus=0, scheduling_strategy=place)
    skews = []
    for _ in range(3):
        before = time.time()
        there = ray.get(clock.remote())
        after = time.time()
        skews.append((after - before, there - (before + after) / 2))  # the fastest answer is the most precise
    return _Node(f"{name} ({node['NodeID'][:8]})", versions, min(skews)[1], storage)


def _now() -> float:
    return time.time()


def _on_a_node(run: str, probe: str) -> tuple[str, dict[str, str], str]:
    """(host, package versions, problem with the run's folder) of the node that this runs on."""
    problem = ""
    try:
        open_storage(run).write(probe, b"written by a check")
    except (InputError, OSError) as error:
        problem = str(error)
    return socket.gethostname(), {name: version(name) for name in PACKAGES}, problem


def _read_probe(run: Storage, probe: str) -> str:
    """Problem with a file that a node wrote; empty if it is here and could be deleted."""
    try:
        if not run.exists(probe):
            return f"{run.address(probe)}: was written there but is not here; run.dir must be a folder that every node sees, or s3://"
        run.delete(probe)
        return f"{run.address(probe)}: cannot be deleted; grant the permission" if run.exists(probe) else ""
    except (InputError, OSError) as error:
        return str(error)


def _check_versions(seen: list[_Node]) -> Iterator[Finding]:
    ours = {name: version(name) for name in PACKAGES}
    for node in seen:
        others = [f"{name} {found}, not {ours[name]}" for name, found in node.versions.items() if found != ours[name]]
        if others:
            yield Finding("versions", False, f"{node.name} has {', '.join(others)}; install this process's versions on it")
            return
    yield Finding("versions", True, f"{len(seen)} nodes with {', '.join(f'{name} {found}' for name, found in ours.items())}")


def _check_clocks(seen: list[_Node]) -> Iterator[Finding]:
    worst = max(seen, key=lambda node: abs(node.skew_s))
    text = f"{worst.name} is {worst.skew_s:+.2f} s from this process"
    if abs(worst.skew_s) > MOST_SKEW_S:
        yield Finding(
            "clocks", False, f"{text}, more than {MOST_SKEW_S:g} s; synchronise the clocks: logs and signed requests need it"
        )
    else:
        yield Finding("clocks", True, f"at most: {text}")


def _check_storage(seen: list[_Node], config: Config) -> Iterator[Finding]:
    bad = [node for node in seen if node.storage]
    for node in bad[:PROBLEMS_SHOWN]:
        yield Finding("storage", False, f"on {node.name}: {node.storage}")
    if not bad:
        yield Finding("storage", True, f"{config.run.uri}: written and deleted from every node")


def _check_put_if_absent(config: Config) -> Finding:
    """Tests the promise that a run's id rests on, and the versions of data sets that are written to the same store."""
    run = open_storage(config.run.uri)
    try:
        ensure_put_if_absent(run, config.run.single_writer, "run.single_writer", leave_mark=False)
    except (InputError, OSError) as error:
        return Finding("storage", False, str(error))
    if run.single_writer:
        return Finding(
            "storage", True, f"{run.uri}: put-if-absent is not trusted; {config.run.single_writer} is the single writer"
        )
    return Finding("storage", True, f"{run.uri}: put-if-absent: a second put of a key was refused by {run.store}")


def _check_data(nodes: list[dict[str, Any]], config: Config) -> Iterator[Finding]:
    """Reads shards in random order, each node its share, for at most READ_FOR_S."""
    from training.run_plan import plan_run

    for data_set in plan_run(config).data_sets:
        shards = list(data_set.manifest.shards)
        random.Random(0).shuffle(shards)
        shares = [shards[number :: len(nodes)] for number in range(len(nodes))]
        tasks = [
            ray.remote(_read_shards)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(data_set.storage, share, READ_FOR_S / len(config.data.parts))
            for node, share in zip(nodes, shares, strict=True)
        ]
        read, problems = 0, []
        for count, found in ray.get(tasks):
            read += count
            problems += found
        for problem in problems[:PROBLEMS_SHOWN]:
            yield Finding("data", False, f"{data_set}: {problem}; restore it or ingest its rows again")
        if not problems:
            yield Finding("data", True, f"{data_set}: {read:,} of {len(shards):,} shards read, all match the manifest's sha256")


def _read_shards(storage: Storage, shards: list[ShardRecord], budget_s: float) -> tuple[int, list[str]]:
    """(number of shards read in the time, problems with them)."""
    until = time.monotonic() + budget_s

    def read(shard: ShardRecord) -> list[str] | None:
        if time.monotonic() > until:
            return None
        try:
            return [str(problem) for problem in check_shard(storage, shard)]
        except (InputError, OSError) as error:
            return [f"{shard.tar_path}: {error}"]

    with ThreadPoolExecutor(READERS) as readers:
        found = [one for one in readers.map(read, shards) if one is not None]
    return len(found), [problem for one in found for problem in one]


def _check_workers(config: Config) -> Iterator[Finding]:
    from ray.train import TrainingFailedError

    from training.worker import check_workers

    try:
        yield from check_workers(config)
    except TrainingFailedError as error:
        causes = [str(cause).splitlines()[0] for cause in getattr(error, "worker_failures", {}).values()] or [str(error)]
        yield Finding("workers", False, f"the first step failed: {causes[0]}")
