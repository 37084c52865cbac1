import pytest

from pipeline.errors import ConfigError
from training.config import ClusterConfig, refuse_auto_on_an_empty_cluster


@pytest.mark.parametrize(
    ("section", "resources", "said"),
    [
        (ClusterConfig(), {}, r"^cluster\.use_gpu=auto: .*cluster\.use_gpu=true"),
        (ClusterConfig(use_gpu=False), {"memory": 9.0, "CPU": 0.0}, r"^cluster\.cpus_per_worker=auto: "),
    ],
)
def test_auto_is_refused_where_there_is_no_node_to_look_at(section, resources, said):
    with pytest.raises(ConfigError, match=said):
        refuse_auto_on_an_empty_cluster("cluster", section, resources)


@pytest.mark.parametrize(
    ("section", "resources"),
    [(ClusterConfig(), {"CPU": 2.0}), (ClusterConfig(use_gpu=True, cpus_per_worker=11), {})],
)
def test_auto_is_settled_by_a_node_and_what_is_said_needs_none(section, resources):
    refuse_auto_on_an_empty_cluster("cluster", section, resources)
