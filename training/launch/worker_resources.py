"""Resources of one worker, from `cluster.*` and the nodes that the cluster has; and the folder of Ray's own state."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.base import Storage
from training.config import ClusterConfig

logger = logging.getLogger(__name__)


def uses_gpu(cluster: ClusterConfig, resources: Mapping[str, float]) -> bool:
    """`cluster.use_gpu`, with auto resolved: a GPU for each worker where the cluster has any."""
    return bool(resources.get("GPU", 0) > 0) if cluster.use_gpu == "auto" else cluster.use_gpu


def cpus_per_worker(cluster: ClusterConfig, resources: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> int:
    """`cluster.cpus_per_worker`, with auto resolved.

    A cluster whose autoscaler adds nodes may have more in a minute than it has now, so the total is not checked; a worker
    that is larger than any node is probably a mistake and would wait forever, so that is logged.
    """
    wanted = cluster.cpus_per_worker
    largest = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    total = int(resources.get("CPU", 0))
    if wanted == "auto":
        return max(1, min(largest, total // cluster.max_workers))
    if wanted > max(1, largest):
        logger.warning("cluster.cpus_per_worker=%s: no node has more than %s CPUs now; waiting for one", wanted, largest)
    return wanted


def ray_folder(run: Storage) -> str:
    """Folder of Ray's own state of a launch: beside the run's, or a scratch folder where the run is in object storage."""
    local = run.local_path("ray")
    return str(local) if local is not None else str(Path(tempfile.gettempdir()) / "rayclip" / "ray")


def describe_resources(total: Mapping[str, float], free: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Says what a cluster has, for a job that waits for it to have more."""
    has = " and ".join(f"{total.get(name, 0):g} {name}s ({free.get(name, 0):g} free)" for name in ("CPU", "GPU"))
    return f"the cluster has {has} on {sum(bool(node['Alive']) for node in nodes)} nodes"
