"""Encoded images to uint8 pixels in the image encoder's size (paper, section 2.4).

JPEGs are decoded by libjpeg-turbo (simplejpeg), at a half, a quarter or an eighth of their size if that leaves twice the
target; other formats, and JPEGs that are rotated or CMYK, by Pillow. They are resized by torch's antialiased bicubic filter,
which is Pillow's filter in vector instructions and differs from it by at most two levels (docs/decisions/0004-decoding.md).

Augmentation takes its random numbers from the caller, so that a sample's crop can be a function of (seed, epoch, key).
"""

from __future__ import annotations

import contextlib
import io
import math
import random
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.image_files import HARMLESS, loses_pixels, orientation, prepare_image_file, refuse_lost_pixels, to_rgb
from model.whole_files import whole_file

MARGIN = 2
"""A JPEG is decoded at a reduced scale only while both sides stay at least this many times the target."""
Pixels = NDArray[np.uint8]
"""(H, W, 3), RGB."""
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Exif orientation -> the transposition that undoes it."""


class _Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def load_train_image(
    data: bytes | memoryview, size_px: int, rng: random.Random, scale_min: float = 0.9, out: Pixels | None = None
) -> Pixels:
    """A random resized crop, (size_px, size_px, 3), written into `out` if given.

    Its area is a share in [scale_min, 1] of the image's, and its aspect ratio is log-uniform in [3/4, 4/3].

    Raises:
        ValueError: the data cannot be decoded; the message says why.
    """
    opened = _Opened(data)
    box = _random_box(opened.width, opened.height, rng, scale_min)
    divisor = opened.divisor(min(box.width, box.height), size_px)
    box = _Box(*(max(1, round(side / divisor)) if place > 1 else side // divisor for place, side in enumerate(box)))
    pixels = opened.decode(divisor)
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return resize(crop, size_px, size_px, out)


def load_eval_image(data: bytes, size_px: int) -> Pixels:
    """Resizes the short side to size_px and crops the centre, (size_px, size_px, 3). Raises ValueError, like above."""
    opened = _Opened(data)
    pixels = opened.decode(opened.divisor(min(opened.width, opened.height), size_px))
    return eval_crop(pixels, size_px, opened.width, opened.height)


def load_image(data: bytes) -> Pixels:
    """The whole image in its own size, (H, W, 3). Raises ValueError, like above."""
    return _Opened(data).decode(1)


def eval_crop(pixels: Pixels, size_px: int, width: int, height: int) -> Pixels:
    """The evaluation crop of an image of width x height, whose pixels may be decoded at a reduced scale."""
    short = min(width, height)
    width, height = (size_px if side == short else int(size_px * side / short) for side in (width, height))
    pixels = resize(pixels, width, height)
    left, top = round((width - size_px) / 2), round((height - size_px) / 2)
    return pixels[top : top + size_px, left : left + size_px]


def resize(pixels: Pixels, width: int, height: int, out: Pixels | None = None) -> Pixels:
    """Resizes with Pillow's antialiased bicubic filter to (height, width, 3), into `out` if given."""
    if out is None:
        out = np.empty((height, width, 3), dtype=np.uint8)
    if pixels.shape == out.shape:
        out[:] = pixels
        return out
    # (H, W, 3) -> (1, 3, H, W), channels-last and contiguous on both sides, or torch would transpose twice. This is the op
    # behind torch.nn.functional.interpolate(mode="bicubic", antialias=True), which has no `out`.
    from_1CHW = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    to_1CHW = torch.from_numpy(out).permute(2, 0, 1)[None]
    torch.ops.aten._upsample_bicubic2d_aa.out(from_1CHW, [height, width], False, None, None, out=to_1CHW)
    return out


class _Opened:
    """An image of known size. A JPEG is decoded later, by `decode`; other formats are decoded here."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._pixels = data, None
        if data[:2] == b"\xff\xd8" and not _has_exif(data):
            # libjpeg-turbo's interface has no name for some rare subsamplings: Pillow reads those.
            with contextlib.suppress(ValueError):
                self.height, self.width, colours, _ = simplejpeg.decode_jpeg_header(data)
                if colours in ("YCbCr", "Gray", "RGB"):
                    return
        with _said_as_value_error():
            try:
                self._pixels = _pixels_of(data)
            except Exception:
                if (whole := whole_file(data)) is None:
                    raise
                self._pixels = _pixels_of(whole)
        self.height, self.width = self._pixels.shape[:2]

    def divisor(self, side: int, size_px: int) -> int:
        """The largest of 1, 2, 4 and 8 by which a JPEG may be reduced, so that `side` stays at least MARGIN * size_px."""
        if self._pixels is not None:
            return 1
        return next(divisor for divisor in (8, 4, 2, 1) if divisor == 1 or side >= MARGIN * size_px * divisor)

    def decode(self, divisor: int) -> Pixels:
        if self._pixels is not None:
            return self._pixels
        with _said_as_value_error():
            width, height = (-(-side // divisor) for side in (self.width, self.height))
            try:
                return simplejpeg.decode_jpeg(self._data, "RGB", min_height=height, min_width=width, min_factor=1)
            except ValueError as error:
                if loses_pixels(error, self._data) or not any(words in str(error) for words in HARMLESS):
                    whole = whole_file(self._data)
                    if whole is None:
                        raise
                    self._data = whole
            return simplejpeg.decode_jpeg(self._data, "RGB", min_height=height, min_width=width, min_factor=1, strict=False)


class _said_as_value_error:  # noqa: N801 (read as a statement)
    """Turns the exceptions of decoders on broken data into ValueError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            known = not isinstance(error, UnidentifiedImageError)  # Pillow's message is the address of our buffer
            problem = " ".join(str(error).split()) if known else "it is in no format that is known"
            raise ValueError(f"the image cannot be decoded: {problem}") from error


def _pixels_of(data: bytes | memoryview) -> Pixels:
    """A file's pixels, upright, decoded by Pillow."""
    if data[:2] == b"\xff\xd8":
        refuse_lost_pixels(data)
    image: Image.Image = Image.open(io.BytesIO(data))
    prepare_image_file(image, data)
    return np.array(to_rgb(upright(image)))


def upright(image: Image.Image) -> Image.Image:
    """Undoes the orientation that Exif states. An image that is upright already is returned as it is."""
    image.load()  # Pillow turns a TIFF here, and drops its orientation
    # Not ImageOps.exif_transpose: it also writes the Exif data again, which fails for odd tags.
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _has_exif(data: bytes | memoryview) -> bool:
    """True if a JPEG has an Exif segment, which may state a rotation."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if data[at + 1] == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _random_box(width: int, height: int, rng: random.Random, scale_min: float) -> _Box:
    """The sampling rule of torchvision's RandomResizedCrop."""
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(scale_min, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _Box(rng.randint(0, width - w), rng.randint(0, height - h), w, h)
    # No box fits, e.g. in a very wide image: use the largest centred one within the ratios.
    w, h = width, height
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return _Box((width - w) // 2, (height - h) // 2, w, h)
