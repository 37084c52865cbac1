"""CLIP on one device: two encoders and a temperature.

The paper's symbols (Figure 3) and where they are here:

    I_f = image_encoder(I)            output of `visual` before its projection
    T_f = text_encoder(T)             output of `transformer` and `ln_final` at end-of-text
    W_i, W_t                          `visual.proj` (ViT) or `visual.attnpool.c_proj` (ResNet); `text_projection`
    I_e = l2_normalize(I_f . W_i)     encode_image(..., normalize=True)
    T_e = l2_normalize(T_f . W_t)     encode_text(..., normalize=True)
    tau (t in the figure)             `logit_scale`, the log parameter; `logit_scale_exp` is its exponential
    temperature                       1 / exp(tau), initially 0.07
    logits = I_e . T_e^T * exp(tau)   training/loss.py, in tiles

Shape suffixes: B samples, L tokens, C H W an image, P patches that are kept, D width, E embed_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import Architecture, Tower, get_architecture
from model.layers import Captions, ResidualAttentionBlock, Transformer
from model.preprocess import normalize_images
from model.resnet import Bottleneck, ModifiedResNet
from model.vit import VisionTransformer

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
_RANDOM = (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)
SIGMOID_LOGIT_SCALE, SIGMOID_LOGIT_BIAS = math.log(10), -10.0
"""SigLIP's initial values (arXiv 2303.15343, section 3.2): they reflect that nearly all pairs are negatives."""


class CLIP(nn.Module):
    """The model of the paper, with the published state-dict keys."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        row = self.architecture = architecture
        self.locked: tuple[Tower, ...] = ()
        self.visual: nn.Module
        if isinstance(row.vision_layers, tuple):
            self.visual = ModifiedResNet(
                row.vision_layers, row.embed_dim, row.vision_heads, row.image_size_px, row.vision_width
            )
        else:
            assert row.patch_size_px is not None
            self.visual = VisionTransformer(
                row.image_size_px,
                row.patch_size_px,
                row.vision_width,
                row.vision_layers,
                row.vision_heads,
                row.embed_dim,
                row.activation,
            )
        self.transformer = Transformer(row.text_width, row.text_layers, row.text_heads, row.activation)
        self.token_embedding = nn.Embedding(row.vocab_size, row.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(row.context_length, row.text_width))
        self.ln_final = nn.LayerNorm(row.text_width)
        self.text_projection = nn.Parameter(torch.empty(row.text_width, row.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(SIGMOID_LOGIT_SCALE if row.has_logit_bias else INITIAL_LOGIT_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(SIGMOID_LOGIT_BIAS)) if row.has_logit_bias else None
        self._initialize()

    def tower_parameters(self, tower: Tower) -> list[nn.Parameter]:
        """Parameters of one encoder, including its projection into the joint space."""
        if tower == "image":
            return list(self.visual.parameters())
        modules = (self.transformer, self.token_embedding, self.ln_final)
        return [self.positional_embedding, self.text_projection, *(one for module in modules for one in module.parameters())]

    def lock(self, tower: Tower) -> None:
        """Freezes an encoder (LiT, arXiv 2111.07991): no gradients, no backward pass, batch norm in eval mode."""
        for parameter in self.tower_parameters(tower):
            parameter.requires_grad_(False)
        self.locked = (*self.locked, tower)
        self.train(self.training)

    def train(self, mode: bool = True) -> CLIP:
        super().train(mode)
        if "image" in self.locked:
            self.visual.eval()
        return self

    def encode_image(self, images_BCHW: Tensor, normalize: bool = False, kept_BP: Tensor | None = None) -> Tensor:
        """Pixels (B, 3, H, W) -> image_features (B, E). Takes normalised pixels, or uint8, which it normalises.

        `kept_BP`: indices of the patches that a ViT processes; None: all.
        """
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = normalize_images(images_BCHW)
        features_BE: Tensor = self.visual(images_BCHW) if kept_BP is None else self.visual(images_BCHW, kept_BP)
        return l2_normalize(features_BE) if normalize else features_BE

    def encode_trunk(self, images_BCHW: Tensor) -> Tensor:
        """Pixels, as in `encode_image` -> I_f (B, D), the features before the projection W_i: for linear probes."""
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = normalize_images(images_BCHW)
        assert isinstance(self.visual, VisionTransformer | ModifiedResNet)
        return self.visual.trunk(images_BCHW)

    def encode_text(self, texts_BL: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, L), L at most context_length, zero-padded -> text_features (B, E).

        The mask is causal and the feature is read at end-of-text, so later tokens cannot change the result. If the ids are on
        the CPU, padding is skipped, on whichever device the model is; ids on a GPU are processed with their padding.
        """
        captions = Captions.of(texts_BL, self.positional_embedding.device)
        x = self.token_embedding(captions.ids) + F.embedding(captions.positions, self.positional_embedding)
        end_BD = self.transformer(x, captions)
        features_BE: Tensor = self.ln_final(end_BD) @ self.text_projection
        return l2_normalize(features_BE) if normalize else features_BE

    def forward(self, images_BCHW: Tensor, texts_BL: Tensor, kept_BP: Tensor | None = None) -> tuple[Tensor, ...]:
        """Normalised image_features and text_features (B, E), and the scalars logit_scale_exp and, if any, logit_bias."""
        image_features_BE = self.encode_image(images_BCHW, normalize=True, kept_BP=kept_BP)
        text_features_BE = self.encode_text(texts_BL, normalize=True)
        bias = () if self.logit_bias is None else (self.logit_bias.clone(),)
        return image_features_BE, text_features_BE, self.logit_scale.exp(), *bias

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initialises as published. The ViT's blocks and patch convolution keep PyTorch's defaults."""
        width, layers = self.transformer.width, self.transformer.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            assert isinstance(block, ResidualAttentionBlock)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        if isinstance(self.visual, ModifiedResNet):
            pool = self.visual.attnpool
            for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                nn.init.normal_(projection.weight, std=pool.c_proj.in_features**-0.5)
            for module in self.visual.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)  # each residual branch starts as zero


def build_clip(name: str) -> CLIP:
    """A newly initialised CLIP of that name; under `torch.device("meta")` only its shapes."""
    return CLIP(get_architecture(name))


def uninitialized_clip(architecture: Architecture) -> CLIP:
    """A CLIP with arbitrary weights, for those that are loaded next: drawing random ones takes longer than loading."""
    with _WithoutRandomValues():
        return CLIP(architecture)


class _WithoutRandomValues(TorchFunctionMode):
    """Context in which initialisers leave memory as it is. (The meta device would import torch's compiler: seconds.)"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def l2_normalize(features_BE: Tensor) -> Tensor:
    """Scales rows to unit length, in at least float32: the temperature magnifies half precision's rounding errors."""
    if features_BE.dtype in (torch.float16, torch.bfloat16):
        features_BE = features_BE.float()
    return F.normalize(features_BE, dim=-1)
