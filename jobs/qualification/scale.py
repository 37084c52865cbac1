"""Sizes of the qualification: those of a real GPU, or tiny ones that show on a CPU that every section works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """The device and the sizes of a run.

    Attributes:
        device: cuda or cpu.
        tiny: use sizes that take a CPU a second.
    """

    device: str
    tiny: bool = False

    def size(self, full: T, tiny: T) -> T:
        """The value for this scale."""
        return tiny if self.tiny else full

    @property
    def model(self) -> str:
        return self.size("ViT-B/32", "debug-vit")

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """bfloat16 where the card computes in it."""
        import torch

        has_it = self.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_it else "float32"

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device)

    @property
    def card(self) -> str:
        """Name of the device, which aims refer to: `cuda: NVIDIA H200`, or `cpu`."""
        import torch

        return f"cuda: {torch.cuda.get_device_name()}" if self.device == "cuda" else "cpu"
