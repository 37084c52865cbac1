"""Before a group changes its size: a running one saves, and nodes that are gone are counted no more."""

import socket
import threading
import time

import pytest

from training.launch import group_size
from training.launch.group_size import GroupSize, wait_for_dead_nodes
from training.launch.mailbox import Mailbox


class Cluster:
    """Nodes by id; `forgets` are believed to be alive for a while."""

    recount_delay_s = 0.0

    def __init__(self, nodes=(), forgets=(), draining=None):
        self.nodes, self.forgets, self.draining = list(nodes), set(forgets), draining or {}
        self.recounts = self.asked = 0

    def alive_nodes(self):
        self.asked += 1
        if self.asked > 3:
            self.nodes = [node for node in self.nodes if node["NodeID"] not in self.forgets]
        return self.nodes

    def draining_nodes(self):
        return self.draining

    def recount_resources(self):
        self.recounts += 1


@pytest.fixture
def mailbox():
    store = {}
    return Mailbox("one", store.__setitem__, lambda key: store.get(key, ""))


@pytest.fixture
def ports():
    """One that accepts connections, and one that does not."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
        closed.close()
        yield server.getsockname()[1], free


def node(name, port):
    return {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}


def test_a_resize_waits_until_a_running_group_has_saved(mailbox):
    size = GroupSize(mailbox, Cluster(), 1.0)
    size.scheduling(group_runs=True)

    def answer():
        while not mailbox.get("save"):
            time.sleep(0.01)
        time.sleep(0.1)
        mailbox.put("saved", mailbox.get("save"))

    threading.Thread(target=answer).start()
    size.resizing()
    assert mailbox.get("saved") == mailbox.get("save") != ""


def test_the_driver_hears_when_a_launch_waits_for_workers_and_when_they_have_started(mailbox):
    size = GroupSize(mailbox, Cluster(), None)
    size.scheduling(group_runs=False)
    assert (mailbox.get("waits"), mailbox.get("trains")) == ("yes", "")
    size.running()
    assert mailbox.get("waits") == ""
    mailbox.put("trains", "yes")
    size.scheduling(group_runs=True)
    assert mailbox.get("trains") == "yes", "a group that runs still hears requests"
    size.restarting()
    assert (mailbox.get("waits"), mailbox.get("trains")) == ("yes", "")


def test_the_first_group_of_a_launch_is_not_asked_to_save(mailbox):
    size = GroupSize(mailbox, Cluster(), 1.0)
    size.scheduling(group_runs=False)
    size.resizing()
    assert mailbox.get("save") == ""


def test_a_group_that_does_not_save_in_time_is_resized_all_the_same(mailbox, monkeypatch):
    monkeypatch.setattr(group_size, "RESIZE_WAITS_S", 0.1)
    size = GroupSize(mailbox, Cluster(), 1.0)
    size.scheduling(group_runs=True)
    size.resizing()
    assert mailbox.get("save") != ""


def test_a_group_of_one_size_never_counts_the_nodes_while_it_runs_and_others_do_every_half_period(mailbox, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    clusters = {None: Cluster(), 10.0: Cluster()}
    sizes = [GroupSize(mailbox, cluster, every_s) for every_s, cluster in clusters.items()]
    for second in range(20):
        clock["now"] = float(second)
        for size in sizes:
            size.polled()
    assert clusters[None].recounts == 0
    assert clusters[10.0].recounts == 3


def test_a_restart_waits_for_a_node_that_does_not_answer_and_counts_again(mailbox, ports):
    cluster = Cluster([node("here", ports[0]), node("gone", ports[1])], forgets={"gone"})
    GroupSize(mailbox, cluster, 1.0).restarting()
    assert [one["NodeID"] for one in cluster.nodes] == ["here"]
    assert cluster.recounts == 1


def test_a_restart_waits_for_no_node_where_all_answer_and_for_one_that_is_drained_by_now(ports):
    cluster = Cluster([node("here", ports[0])], draining={"here": 0, "elsewhere": time.time() - 1})
    wait_for_dead_nodes(cluster)
    assert cluster.asked == 2
    drained = Cluster([node("here", ports[0])], forgets={"here"}, draining={"here": time.time() + 1})
    wait_for_dead_nodes(drained)
    assert drained.nodes == []


def test_a_cluster_that_cannot_be_asked_is_only_a_warning(mailbox, caplog):
    class Silent(Cluster):
        def alive_nodes(self):
            raise ConnectionError("no head")

    cluster = Silent()
    GroupSize(mailbox, cluster, None).restarting()
    assert "dead nodes cannot be found (ConnectionError: no head)" in caplog.text
    assert cluster.recounts == 1
