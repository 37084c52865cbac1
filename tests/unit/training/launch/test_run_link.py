"""Requests that reach rank 0, and the answers that it gives."""

import time

import pytest

from pipeline.metrics import Publisher
from tests.support.metrics_library import MetricsLibrary
from training.launch.mailbox import Mailbox
from training.launch.run_link import RunLink
from training.metrics import TRAINING
from training.save_and_stop import Request


class Place:
    """A launch's mailbox, its metrics, and a node's removal."""

    def __init__(self):
        store = {}
        self.mailbox = Mailbox("one", store.__setitem__, lambda key: store.get(key, ""))
        self.metrics_library = MetricsLibrary()
        self.publisher = Publisher(TRAINING, {"run": "r"}, self.metrics_library)
        self.removal = None

    def link(self):
        return RunLink(self.mailbox, self.publisher, lambda: self.removal)


@pytest.fixture
def place():
    one = Place()
    with one.publisher:
        yield one


def test_a_request_to_save_is_heard_once_and_its_commit_is_answered_and_published():
    place = Place()
    with place.publisher:
        link = place.link()
        assert link.requested() == Request.NONE
        place.mailbox.put("save", "first")
        assert link.requested() == Request.SAVE
        assert link.requested() == Request.NONE
        committed = link.saving()
        assert place.mailbox.get("saved") == ""
        committed(7)
    assert place.mailbox.get("saved") == "first"
    assert place.metrics_library.of("rayclip_train_checkpoint_step", run="r") == 7


def test_a_new_group_does_not_answer_a_request_to_the_one_before(place):
    place.mailbox.put("save", "old")
    assert place.link().requested() == Request.NONE


def test_a_request_to_stop_stays(place):
    link = place.link()
    place.mailbox.put("stop", "yes")
    assert [link.requested(), link.requested()] == [Request.STOP, Request.STOP]


def test_a_node_that_will_be_removed_is_saved_for_at_the_notice_and_once_more_before_the_end(place, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    link = place.link()
    place.removal = 1120.0
    heard = {}
    for now in (1000.0, 1001.0, 1104.0, 1106.0, 1107.0):
        heard[now] = link.requested()
    assert [moment for moment, request in heard.items() if request] == [1000.0, 1106.0]


def test_a_removal_without_a_deadline_is_expected_after_two_minutes(place, monkeypatch, capsys):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    place.removal = 0.0
    assert place.link().requested() == Request.SAVE
    assert "will be removed in 120 s" in capsys.readouterr().out


def test_the_driver_hears_that_rank_0_hears_requests():
    place = Place()
    with place.publisher:
        link = place.link()
        assert place.mailbox.get("trains") == ""
        link.requested()
        assert place.mailbox.get("trains") == "yes"


def test_that_a_stop_was_asked_for_is_known_before_and_after_it_is_heard():
    place = Place()
    with place.publisher:
        link = place.link()
        assert not link.stop_is_asked()
        place.mailbox.put("stop", "yes")
        assert link.stop_is_asked()
        assert Request.STOP in link.requested()
        assert link.stop_is_asked()
