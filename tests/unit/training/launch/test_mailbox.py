"""Words of one launch, in a store that others share."""

import time

from training.launch.mailbox import Mailbox, ask_to_stop


def mailboxes(*launches):
    store = {}
    return [Mailbox(launch, store.__setitem__, lambda key: store.get(key, "")) for launch in launches]


def test_a_word_is_read_by_its_own_launch_alone_and_replaced_by_the_next():
    one, two = mailboxes("one", "two")
    assert one.get("save") == ""
    one.put("save", "a")
    one.put("save", "b")
    assert (one.get("save"), two.get("save")) == ("b", "")


def test_a_request_to_stop_returns_before_the_store_has_answered():
    arrived = []

    def slow(key, word):
        time.sleep(0.3)
        arrived.append((key, word))

    began = time.monotonic()
    ask_to_stop(Mailbox("one", slow, str))
    assert time.monotonic() - began < 0.25
    while not arrived:
        time.sleep(0.01)
    assert arrived == [("one/stop", "yes")]
