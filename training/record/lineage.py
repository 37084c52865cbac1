"""Lineage in W&B: data set version -> run -> exported weights.

In: the identity of a data set version, or of exported weights. Out: artifacts that hold a reference and no file: nothing is
uploaded, and no content is read. W&B distinguishes versions of an artifact by the addresses and names in it, so a reference is
named after the identity of its content. The functions raise what W&B raises; callers log it and continue.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dataset.manifest import FOLDER
from pipeline.storage.address import open_storage
from training.config import TrackingConfig
from training.record.wandb_run import open_run, sync_command
from training.wandb_environment import with_environment


def data_set_artifact(data_set: Mapping[str, Any]) -> Any:
    """The artifact of a data set version, the same for the ingestion that wrote it and for a run that reads it.

    Args:
        data_set: uri, version and identity, as `DataSet.identity` gives them.
    """
    import wandb

    artifact = wandb.Artifact(_name(data_set["uri"]), type="dataset", metadata=dict(data_set))
    manifest = open_storage(data_set["uri"]).address(f"{FOLDER}/{data_set['version']:08d}.json")
    artifact.add_reference(_as_uri(manifest), name=data_set["identity"], checksum=False)
    return artifact


def declare_inputs(run: Any, data_sets: Iterable[Mapping[str, Any]]) -> None:
    """Logs the data sets that a run reads. Does not wait for the server.

    `run.use_artifact` fails offline and waits online; the call that it makes for a new artifact works in both.
    """
    for one in data_sets:
        aliases = [f"version-{one['version']}"]
        run._log_artifact(data_set_artifact(one), aliases=aliases, is_user_created=True, use_after_commit=True)


def declare_output(run: Any, data_set: Mapping[str, Any]) -> None:
    """Logs the data set version that an ingestion has written."""
    run.log_artifact(data_set_artifact(data_set), aliases=[f"version-{data_set['version']}"])


def log_model(
    config: TrackingConfig, run_name: str, run_id: str, folder: str, address: str, metadata: Mapping[str, Any]
) -> str:
    """Logs weights that were exported from a run as its output. Returns the command that uploads it, if W&B is offline.

    Args:
        run_id: the id in the run's run.json.
        folder: local folder that W&B writes to.
        address: of the file or folder that was written.
        metadata: must hold the `sha256` of the weights.
    """
    if with_environment(config, os.environ).wandb_mode == "disabled":
        return ""
    import wandb

    artifact = wandb.Artifact(f"{run_name}-weights", type="model", metadata={"address": address, **metadata})
    artifact.add_reference(_as_uri(address), name=metadata["sha256"], checksum=False)
    with open_run(config, run_name, run_id, folder, config=None, job_type=None) as run:
        run.log_artifact(artifact)
    return sync_command(run)


def _as_uri(address: str) -> str:
    return address if "://" in address else Path(address).absolute().as_uri()


def _name(uri: str) -> str:
    """A name that W&B allows: the last part of an address, and a hash of the whole."""
    last = re.sub(r"[^A-Za-z0-9._-]", "-", uri.rstrip("/").rpartition("/")[2])[:80]
    return f"{last}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
