"""The Ray that tests share. It is defined here, so that no test outside this folder can ask for it."""

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
