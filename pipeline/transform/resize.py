"""Resizes images with img2dataset's modes, sizes and filters, in OpenCV, but faster.

img2dataset shrinks with OpenCV's area filter, whose general form takes as long as decoding a JPEG. Up to a factor of four, a
bilinear step to exactly twice the target size, followed by the mean of every 2 x 2 pixels, gives nearly the same image (45 dB
on a photograph) in 20 to 50% of the time; docs/LOG.md has the figures.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import ImageConfig

Pixels = NDArray[np.uint8]

cv2.setNumThreads(1)  # the cores are used by the worker processes
cv2.ocl.setUseOpenCL(False)


def target_size(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """(width, height) after resizing and before any cropping or padding."""
    if config.resize_mode == "no":
        return width, height
    side = max(width, height) if config.resize_mode in ("border", "keep_ratio_largest") else min(width, height)
    if side <= config.size_px and config.resize_only_if_bigger:
        return width, height
    scale = config.size_px / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(pixels_HWC: Pixels, config: ImageConfig, original: tuple[int, int]) -> Pixels:
    """Resizes, then crops or pads as `resize_mode` says.

    Args:
        pixels_HWC: uint8 (H, W, 3); may be decoded at a reduced scale, but not below the target size.
        original: (width, height) of the full-size image, upright.
    """
    width, height = target_size(*original, config)
    if (width, height) != (pixels_HWC.shape[1], pixels_HWC.shape[0]):
        pixels_HWC = _scale(pixels_HWC, width, height)
    if original != (width, height) or not config.resize_only_if_bigger:
        if config.resize_mode == "center_crop":
            top, left = (height - config.size_px) // 2, (width - config.size_px) // 2
            return np.ascontiguousarray(pixels_HWC[top : top + config.size_px, left : left + config.size_px])
        if config.resize_mode == "border":
            return _pad(pixels_HWC, config.size_px)
    return pixels_HWC


def encode(pixels_HWC: Pixels, config: ImageConfig) -> bytes:
    """Encodes RGB pixels in the stored format. Raises ValueError if OpenCV cannot."""
    quality: dict[str, Any] = {
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
    }
    done, data = cv2.imencode(
        f".{config.format}", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), [quality[config.format], config.encoder_quality]
    )
    if not done:
        raise ValueError(f"OpenCV cannot encode {pixels_HWC.shape} as {config.format}")
    return data.tobytes()


def _scale(pixels_HWC: Pixels, width: int, height: int) -> Pixels:
    old_height, old_width = pixels_HWC.shape[:2]
    if width >= old_width and height >= old_height:
        return _cv2_resize(pixels_HWC, width, height, cv2.INTER_LANCZOS4)
    if old_width <= 4 * width and old_height <= 4 * height:
        return _cv2_resize(_cv2_resize(pixels_HWC, 2 * width, 2 * height, cv2.INTER_LINEAR), width, height, cv2.INTER_AREA)
    return _cv2_resize(pixels_HWC, width, height, cv2.INTER_AREA)


def _cv2_resize(pixels_HWC: Pixels, width: int, height: int, filter: int) -> Pixels:
    return np.asarray(cv2.resize(pixels_HWC, (width, height), interpolation=filter), np.uint8)


def _pad(pixels_HWC: Pixels, size_px: int) -> Pixels:
    """Pads with white to a square; an odd pixel goes to the bottom or right."""
    height, width = pixels_HWC.shape[:2]
    top, left = (size_px - height) // 2, (size_px - width) // 2
    sides = (top, size_px - height - top, left, size_px - width - left)
    return np.asarray(cv2.copyMakeBorder(pixels_HWC, *sides, cv2.BORDER_CONSTANT, value=(255, 255, 255)), np.uint8)
