"""The section of jobs/embed.py: what it refuses."""

import pytest
from pydantic import ValidationError

from jobs.cli.embed_config import EmbedConfig
from pipeline.errors import ConfigError
from training.config import refuse_auto_on_an_empty_cluster


def test_a_range_of_workers_names_the_smaller_first():
    assert EmbedConfig(num_workers=[2, 8]).num_workers == (2, 8)
    with pytest.raises(ValidationError, match=r"num_workers=\[8, 2\]: is \[min, max\]; give the smaller first"):
        EmbedConfig(num_workers=[8, 2])


def test_auto_is_refused_where_there_is_no_node_to_look_at():
    with pytest.raises(ConfigError, match=r"^embed\.use_gpu=auto: "):
        refuse_auto_on_an_empty_cluster("embed", EmbedConfig(cpus_per_worker=2), {"GPU": 0.0})
    refuse_auto_on_an_empty_cluster("embed", EmbedConfig(), {"GPU": 1.0})
