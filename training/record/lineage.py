"""Lineage in W&B: data set version -> run -> exported weights.

In: the identity of a data set version, or of exported weights. Out: artifacts that hold a reference and no file: nothing is
uploaded, and no content is read. W&B distinguishes versions of an artifact by the addresses and names in it, so a reference is
named after the identity of its content. The functions raise what W&B raises; callers log it and continue.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dataset.manifest import FOLDER
from pipeline.storage.address import open_storage
from training.config import TrackingConfig

SERVER_ANSWERS_WITHIN_S = 30.0
"""Longest wait for W&B's server before a start continues without it; W&B's 90 s would be lost at every restart."""
TOO_MANY_REQUESTS = 429
UPLOADED_WITHIN_S = 60.0
"""Longest wait for what is left to upload at the end; without it, W&B waits as long as its server is away."""


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
) -> None:
    """Logs weights that were exported from a run as its output.

    Args:
        run_id: the id in the run's run.json.
        folder: local folder that W&B writes to.
        address: of the file or folder that was written.
        metadata: must hold the `sha256` of the weights.
    """
    if config.wandb_mode == "disabled":
        return
    import wandb

    artifact = wandb.Artifact(f"{run_name}-weights", type="model", metadata={"address": address, **metadata})
    artifact.add_reference(_as_uri(address), name=metadata["sha256"], checksum=False)
    with open_run(config, run_name, run_id, folder, config=None, job_type=None) as run:
        run.log_artifact(artifact)


def open_run(
    tracking: TrackingConfig,
    run_name: str | None,
    run_id: str | None,
    folder: str | None,
    config: dict[str, Any] | None,
    job_type: str | None,
    holds_all: bool = False,
) -> Any:
    """Opens a W&B run as `tracking.*` says, or resumes the one with a known id. Raises what W&B raises.

    Args:
        holds_all: all rows of the run will be logged, from its first step on. Then `wandb sync` of an offline run must replace
            what the server has: appended, its rows would get the steps after the server's last one.
    """
    import wandb

    replaces = holds_all and tracking.wandb_mode == "offline"

    return wandb.init(
        project=tracking.wandb_project,
        entity=tracking.wandb_entity,
        name=run_name,
        id=run_id,
        resume="allow" if run_id and not replaces else None,
        reinit="create_new",  # a run that other code has open in this process stays open
        mode=tracking.wandb_mode,
        dir=folder,
        config=config,
        job_type=job_type,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=SERVER_ANSWERS_WITHIN_S,
            finish_timeout=UPLOADED_WITHIN_S,
            finish_timeout_raises=True,
        ),
    )


def why_server_is_away() -> str:
    """Reason why W&B's server cannot be used now; an empty string if it answers.

    W&B itself would wait for it while it starts, and could then not open the same run offline.
    """
    import wandb

    address = wandb.setup().settings.base_url
    request = urllib.request.Request(f"{address}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"})
    deadline, away = time.monotonic() + SERVER_ANSWERS_WITHIN_S, ""
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(request, timeout=SERVER_ANSWERS_WITHIN_S / 3).close()
            return ""
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != TOO_MANY_REQUESTS:
                return ""
            away = f"{address} answers with {error.code}"
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLError):
                return ""  # it answers; W&B may trust authorities that Python does not
            away = f"{address} does not answer ({' '.join(str(error).split())})"
        time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))
    return away


def _as_uri(address: str) -> str:
    return address if "://" in address else Path(address).absolute().as_uri()


def _name(uri: str) -> str:
    """A name that W&B allows: the last part of an address, and a hash of the whole."""
    last = re.sub(r"[^A-Za-z0-9._-]", "-", uri.rstrip("/").rpartition("/")[2])[:80]
    return f"{last}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
