"""The web server of the ingestion benchmark."""

import io
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from jobs.benchmarks.image_server import NUM_IMAGES, SIZE_PX, certificate, photographs
from jobs.benchmarks.ingestion import _server


def test_photographs_are_distinct_jpegs_of_one_size():
    jpegs = photographs()
    assert len(set(jpegs)) == NUM_IMAGES
    assert {Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs[:4]} == {SIZE_PX}


def test_the_certificate_is_trusted_by_whoever_is_given_the_authority(tmp_path):
    assert isinstance(certificate(tmp_path), ssl.SSLContext)
    assert ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))


def test_good_addresses_respond_and_mixed_ones_misbehave_by_their_number(tmp_path):
    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"{server.address}{path}", timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def number_of(kind: range) -> int:
        return next(number for number in range(1000) if number * 7919 % 100 in kind)

    with _server(Path(tmp_path), tls=False) as server:
        assert status("/good/1.jpg") == 200
        refused = number_of(range(10, 25))
        assert [status(f"/mixed/{refused}.jpg") for _ in range(2)] == [503, 200]
        assert status(f"/mixed/{number_of(range(45, 50))}.jpg") == 404
        assert status(f"/mixed/{number_of(range(35, 45))}.jpg") == 200, "redirected"
        reset = number_of(range(25, 35))
        with pytest.raises((OSError, urllib.error.URLError)):
            status(f"/mixed/{reset}.jpg")
        assert status(f"/mixed/{reset}.jpg") == 200
