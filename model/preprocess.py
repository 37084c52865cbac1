"""Encoded pictures to what the image encoder takes (paper, section 2.4), in Pillow.

Pictures leave the CPU as uint8, a quarter of the bytes, and are normalised on the device. Augmentation takes its randomness
from the caller, so that a sample's crop can be a function of (seed, epoch, key).
"""

from __future__ import annotations

import io
import math
import random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

DRAFT_MARGIN = 2
"""A JPEG is decoded at a reduced scale only while both sides stay at least this many times the target."""


def decode_image(data: bytes, size_px: int | None = None) -> Image.Image:
    """Decodes to RGB, upright, transparency on white, 16 bits scaled to 8.

    Args:
        size_px: the size that the picture will be resized to; lets a large JPEG be decoded at a fraction of its size.

    Raises:
        ValueError: Pillow cannot decode the data; the message says why.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if size_px is not None:
            image.draft("RGB", (size_px * DRAFT_MARGIN, size_px * DRAFT_MARGIN))
        image = ImageOps.exif_transpose(image)
        return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture cannot be decoded: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes to RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion would clip it to white.
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image.convert("RGB")


def train_crop(image: Image.Image, size_px: int, rng: random.Random, scale_min: float = 0.9) -> NDArray[np.uint8]:
    """A random resized crop: (size_px, size_px, 3), uint8.

    The area is a share in [scale_min, 1] of the picture's, the aspect ratio log-uniform in [3/4, 4/3], bicubic.
    """
    left, top, width, height = _random_box(image.width, image.height, rng, scale_min)
    crop = image.crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size_px, size_px), Image.Resampling.BICUBIC))


def _random_box(width: int, height: int, rng: random.Random, scale_min: float) -> tuple[int, int, int, int]:
    """(left, top, width, height); the sampling rule of torchvision's RandomResizedCrop."""
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(scale_min, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    # No box fits, as in a very wide picture: the largest centred one within the ratios.
    w, h = width, height
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return (width - w) // 2, (height - h) // 2, w, h


def eval_crop(image: Image.Image, size_px: int) -> NDArray[np.uint8]:
    """The short side resized, bicubic, then the centre: (size_px, size_px, 3), uint8."""
    short = min(image.width, image.height)
    width, height = (size_px if side == short else int(size_px * side / short) for side in (image.width, image.height))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size_px) / 2), round((height - size_px) / 2)
    return np.asarray(image.crop((left, top, left + size_px, top + size_px)))


def normalize_images(images_BCHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, with CLIP's mean and standard deviation, on whichever device the pictures are."""
    mean = torch.tensor(MEAN, device=images_BCHW.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images_BCHW.device).view(3, 1, 1)
    return images_BCHW.float().div_(255).sub_(mean).div_(std)


class Preprocess:
    """The evaluation transform as one callable: a PIL image -> float32 (3, size_px, size_px)."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __call__(self, image: Image.Image) -> Tensor:
        pixels_HWC = torch.from_numpy(eval_crop(to_rgb(image), self.size_px).copy())
        # (H, W, C) -> (C, H, W)
        return normalize_images(pixels_HWC.permute(2, 0, 1))
