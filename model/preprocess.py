"""Prepares pixels for the image encoder: floats, normalised with CLIP's statistics (paper, section 2.4).

Images leave the CPU as uint8, a quarter of the bytes, and are normalised on the device.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.image_files import to_rgb
from model.image_loading import eval_crop

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_images(images_BCHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, with CLIP's mean and standard deviation, on whichever device the images are."""
    mean, std = _statistics(images_BCHW.device)
    return images_BCHW.float().div_(255).sub_(mean).div_(std)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, cached on the device: copying them in every step would wait for the GPU."""
    return torch.tensor(MEAN, device=device).view(3, 1, 1), torch.tensor(STD, device=device).view(3, 1, 1)


class Preprocess:
    """The evaluation transform as one callable: a PIL image -> float32 (3, size_px, size_px)."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def __call__(self, image: Image.Image) -> Tensor:
        pixels_HWC = torch.from_numpy(eval_crop(np.array(to_rgb(image)), self.size_px, image.width, image.height))
        # (H, W, C) -> (C, H, W)
        return normalize_images(pixels_HWC.permute(2, 0, 1)).contiguous()
