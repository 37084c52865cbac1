"""Bytes from the web to the picture that is stored: checked by its header, upright, RGB, resized and encoded.

Resizing and encoding are img2dataset's `Resizer`, so that its users find their options and its readers their pictures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pipeline.config import ImageConfig
from pipeline.types import Failure

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What magic bytes may say; a Content-Type is not asked."""
EXIF_LIMIT_CHARACTERS = 4096

Image.MAX_IMAGE_PIXELS = None  # `ingest.image.max_pixels` is checked from the header instead, with a reason


@dataclass(frozen=True)
class Picture:
    """A picture as it is stored.

    Attributes:
        original_width, original_height: before resizing, upright.
        exif: JSON of the tags that are text or numbers.
    """

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str


def prepare_image(data: bytes, config: ImageConfig) -> Picture | Failure:
    """Decodes, checks, turns upright, converts to RGB, resizes and encodes. Never raises for what the data holds."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        failure = _check_header(image.width, image.height, config)
        if failure is not None:
            return failure
        exif = _exif_json(image)
        upright = to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        return Failure("failed_to_resize", "not_an_image", "the magic bytes are those of no picture that is read")
    except Exception as error:  # decoders raise what they like on broken data: OSError, ValueError, SyntaxError, struct.error
        return Failure("failed_to_resize", "decode", " ".join(f"{type(error).__name__}: {error}".split())[:200])
    # BMP costs next to nothing to write and read, and lets the Resizer see what Pillow has checked whole and made upright.
    stream = io.BytesIO()
    upright.save(stream, "BMP")
    encoded, width, height, original_width, original_height, refusal = _resizer(config)(stream)
    if refusal is not None:
        return Failure("failed_to_resize", "decode", " ".join(str(refusal).split())[:200])
    return Picture(encoded, width, height, original_width, original_height, exif)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits scaled to 8, transparency on white."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits to white instead of scaling them.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _check_header(width: int, height: int, config: ImageConfig) -> Failure | None:
    """What the dimensions alone decide, before anything is decoded."""
    if width * height > config.max_pixels:
        message = f"{width} x {height} pixels are over {config.max_pixels}"
        return Failure("failed_to_resize", "too_many_pixels", message)
    if min(width, height) < config.min_side_px:
        return Failure("dropped", "too_small", f"{width} x {height}: the short side is under {config.min_side_px}")
    if config.max_aspect_ratio is not None and max(width, height) > config.max_aspect_ratio * min(width, height):
        message = f"{width} x {height}: the aspect ratio is over {config.max_aspect_ratio:g}"
        return Failure("dropped", "aspect_ratio", message)
    return None


def _exif_json(image: Image.Image) -> str:
    tags: dict[str, Any] = {}
    for number, value in image.getexif().items():
        if isinstance(value, str | int | float):
            tags[ExifTags.TAGS[number] if number in ExifTags.TAGS else str(number)] = value
    text = json.dumps(tags)
    return text if len(text) <= EXIF_LIMIT_CHARACTERS else "{}"


@lru_cache(maxsize=8)
def _resizer(config: ImageConfig) -> Any:
    """img2dataset's Resizer, imported here because it brings 500 MB of libraries that the driver has no use for."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version on import
    from img2dataset import resizer

    # It points file descriptors 1 and 2 of the whole process at /dev/null for every picture, under other threads' feet.
    resizer.SuppressStdoutStderr = contextlib.nullcontext
    return resizer.Resizer(
        image_size=config.size_px,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=config.resize_only_if_bigger,
        encode_quality=config.quality,
        encode_format=config.format,
    )
