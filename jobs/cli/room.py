"""Checks that the nodes of a Ray have room for the workers, in the words that `jobs/train.py --check` uses too.

A cluster may get more nodes, and a job waits for them. A Ray that the job started itself has this machine alone: what it lacks
is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError
from training.config import ClusterConfig
from training.launch.worker_resources import describe_resources
from training.ray_internals import is_own_ray

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Demand:
    """The workers that a job needs at least.

    Attributes:
        section: of the configuration, for messages.
        num_workers: as configured.
    """

    section: str
    num_workers: int | tuple[int, int]
    cpus_per_worker: int | Literal["auto"]
    use_gpu: bool | Literal["auto"]

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]


def training_demand(cluster: ClusterConfig) -> Demand:
    """The workers of training, and of evaluation on workers."""
    return Demand("cluster", cluster.num_workers, cluster.cpus_per_worker, cluster.use_gpu)


@dataclass(frozen=True)
class Room:
    """The workers that fit on some nodes.

    Attributes:
        text: says so.
        asked: the configured number, as a message shows it.
    """

    fit: int
    enough: bool
    text: str
    asked: str


def find_room(demand: Demand, nodes: Sequence[Node]) -> Room:
    """Counts the workers that fit on nodes that are alive (`ray.nodes()`)."""
    wanted = {"CPU": 1.0 if demand.cpus_per_worker == "auto" else float(demand.cpus_per_worker)}
    has_gpus = any(node["Resources"].get("GPU", 0) for node in nodes)
    if demand.use_gpu is True or (demand.use_gpu == "auto" and has_gpus):
        wanted["GPU"] = 1.0
    fit = sum(min(int(node["Resources"].get(name, 0) // amount) for name, amount in wanted.items()) for node in nodes)
    text = f"{fit} workers of {', '.join(f'{amount:g} {name}' for name, amount in wanted.items())} fit on {len(nodes)} nodes"
    asked = demand.num_workers if isinstance(demand.num_workers, int) else list(demand.num_workers)
    return Room(fit, fit >= demand.min_workers, text, str(asked))


def describe_cluster() -> str:
    """Says what the Ray has that this process is connected to."""
    import ray

    return describe_resources(ray.cluster_resources(), ray.available_resources(), ray.nodes())


def refuse_on_a_ray_of_our_own(demand: Demand) -> None:
    """Raises ConfigError if this process has started Ray, and workers would wait for room that never comes."""
    import ray

    if is_own_ray():
        refuse_what_does_not_fit(demand, [node for node in ray.nodes() if node["Alive"]])


def refuse_what_does_not_fit(demand: Demand, nodes: Sequence[Node]) -> None:
    """Raises ConfigError if nodes that no other will join have no room for the workers."""
    room = find_room(demand, nodes)
    if room.enough:
        return
    section, held = demand.section, [node["Resources"] for node in nodes]
    if demand.use_gpu is True and not any(one.get("GPU", 0) for one in held):
        remedy = f"this machine has no GPU: set {section}.use_gpu=false"
    elif room.fit:
        remedy = f"this machine is the only node: set {section}.num_workers={room.fit}"
    else:
        cpus = max((int(one.get("CPU", 0)) for one in held), default=0)
        remedy = f"this machine is the only node: set {section}.cpus_per_worker to at most {cpus}"
    asked = f"{section}.num_workers={room.asked}"
    raise ConfigError(f"room: {room.text}, and {asked}; {remedy}, or join a cluster that has more (RAY_ADDRESS)")
