"""Reads from S3 survive truncated bodies, and refused uploads are reported."""

import pytest

from pipeline.errors import StorageError
from pipeline.storage.address import open_storage


def test_a_body_that_is_cut_is_asked_for_again(bucket, web, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    bodies = [b"0123", b"", b"0123456789"]

    def cut(handler):
        body = bodies.pop(0)
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    path = f"/{bucket.removeprefix('s3://')}/x"
    web.put(path, cut)
    assert open_storage(bucket).read("x") == b"0123456789"
    assert web.hits(path) == 3


def test_an_upload_that_is_refused_is_a_storage_error(bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="no-such-bucket-here"):
        open_storage("s3://no-such-bucket-here/x").write_file("y", tmp_path / "file")


def test_a_store_that_ignores_ranges_is_refused_where_that_would_give_other_bytes(bucket, web, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    web.put(f"/{bucket.removeprefix('s3://')}/x", b"0123456789")  # whole, whatever part is asked for
    storage = open_storage(bucket)
    assert storage.read_range("x", 0, 4) == b"0123"
    with pytest.raises(StorageError, match=r"/x: .* ignores ranges: it sent the whole object instead of its bytes from 4 on"):
        storage.read_range("x", 4, 4)
