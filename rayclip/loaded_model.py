"""A trained model in Python: features of images and texts, their similarity, and classification by names.

In: a run, a checkpoint, an export or published weights. Out: a `Model`. What it computes is what the jobs compute.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.clip import CLIP
from model.config import Activation, Architecture
from model.preprocess import AnImage, Preprocess, eval_pixels
from model.tokenizer import tokenize
from pipeline.errors import ConfigError, InputError
from training.config import check_templates
from training.distributed import World, pick_device
from training.encoder import Encoder
from training.evaluation.class_names import DEFAULT_TEMPLATES
from training.evaluation.zero_shot import build_classifier
from training.trained_model import open_trained_model

logger = logging.getLogger(__name__)
Images = AnImage | Iterable[AnImage]
"""One image or several: paths, bytes, PIL images, or uint8 arrays (height, width, 3)."""
Floats = NDArray[np.float32]
OnDamage = Literal["fail", "skip"]
BATCH_SIZE = 256
"""That of jobs/embed.py and jobs/evaluate.py: features of equal batches are equal bit for bit on a CPU."""


class Model:
    """A CLIP on one device, in evaluation mode. Features are float32 and of unit length.

    Attributes:
        clip: the torch module.
        preprocess: an image (a path, bytes, a PIL image or an array) -> what `clip.encode_image` takes, without the batch.
        tokenize: a text or texts -> what `clip.encode_text` takes.
        address: of the checkpoint or of the weights.
    """

    def __init__(self, encoder: Encoder, address: str) -> None:
        self._encoder, self.address = encoder, address
        self.clip: CLIP = encoder.clip
        self.preprocess = Preprocess(self.architecture.image_size_px)
        self.tokenize = functools.partial(tokenize, context_length=self.architecture.context_length)

    @property
    def architecture(self) -> Architecture:
        """The row of model/config.py, with the activation and the image size of these weights."""
        return self.clip.architecture

    @property
    def device(self) -> torch.device:
        return self._encoder.device

    def __repr__(self) -> str:
        return f"<rayclip.Model {self.architecture.name} of {self.address} on {self.device}>"

    @overload
    def encode_image(
        self, images: Images, batch_size: int = ..., *, on_damage: OnDamage = ..., as_torch: Literal[False] = ...
    ) -> Floats: ...
    @overload
    def encode_image(
        self, images: Images, batch_size: int = ..., *, on_damage: OnDamage = ..., as_torch: Literal[True]
    ) -> Tensor: ...
    def encode_image(
        self, images: Images, batch_size: int = BATCH_SIZE, *, on_damage: OnDamage = "fail", as_torch: bool = False
    ) -> Floats | Tensor:
        """Encodes images, in batches that are read and decoded while the model computes.

        Args:
            images: one image, or any iterable of them, which is read batch by batch.
            on_damage: skip: an image that cannot be read is named in a warning, and its features are NaN.
            as_torch: return a tensor on the model's device instead of an array.

        Returns:
            image_features (N, E).

        Raises:
            InputError: an image cannot be read, and is not skipped; the message says which.
        """
        return _given(self._image_features(images, batch_size, on_damage), as_torch)

    @overload
    def encode_text(self, texts: str | Iterable[str], batch_size: int = ..., *, as_torch: Literal[False] = ...) -> Floats: ...
    @overload
    def encode_text(self, texts: str | Iterable[str], batch_size: int = ..., *, as_torch: Literal[True]) -> Tensor: ...
    def encode_text(
        self, texts: str | Iterable[str], batch_size: int = BATCH_SIZE, *, as_torch: bool = False
    ) -> Floats | Tensor:
        """Encodes texts; a longer one than the model's context is cut.

        Args:
            texts: one text, or any iterable of them.
            as_torch: return a tensor on the model's device instead of an array.

        Returns:
            text_features (N, E).
        """
        return _given(self._encoder.encode_texts(_texts(texts, "texts"), batch_size), as_torch)

    @overload
    def similarity(self, images: Images, texts: str | Iterable[str], *, as_torch: Literal[False] = ...) -> Floats: ...
    @overload
    def similarity(self, images: Images, texts: str | Iterable[str], *, as_torch: Literal[True]) -> Tensor: ...
    def similarity(self, images: Images, texts: str | Iterable[str], *, as_torch: bool = False) -> Floats | Tensor:
        """Cosine similarity of each image with each text (images, texts), between -1 and 1.

        Raises:
            InputError: an image cannot be read.
        """
        image_features_NE = self._image_features(images, BATCH_SIZE)
        text_features_ME = self._encoder.encode_texts(_texts(texts, "texts"), BATCH_SIZE)
        return _given(image_features_NE @ text_features_ME.T, as_torch)

    @overload
    def classify(
        self, images: Images, class_names: Sequence[str], templates: Sequence[str] = ..., *, as_torch: Literal[False] = ...
    ) -> Floats: ...
    @overload
    def classify(
        self, images: Images, class_names: Sequence[str], templates: Sequence[str] = ..., *, as_torch: Literal[True]
    ) -> Tensor: ...
    def classify(
        self,
        images: Images,
        class_names: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        *,
        as_torch: bool = False,
    ) -> Floats | Tensor:
        """Probability of each class for each image (images, classes): zero-shot classification, as jobs/evaluate.py has it.

        Args:
            templates: prompts with `{}` or `{c}` for the class name; a class is the mean of its prompts' features.

        Raises:
            InputError: an image cannot be read, there are no classes, or a template has no place for the name.
        """
        names, prompts = _texts(class_names, "class_names", several=True), _texts(templates, "templates")
        if not names or not prompts:
            raise InputError(f"{'class_names' if not names else 'templates'}: is empty; give at least one")
        check_templates(prompts)
        features_NE = self._image_features(images, BATCH_SIZE)
        world = World(rank=0, world_size=1, device=self.device)

        def encode(token_ids: Tensor) -> Tensor:
            return self._encoder.encode_tokens(token_ids.numpy())

        classifier_CE = build_classifier(encode, self.tokenize, names, prompts, world, BATCH_SIZE)
        with torch.no_grad():
            logits_NC = self.clip.logit_scale.exp() * features_NE @ classifier_CE.T
            return _given(logits_NC.softmax(dim=1), as_torch)

    def _image_features(self, images: Images, batch_size: int, on_damage: OnDamage = "fail") -> Tensor:
        if on_damage not in get_args(OnDamage):
            raise ConfigError(f"on_damage={on_damage!r}: is not one of {', '.join(get_args(OnDamage))}; give one of them")
        many: Iterable[Any] = [images] if _is_one(images) else images  # type: ignore[assignment]
        parts, first = [self._encoder.no_features()], 0
        for batch in self._encoder.encode_images(many, eval_pixels, batch_size):
            for place, problem in batch.problems.items():
                line = f"images[{first + place}]{_named(batch.images[place])}: {problem}"
                if on_damage == "fail":
                    raise InputError(line)
                logger.warning("skipped: %s", line)
            parts.append(batch.features_BE.clone())
            parts[-1][list(batch.problems)] = torch.nan
            first += len(batch.images)
        return torch.cat(parts)


def load(
    address: str | os.PathLike[str],
    name: str | None = None,
    device: str | torch.device | None = None,
    activation: Activation | None = None,
    image_size_px: int | None = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    allow_torchscript: bool = False,
) -> Model:
    """Loads a trained model.

    Args:
        address: the folder of a run (its last checkpoint is read), of a checkpoint or of an export, or published weights: a
            file or folder of ours, open_clip's or Hugging Face's; local or s3://.
        name: the architecture, such as ViT-B/32; None: the one that the place states, or whose shapes the weights have.
        device: None: CUDA if there is any, else the CPU.
        activation: of weights that do not state theirs: quick_gelu (OpenAI's) or gelu (most others).
        image_size_px: another image size than the weights', to which their positions are interpolated.
        precision: of both encoders; None: the run's, or auto, which is bfloat16 on CUDA and float32 on a CPU.
        allow_torchscript: load a TorchScript archive, which is a program; only for archives that you trust.

    Raises:
        ConfigError: there is no model, it cannot be read, or it is another one than is told.
    """
    opened = open_trained_model(_local(address), name, activation, image_size_px, allow_torchscript)
    train = opened.train if precision is None else opened.train.model_copy(update={"precision": precision})
    try:
        place = pick_device("auto") if device is None else torch.device(device)
        encoder = Encoder(opened.clip, place, train)
    except (RuntimeError, AssertionError) as error:  # of CUDA, or of a name that is none
        raise ConfigError(f"device={device}: cannot be used ({str(error).splitlines()[0]}); omit it, or give cpu") from None
    return Model(encoder, opened.address)


def _local(address: str | os.PathLike[str]) -> str:
    text = os.fspath(address)
    return text if "://" in text else str(Path(text).expanduser())


def _is_one(images: Images) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | bytes | Image.Image)


def _named(image: Any) -> str:
    return f"={image}" if isinstance(image, str | os.PathLike) else ""


def _texts(texts: str | Iterable[str], subject: str, several: bool = False) -> list[str]:
    if isinstance(texts, str):
        if several:
            raise InputError(f"{subject}={texts!r}: is a text; give a list of names")
        return [texts]
    found = list(texts)
    odd = [text for text in found if not isinstance(text, str)]
    if odd:
        raise InputError(f"{subject}: holds {odd[0]!r}, a {type(odd[0]).__name__}; give texts")
    return found


def _given(values: Tensor, as_torch: bool) -> Floats | Tensor:
    return values if as_torch else values.cpu().numpy()
