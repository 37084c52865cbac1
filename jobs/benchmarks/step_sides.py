"""One training step of RayCLIP and of open_clip, from the same weights: forward, loss, backward, optimizer.

In: a `Setting`, and a CLIP whose weights both sides start from. Out: a `Side`, whose step takes images and padded token ids and
returns the loss without waiting for the device. open_clip is set up as in its own trainer: padded captions, torch's AdamW, its
local loss, its way to accumulate, TF32 and cudnn.benchmark on CUDA.
"""

from __future__ import annotations

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.clip import CLIP
    from training.distributed import World


@dataclass(frozen=True)
class Setting:
    """Settings of both sides.

    Attributes:
        compile: each side's own use of torch.compile.
        backend: of torch.compile; eager counts graphs without generating code.
        micro_batch_size: samples that are embedded with a graph at a time; both sides embed each sample twice then.
        ddp: wrap the model of each side in DDP, which needs a process group of one rank.
    """

    name: str
    batch_size: int
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpointing: bool = False
    micro_batch_size: int | None = None
    ddp: bool = False
    backend: str = "inductor"


class Side(ABC):
    """A model with its optimizer."""

    name: str

    @abstractmethod
    def __init__(self, setting: Setting, clip: CLIP) -> None:
        """
        Args:
            clip: the side may change it or copy its weights.
        """

    @abstractmethod
    def step(self, images: Tensor, texts: Tensor) -> Tensor:
        """Takes a step. Returns the loss, on the device.

        Args:
            images: normalised float32, or uint8 for our side alone; on the device.
            texts: zero-padded token ids, on the CPU, where loaders leave them.
        """

    @contextlib.contextmanager
    def flags(self) -> Iterator[None]:
        """Sets torch's global flags to those that the side trains with."""
        yield


def our_world(setting: Setting) -> World:
    """The world of our side: of one rank, forced into DDP where the setting says so."""
    import torch

    from training.distributed import World

    return World(0, 1, torch.device(setting.device), forced=setting.ddp)


class OurSide(Side):
    """RayCLIP's own parts, put together as training/trainer.py does."""

    name = "ours"

    def __init__(self, setting: Setting, clip: CLIP) -> None:
        from training.config import ModelConfig, OptimizerConfig, TrainConfig, TrainingConfig
        from training.distributed import parallel
        from training.optimizer import build_optimizer
        from training.step.model_setup import autocast, compile_towers, prepare_model

        self.setting, self.clip = setting, clip
        self.world = our_world(setting)
        micro = setting.micro_batch_size
        self.micro_batch_size = micro if micro is not None and micro < setting.batch_size else None
        self.train = TrainConfig(
            precision=setting.precision,
            compile=setting.compile,
            activation_checkpointing=("image", "text") if setting.checkpointing else (),
        )
        prepare_model(clip.to(self.world.device), TrainingConfig(model=ModelConfig(name=setting.name), train=self.train))
        compile_towers(clip, self.train, setting.backend)
        self.optimizer = build_optimizer(clip, OptimizerConfig())
        self.model = parallel(clip, self.world)
        self.autocast = functools.partial(autocast, self.train, self.world.device)

    def step(self, images: Tensor, texts: Tensor) -> Tensor:
        from training.distributed import World
        from training.loss import contrastive_loss
        from training.optimizer import clamp_logit_scale_
        from training.step.gradients import compute_gradients

        # open_clip gathers nothing at world size 1, so neither do we.
        alone, size, tile = World(0, 1, self.world.device), self.setting.batch_size, self.train.loss_tile_size
        self.optimizer.zero_grad(set_to_none=True)
        result = compute_gradients(
            self.model,
            (images, texts),
            lambda image, text, scale: contrastive_loss(image, text, scale, alone, size, tile),
            self.micro_batch_size,
            self.autocast,
        )
        self.optimizer.step()
        clamp_logit_scale_(self.clip)
        return result.loss.detach()


class TheirSide(Side):
    """open_clip's model and loss in the loop of open_clip_train.train. Needs open_clip."""

    name = "open_clip"

    def __init__(self, setting: Setting, clip: CLIP) -> None:
        import torch
        from open_clip.loss import ClipLoss

        from jobs.benchmarks.open_clip_peer import build_peer, build_peer_optimizer
        from training.config import OptimizerConfig

        self.setting = setting
        self.peer = build_peer(clip).to(setting.device)
        if setting.checkpointing:
            self.peer.set_grad_checkpointing()
        model = self.peer
        if setting.ddp:
            devices = [torch.cuda.current_device()] if setting.device == "cuda" else None
            model = torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)
        if setting.compile and setting.ddp and setting.checkpointing:
            torch._dynamo.config.optimize_ddp = False
        self.model: Any = torch.compile(model, backend=setting.backend) if setting.compile else model
        self.optimizer = build_peer_optimizer(self.peer, OptimizerConfig())
        self.loss = ClipLoss()

    @contextlib.contextmanager
    def flags(self) -> Iterator[None]:
        import torch

        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.benchmark
        products.allow_tf32 = convolutions.benchmark = True
        try:
            yield
        finally:
            products.allow_tf32, convolutions.benchmark = before

    def step(self, images: Tensor, texts: Tensor) -> Tensor:
        import torch

        texts = texts.to(self.setting.device, non_blocking=True)
        self.optimizer.zero_grad()
        micro = self.setting.micro_batch_size
        if micro is None or micro >= len(images):
            with self._autocast():
                total: Tensor = self.loss(*self.model(images, texts))
            total.backward()
        else:
            total = self._accumulate(list(zip(images.split(micro), texts.split(micro), strict=True)))
        self.optimizer.step()
        with torch.no_grad():
            self.peer.logit_scale.clamp_(0, math.log(100))
        return total.detach()

    def _accumulate(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Gradients by open_clip's `--accum-freq`: the whole loss again for each part, with the others' features cached."""
        import torch

        with torch.no_grad(), self._autocast():
            cached = [self.model(*part)[:2] for part in parts]
        for number, part in enumerate(parts):
            with self._autocast():
                image, text, scale = self.model(*part)
                around = [*cached[:number], (image, text), *cached[number + 1 :]]
                images, texts = (torch.cat(rows) for rows in zip(*around, strict=True))
                total: Tensor = self.loss(images, texts, scale)
            total.backward()
        return total

    def _autocast(self) -> torch.autocast:
        import torch

        return torch.autocast(self.setting.device, dtype=torch.bfloat16, enabled=self.setting.precision == "bfloat16")


SIDES: dict[str, type[Side]] = {side.name: side for side in (OurSide, TheirSide)}
