"""What the tests of tars and those of weights build on."""

import pytest

from model.config import ARCHITECTURES


@pytest.fixture
def image(draw_shape):
    return draw_shape("red", "disc", 0)


@pytest.fixture
def indexed(tmp_path):
    """Writes a tar's content to a file and indexes it."""
    from tests.support.tars import Indexed

    return lambda content, **config: Indexed(tmp_path, content, **config)


@pytest.fixture
def tiny_architecture(monkeypatch):
    """An architecture whose weights are made in milliseconds, under the name `tiny`."""
    from tests.support.weights import TINY

    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
