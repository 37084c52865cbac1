"""A model that encodes images and texts on one device: images are read and decoded ahead of it, by threads.

In: a CLIP, its device and precision; anything that can be read as an image, and texts. Out: normalised features, float32, the
same for the same batches wherever they are computed: by jobs/embed.py, by jobs/search.py and by `rayclip.load`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.clip import CLIP
from model.image_loading import Pixels
from model.tokenizer import tokenize
from training.config import TrainConfig
from training.step.model_setup import autocast

T = TypeVar("T")
Read = Callable[[T, int], Pixels]
"""An image and the model's image size -> uint8 pixels (size, size, 3); raises ValueError or OSError where it cannot be read."""


@dataclass(frozen=True)
class EncodedImages(Generic[T]):
    """A batch of images and their features.

    Attributes:
        features_BE: normalised; meaningless where there is a problem.
        problems: place in the batch -> why the image cannot be read.
    """

    images: list[T]
    features_BE: Tensor
    problems: dict[int, str]


class Encoder:
    """A model in evaluation mode on its device. Its methods need no further context."""

    def __init__(self, clip: CLIP, device: torch.device, config: TrainConfig) -> None:
        """
        Args:
            config: its `precision` is that of both encoders.
        """
        self.clip, self.device, self.config = clip.to(device).eval(), device, config

    def encode_pixels(self, pixels: Pixels) -> Tensor:
        """uint8 (B, size, size, 3) -> image_features (B, E)."""
        with torch.inference_mode(), autocast(self.config, self.device):
            # (B, H, W, 3) -> (B, 3, H, W)
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
            return self.clip.encode_image(images, normalize=True).float()

    def encode_tokens(self, token_ids: NDArray[np.int64]) -> Tensor:
        """Token ids (B, L) -> text_features (B, E). They stay on the CPU, where the model counts them without waiting."""
        with torch.inference_mode(), autocast(self.config, self.device):
            return self.clip.encode_text(torch.from_numpy(token_ids), normalize=True).float()

    def encode_texts(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Texts -> text_features (N, E)."""
        row = self.clip.architecture
        starts = range(0, len(texts), batch_size)
        batches = (tokenize(texts[start : start + batch_size], row.context_length).numpy() for start in starts)
        return torch.cat([self.no_features(), *(self.encode_tokens(batch) for batch in batches)])

    def encode_images(self, images: Iterable[T], read: Read[T], batch_size: int) -> Iterator[EncodedImages[T]]:
        """Yields batches in order. One batch is read and decoded while the model computes another."""
        size_px, source = self.clip.architecture.image_size_px, iter(images)

        def load(image: T) -> Pixels | str:
            try:
                return read(image, size_px)
            except (ValueError, OSError) as error:
                return _message(error)

        with ThreadPoolExecutor(max(1, torch.get_num_threads()), "decode") as decoders:
            loading: deque[tuple[list[T], list[Future[Pixels | str]]]] = deque()
            while batch := list(itertools.islice(source, batch_size)):
                loading.append((batch, [decoders.submit(load, image) for image in batch]))
                if len(loading) > 1:
                    yield self._encoded(*loading.popleft())
            while loading:
                yield self._encoded(*loading.popleft())

    def no_features(self) -> Tensor:
        """Features of no images and no texts: (0, E)."""
        return torch.zeros(0, self.clip.architecture.embed_dim, device=self.device)

    def _encoded(self, images: list[T], loading: list[Future[Pixels | str]]) -> EncodedImages[T]:
        size_px, problems = self.clip.architecture.image_size_px, {}
        pixels = np.zeros((len(images), size_px, size_px, 3), np.uint8)
        for place, future in enumerate(loading):
            found = future.result()
            if isinstance(found, str):
                problems[place] = found
            else:
                pixels[place] = found
        return EncodedImages(images, self.encode_pixels(pixels), problems)


def _message(error: Exception) -> str:
    """The message of an error, without the name of the file, which the caller knows."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
