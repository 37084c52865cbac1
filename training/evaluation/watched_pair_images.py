"""Images of the watched pairs for W&B: a heat map of similarities, and for each caption the images found."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

CELL_PX, TILE_PX, FRAME_PX = 20, 96, 5
RIGHT, OTHER = "#2da44e", "#d0d7de"


def draw_similarity(similarity: list[list[float | None]]) -> Image.Image:
    """Draws cosines as colours, images downwards and captions to the right; NaN is grey.

    Colours span the range of the map itself: CLIP's cosines lie close together, and their order is what counts.
    """
    import matplotlib  # takes a tenth of a worker's start, and few runs draw maps

    cells = np.array([[np.nan if value is None else value for value in row] for row in similarity])
    finite = cells[np.isfinite(cells)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="grey")
    pixels = colours(np.ma.masked_invalid((cells - low) / max(high - low, 1e-9)), bytes=True)[:, :, :3]
    return Image.fromarray(pixels.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1))


def draw_found(pairs: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[tuple[Image.Image, str]]:
    """Yields, for each query in a row of probe.jsonl, the images found, the right one framed in green, and a title."""
    for query, found, rank in zip(pairs["queries"], row["found"], row["rank"], strict=True):
        strip = Image.new("RGB", (len(found) * TILE_PX, TILE_PX), "white")
        for number, place in enumerate(found):
            image = Image.open(io.BytesIO(base64.b64decode(pairs["thumbnails"][place])))
            inner = ImageOps.pad(image, (TILE_PX - 2 * FRAME_PX,) * 2, color="white")
            framed = ImageOps.expand(inner, FRAME_PX, fill=RIGHT if place == query else OTHER)
            strip.paste(framed, (number * TILE_PX, 0))
        yield strip, f"{pairs['captions'][query]} (its own image is number {rank + 1} of {len(pairs['captions'])})"
