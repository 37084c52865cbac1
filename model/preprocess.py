"""Prepares images for the image encoder: pixels of its size, and floats normalised with CLIP's statistics (paper, section 2.4).

Images leave the CPU as uint8, a quarter of the bytes, and are normalised on the device.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.image_files import to_rgb
from model.image_loading import Pixels, eval_crop, load_eval_image, upright

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
AnImage = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""A path of an image file, its bytes, a PIL image, or uint8 values of shape (height, width, 3) or (height, width)."""


def normalize_images(images_BCHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, with CLIP's mean and standard deviation, on whichever device the images are."""
    mean, std = _statistics(images_BCHW.device)
    return images_BCHW.float().div_(255).sub_(mean).div_(std)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, cached on the device: copying them in every step would wait for the GPU."""
    return torch.tensor(MEAN, device=device).view(3, 1, 1), torch.tensor(STD, device=device).view(3, 1, 1)


def eval_pixels(image: AnImage, size_px: int) -> Pixels:
    """The evaluation transform up to normalisation, uint8 (size_px, size_px, 3); Exif's orientation is applied.

    A file, given as a path or as bytes, has exactly the pixels that jobs/evaluate.py and jobs/embed.py compute. A PIL image and
    an array hold pixels that were decoded elsewhere, at full size, so that they may differ from these by a few levels.

    Raises:
        ValueError: the image cannot be decoded, or is none.
        OSError: the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return load_eval_image(Path(image).expanduser().read_bytes(), size_px)
    if isinstance(image, bytes | bytearray | memoryview):
        return load_eval_image(bytes(image), size_px)
    opened = image if isinstance(image, Image.Image) else _from_array(image)
    pixels = np.array(to_rgb(upright(opened)))
    return eval_crop(pixels, size_px, pixels.shape[1], pixels.shape[0])


def _from_array(values: Any) -> Image.Image:
    if not isinstance(values, np.ndarray):
        raise ValueError(f"is a {type(values).__name__}, not an image; give a path, bytes, a PIL image or an array")
    if values.dtype != np.uint8 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise ValueError(
            f"is an array of {values.dtype} with shape {values.shape}; give uint8 values, 0 to 255, of shape "
            "(height, width, 3), or (height, width) for grey"
        )
    if not values.size:
        raise ValueError(f"is an array without values, of shape {values.shape}; give an image")
    return Image.fromarray(np.ascontiguousarray(values))


class Preprocess:
    """The evaluation transform as one callable: an image (`eval_pixels`) -> float32 (3, size_px, size_px)."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __call__(self, image: AnImage) -> Tensor:
        # (H, W, C) -> (C, H, W)
        pixels_CHW = torch.from_numpy(eval_pixels(image, self.size_px)).permute(2, 0, 1)
        return normalize_images(pixels_CHW).contiguous()
