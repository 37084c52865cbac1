"""Prepares fetched images for storage: checks the header, decodes, rotates upright, converts to RGB, resizes and encodes.

JPEGs, the format of nearly all photographs on the web, are decoded by libjpeg-turbo, at a half, quarter or eighth of their size
if the target is much smaller. JPEGs that it refuses, and all other formats, are decoded by Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from model.image_files import loses_pixels, orientation, prepare_image_file, read_exif, refuse_lost_pixels, to_rgb
from model.whole_files import whole_file
from pipeline.config import ImageConfig
from pipeline.dataset.shard import StoredImage
from pipeline.errors import Failure
from pipeline.transform.content_names import FORMATS, refusal
from pipeline.transform.resize import Pixels, encode, resize, target_size

EXIF_LIMIT_CHARACTERS = 4096
DIRECTORIES: dict[int, dict[int, str]] = {0x8769: ExifTags.TAGS, 0x8825: ExifTags.GPSTAGS}
"""Tags that point to a directory within the Exif data, of the camera and of GPS, and the names of its tags."""
LARGEST_SIDE_PX = {"jpg": 65_500, "webp": 16_383, "png": 1_000_000}
"""Limits of libjpeg, of the WebP format, and of libpng."""
JPEGS = ("JPEG", "MPO")
"""Pillow's names for JPEG files; MPO is a JPEG with more images behind the first, as telephones write it."""

Image.MAX_IMAGE_PIXELS = None  # `ingest.image.max_pixels` is checked from the header instead, with a reason


def prepare_image(data: bytes, config: ImageConfig) -> StoredImage | Failure:
    """Returns the image as it is stored, or the reason for the failure. Bad data never raises."""
    outcome = _prepare(data, config)
    whole = whole_file(data) if isinstance(outcome, Failure) and outcome.reason == "decode" else None
    if whole is None:
        return outcome
    repaired = _prepare(whole, config)
    return repaired if isinstance(repaired, Failure) else replace(repaired, original_sha256=_sha256(data))


def _prepare(data: bytes, config: ImageConfig) -> StoredImage | Failure:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        failure = _check_header(image.width, image.height, config)
        if failure is None and image.format in JPEGS:
            failure = _check_side(image.width, image.height, "jpg")
        if failure is not None:
            return failure
        prepare_image_file(image, data)
        if image.format == "PNG":
            image.load()  # or `_exif` would: Pillow looks for Exif data behind the pixels, and then has only a part of them
        exif_json = _exif_json(image)
        pixels_HWC = _decode(image, data, config)
        turn = orientation(image)  # not before decoding: Pillow turns TIFFs while it decodes them, and says so then
        pixels_HWC = _upright(pixels_HWC, turn)
        original = image.size if turn not in (5, 6, 7, 8) else image.size[::-1]
        if _may_stay(image, original, turn, config):
            stored, (width, height) = data, original
        else:
            resized_HWC = resize(pixels_HWC, config, original)
            failure = _check_side(resized_HWC.shape[1], resized_HWC.shape[0], config.format)
            if failure is not None:
                return failure
            stored, width, height = encode(resized_HWC, config), resized_HWC.shape[1], resized_HWC.shape[0]
    except Image.UnidentifiedImageError:
        return Failure("failed_to_resize", *refusal(data))
    except Exception as error:  # decoders raise anything on broken data: OSError, ValueError, SyntaxError, struct.error
        return Failure("failed_to_resize", "decode", " ".join(f"{type(error).__name__}: {error}".split())[:200])
    return StoredImage(stored, width, height, *original, exif_json, _sha256(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image as it is meant to be seen, from its header. Raises what Pillow raises on bad data."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        whole = whole_file(data)
        if whole is None:
            raise
        data, image = whole, Image.open(io.BytesIO(whole))
    if image.format == "PNG" and b"eXIf" not in data:  # Pillow would decode it, to look behind it
        return image.size
    return image.size[::-1] if orientation(image) in (5, 6, 7, 8) else image.size


def _decode(image: Image.Image, data: bytes, config: ImageConfig) -> Pixels:
    """Decodes to RGB (H, W, 3), not yet rotated, perhaps at a reduced scale, but not below the target size."""
    if image.format in JPEGS and image.mode == "CMYK":
        refuse_lost_pixels(data)
    if image.format in JPEGS and image.mode in ("RGB", "L"):
        target = target_size(*image.size, config)
        least = _scaled_size(image.size, target)
        try:
            # The less accurate fast transforms are good enough when each output pixel averages several decoded ones.
            quick = image.width >= 1.25 * target[0]
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB", quick, quick, min_width=least[0], min_height=least[1]))
        except ValueError as error:
            # Unusual but valid files are refused too: Pillow decodes those. Of lost pixels it would make grey areas.
            if loses_pixels(error, data):
                raise
    return np.asarray(to_rgb(image))


def _scaled_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a scaled JPEG decode that leaves at least a factor of two to the resize.

    Scaling while decoding costs quality, which averaging at least 2 x 2 pixels hides. Only a half, a quarter and an eighth
    are used: libjpeg's other fractions cost more quality.
    """
    factor = min(size[0] / target[0], size[1] / target[1])
    divisor = next((divisor for divisor in (8, 4, 2) if factor >= 2 * divisor), 1)
    return -(-size[0] // divisor), -(-size[1] // divisor)


def _upright(pixels_HWC: Pixels, turn: int) -> Pixels:
    """Undoes the EXIF orientation (1 to 8; other values are ignored)."""
    if turn in (5, 6, 7, 8):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)  # (H, W, C) -> (W, H, C)
    if turn in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    return np.ascontiguousarray(pixels_HWC)


def _may_stay(image: Image.Image, size: tuple[int, int], turn: int, config: ImageConfig) -> bool:
    """True if the fetched bytes can be stored unchanged: encoding again would only cost quality."""
    stored = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[config.format]
    plain = image.format == stored and image.mode == "RGB" and turn == 1 and not image.has_transparency_data
    fits = config.resize_only_if_bigger and target_size(*size, config) == size
    # Frames last: they are counted by reading them, which fails where a GIF is cut after its first one.
    return config.keep_bytes and plain and fits and getattr(image, "n_frames", 1) == 1


def _check_header(width: int, height: int, config: ImageConfig) -> Failure | None:
    """Applies the limits on dimensions, before anything is decoded."""
    if width * height > config.max_pixels:
        message = f"{width} x {height} pixels are over {config.max_pixels}"
        return Failure("failed_to_resize", "too_many_pixels", message)
    if min(width, height) < config.min_side_px:
        return Failure("dropped", "too_small", f"{width} x {height}: the short side is under {config.min_side_px}")
    if config.max_aspect_ratio is not None and max(width, height) > config.max_aspect_ratio * min(width, height):
        message = f"{width} x {height}: the aspect ratio is over {config.max_aspect_ratio:g}"
        return Failure("dropped", "aspect_ratio", message)
    return None


def _check_side(width: int, height: int, format: str) -> Failure | None:
    """Applies the limit of a format: an image of an extreme shape may exceed it even after resizing."""
    limit = LARGEST_SIDE_PX[format]
    if max(width, height) <= limit:
        return None
    return Failure(
        "failed_to_resize", "too_long_side", f"{width} x {height} pixels: the largest side of a {format} is {limit:,}"
    )


def _exif_json(image: Image.Image) -> str:
    """The Exif tags of text and numbers, those of the camera and of GPS included; the longest are dropped if there are many."""
    found = read_exif(image)
    named = [(ExifTags.TAGS, found)]
    named += [(names, read_exif(image, pointer)) for pointer, names in DIRECTORIES.items() if pointer in found]
    tags: dict[str, Any] = {}
    for names, values in named:
        for number, value in values.items():
            plain = _plain(value) if number not in DIRECTORIES else None
            if plain is not None:
                tags[names[number] if number in names else str(number)] = plain
    while len(text := json.dumps(tags)) > EXIF_LIMIT_CHARACTERS:
        del tags[max(tags, key=lambda name: len(json.dumps(tags[name])))]
    return text


def _plain(value: Any) -> Any:
    """A tag's value as JSON has it: text, a number, or a list of numbers; None for all else."""
    if isinstance(value, str | int):
        return value
    if isinstance(value, tuple):
        values = [_plain(one) for one in value]
        return None if None in values else values
    try:
        number = float(value)  # also of Pillow's rationals
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None
