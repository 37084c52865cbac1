"""Models in which every parameter matters, and images that they tell apart, to compare two implementations."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model.clip import CLIP
from model.config import get_architecture


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Randomise every parameter and batch-norm buffer, at scales that keep each branch active and activations bounded.

    With the published initialisation each residual branch of a ResNet is zero, and a comparison would prove nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(3.0)
            elif parameter.ndim >= 2 and "embedding" not in name:
                normal(parameter, 0.0, parameter[0].numel() ** -0.5)
            elif "embedding" in name:
                normal(parameter, 0.0, 0.1)
            elif name.endswith("weight"):
                normal(parameter, 1.0, 0.2)
            else:
                normal(parameter, 0.0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                normal(buffer, 0.0, 0.2)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def blobs(size_px: int) -> torch.Tensor:
    """Two images (2, 3, size_px, size_px) of coloured blobs. White noise would be averaged away: all images of it have nearly
    the same features.
    """
    coarse = 3 * torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bicubic")


def random_clip(name: str, seed: int = 0, **fields: Any) -> CLIP:
    """A model of that name with some fields of its architecture replaced and all parameters random."""
    clip = CLIP(replace(get_architecture(name), **fields)).eval()
    randomise(clip, seed)
    return clip


class Archive(nn.Module):
    """A TorchScript program that holds weights as OpenAI's archives do: float16, with three numbers beside them."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        for key, value in clip.state_dict().items():
            *parents, name = key.split(".")
            module: nn.Module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.register_buffer(name, value.half() if value.is_floating_point() else value)
        for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images
