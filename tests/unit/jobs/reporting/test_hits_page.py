"""The page of a search: whole in one file, and nothing in a name or a caption becomes markup or a script."""

import base64
import io
import re

import numpy as np
from PIL import Image

from jobs.reporting.hits_page import THUMBNAIL_PX, render, thumbnail
from training.image_search import Found, Hit


def encoded(width: int, height: int, format: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(sink, format, **options)
    return sink.getvalue()


def page(*hits: Hit, query: str = "a dog") -> str:
    return render(query, Found(list(hits), 1234, ["one"]), [encoded(40, 30)] * len(hits), "runs/mine")


def test_hits_stand_in_order_with_score_caption_and_thumbnail():
    text = page(Hit(7, 0.5, "k7", "https://e.org/7.jpg", "a brown dog"), Hit(3, 0.25, "k3", "/data/3.jpg"))
    assert text.index("0.5000") < text.index("0.2500")
    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert "a brown dog" in text
    assert '<a href="https://e.org/7.jpg">k7</a>' in text
    assert '<a href="file:///data/3.jpg">k3</a>' in text
    assert "1234 images compared; unreadable: 1; model: runs/mine" in text
    assert not re.findall(r'(?:src|href)="(?!data:|https://e\.org|file:)', text)


def test_names_captions_and_addresses_stay_text():
    script = "<script>alert(1)</script>"
    text = page(Hit(0, 0.1, script, "javascript:alert(1)", script), Hit(1, 0.1, "\udce9", "s3://b/a.tar"), query=script)
    assert "<script" not in text
    assert 'href="javascript' not in text
    assert "s3://b/a.tar" in text
    text.encode("utf-8")


def test_a_thumbnail_is_small_and_upright():
    exif = Image.Exif()
    exif[274] = 6
    data = base64.b64decode(thumbnail(encoded(1200, 600, "JPEG", exif=exif)).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (THUMBNAIL_PX // 2, THUMBNAIL_PX)
