"""Room for workers on a Ray of our own, in the words of --check."""

from types import SimpleNamespace

import pytest
import ray

from jobs.cli.config import load_config
from jobs.cli.room import Demand, find_room, refuse_on_a_ray_of_our_own, refuse_what_does_not_fit, training_demand
from pipeline.errors import ConfigError

MACHINE = [{"Resources": {"CPU": 2.0}}]
GPUS = [{"Resources": {"CPU": 8.0, "GPU": 2.0}}]


@pytest.mark.parametrize(
    ("demand", "nodes", "message"),
    [
        (Demand("cluster", 4, "auto", "auto"), MACHINE, "2 workers of 1 CPU fit on 1 nodes, and cluster.num_workers=4; "),
        (Demand("cluster", 4, "auto", "auto"), MACHINE, "this machine is the only node: set cluster.num_workers=2, or join"),
        (Demand("cluster", (3, 8), 1, False), MACHINE, "2 workers of 1 CPU fit on 1 nodes, and cluster.num_workers=[3, 8]; "),
        (Demand("cluster", 1, "auto", True), MACHINE, "0 workers of 1 CPU, 1 GPU fit on 1 nodes, and cluster.num_workers=1; "),
        (Demand("cluster", 1, "auto", True), MACHINE, "this machine has no GPU: set cluster.use_gpu=false, or join"),
        (Demand("cluster", 1, 11, False), MACHINE, "set cluster.cpus_per_worker to at most 2"),
        (Demand("cluster", 3, "auto", "auto"), GPUS, "2 workers of 1 CPU, 1 GPU fit on 1 nodes, and cluster.num_workers=3; "),
        (Demand("embed", 1, 5, True), MACHINE, "embed.use_gpu=false"),
    ],
)
def test_what_a_ray_of_our_own_cannot_have_is_refused_with_what_it_can(demand, nodes, message):
    with pytest.raises(ConfigError) as refusal:
        refuse_what_does_not_fit(demand, nodes)
    assert str(refusal.value).startswith("room: ")
    assert message in str(refusal.value)


def test_the_remedies_fit():
    for demand in (Demand("cluster", 2, "auto", "auto"), Demand("cluster", 1, 2, False), Demand("cluster", (1, 9), 1, "auto")):
        refuse_what_does_not_fit(demand, MACHINE)
        assert find_room(demand, MACHINE).enough
    refuse_what_does_not_fit(training_demand(load_config("debug_cpu").cluster), MACHINE)


def test_a_cluster_that_was_joined_may_get_more_nodes_and_is_not_judged(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, **MACHINE[0]}, {"Alive": False, **GPUS[0]}])
    for head, refused in ((None, False), (SimpleNamespace(head=False), False), (SimpleNamespace(head=True), True)):
        monkeypatch.setattr("ray._private.worker._global_node", head)
        if refused:
            with pytest.raises(ConfigError, match=r"set cluster\.num_workers=2"):
                refuse_on_a_ray_of_our_own(Demand("cluster", 4, "auto", "auto"))
        else:
            refuse_on_a_ray_of_our_own(Demand("cluster", 4, "auto", "auto"))
