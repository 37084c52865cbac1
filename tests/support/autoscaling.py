"""A real cluster on this machine whose nodes are added and removed by Ray's own autoscaler (version 2)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.support.cluster import MiniCluster

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
HEAD_TYPE = "ray.head.default"
"""Id and type that Ray's fake cloud provider expects of its head."""


class AutoscalingCluster(MiniCluster):
    """A head without CPUs; the autoscaler adds the nodes that the work asks for, and removes idle ones."""

    def __init__(self, settings: dict[str, str], node_types: dict[str, dict[str, Any]], idle_timeout_s: float = 6.0) -> None:
        """`node_types`: name -> {resources, min_workers, max_workers}, as in `available_node_types` of a cluster file."""
        self._node_types, self._idle_timeout_s = node_types, idle_timeout_s
        cloud = {"RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1"}
        cloud |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "2",
        }  # by default 5 and 10
        super().__init__(settings | cloud)

    def kill_node(self, node_id: str) -> None:
        """Kill the raylet, and with it the workers, of a node that the autoscaler started."""
        mark = f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node_id}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"/raylet" in (folder / "cmdline").read_bytes() and mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
                    return
        raise RuntimeError(f"node {node_id} has no raylet")

    def wait_until_empty(self, timeout_s: float = 60.0) -> None:
        """Wait until only the head is left."""
        deadline = time.time() + timeout_s
        while len(self.node_ids()) > 1:
            assert time.time() < deadline, "idle nodes were not removed"
            time.sleep(0.2)

    def _head_options(self) -> list[str]:
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(self._config()), encoding="utf-8")
        return [*super()._head_options(), f"--autoscaling-config={file}", "--node-ip-address=127.0.0.1"]

    def _head_environment(self) -> dict[str, str]:
        return {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}

    def _config(self) -> dict[str, Any]:
        # Type "external": Ray's wheel lacks the defaults file of this provider's own type.
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": self.address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        nodes = {name: {"node_config": {}, **node} for name, node in self._node_types.items()}
        lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        return {
            "cluster_name": "local",
            "max_workers": sum(node["max_workers"] for node in nodes.values()),
            "provider": provider,
            "available_node_types": {**nodes, HEAD_TYPE: head},
            "head_node_type": HEAD_TYPE,
            "idle_timeout_minutes": self._idle_timeout_s / 60,
            "upscaling_speed": 1.0,
            **{f"{name}_commands": [] for name in lists},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            "file_mounts_sync_continuously": False,
        }
