"""Renders the images that a search found as one self-contained page of thumbnails that fetches nothing.

In: the query, what was found, and the encoded images. Out: HTML. Images are decoded here, so that a page also shows those
that its browser could not.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from model.image_loading import load_image

if TYPE_CHECKING:
    from training.image_search import Found

TEMPLATES = Path(__file__).parent / "assets"
THUMBNAIL_PX = 320
QUALITY = 85


def render(query: str, found: Found, images: list[bytes], model: str) -> str:
    """Renders the page. `images`: those of the hits."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    hits = [
        {
            "score": f"{hit.score:.4f}",
            "key": _text(hit.key),
            "address": _text(hit.address),
            "link": _link(hit.address),
            "caption": _text(hit.caption),
            "thumbnail": thumbnail(image),
        }
        for hit, image in zip(found.hits, images, strict=True)
    ]
    template = environment.get_template("hits.html")
    return template.render(query=_text(query), hits=hits, num_images=found.num_images, skipped=len(found.problems), model=model)


def thumbnail(data: bytes) -> str:
    """A small JPEG of an image, as a data: URL."""
    image = Image.fromarray(load_image(data))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"


def _text(text: str) -> str:
    """A text that UTF-8 can hold: names of files may be other bytes."""
    return text.encode("utf-8", "replace").decode()


def _link(address: str) -> str:
    """The address of a link; empty for what is neither a web page nor a file, such as a script."""
    if address.startswith(("http://", "https://")):
        return _text(address)
    return Path(address).as_uri() if Path(address).is_absolute() else ""
