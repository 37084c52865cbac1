"""The Ray that tests share. It is defined here, so that no test outside this folder can ask for it."""

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.conftest import S3_ENVIRONMENT


@pytest.fixture(scope="session")
def ray_session(s3_endpoint: str) -> Iterator[None]:
    """One Ray for all tests of a process. Its workers find the S3 server through their environment, as a cluster's nodes do."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_endpoint}).items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=True)
    yield
    ray.shutdown()


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """That of a person's shell: no Ray to join, and a folder for one of its own, whose name must be short."""
    names = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "WANDB_SERVICE", "COVERAGE_FILE")}
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield names | {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder}
