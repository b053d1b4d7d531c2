"""CLIP's modified ResNet.

Radford et al. (2021), section 2.4, after openai/CLIP `clip/model.py`; parameter names are open_clip's. It differs
from He et al.'s in three things: a stem of three convolutions with average pooling, average pooling before every
convolution that would have a stride (the anti-aliasing of Zhang 2019), and attention pooling in place of the
global average.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cloob_cli.core.model_config import VisionConfig
from cloob_cli.core.positional_embeddings import fitted_positions

EXPANSION = 4  # a bottleneck's output has this many times its inner channels


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; all have stride 1, pooling does the rest."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pool = _pool(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            layers["-1"] = _pool(stride)  # CLIP's name: it leaves 0 and 1 to the layers with weights
            layers["0"] = nn.Conv2d(channels_in, channels_out, 1, bias=False)
            layers["1"] = nn.BatchNorm2d(channels_out)
            self.downsample = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.pool(out)))
        return F.relu(out + self.downsample(x), inplace=True)


class AttentionPool(nn.Module):
    """One attention layer whose only query is the mean of all positions; it projects to the embedding as well."""

    def __init__(self, grid: int, channels: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, channels))
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] of a feature map [B, C, H, W]."""
        output: Tensor = self.c_proj(self.pool(x))
        return output

    def pool(self, x: Tensor) -> Tensor:
        """The same before the projection: [B, C] of [B, C, H, W]."""
        positions = fitted_positions(self.positional_embedding, x.shape[2], x.shape[3]).to(x.dtype)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + positions
        query = self.q_proj(x[:, 0]).unflatten(-1, (self.heads, 1, -1))  # [B, H, 1, C/H]
        key = self.k_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, C/H]
        value = self.v_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


class ModifiedResNet(nn.Module):
    """CLIP's image tower RN50, RN50x4 and their kind."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        assert isinstance(config.layers, list)
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, config.layers[0], stride=1)
        self.layer2 = _stage(width * EXPANSION, width * 2, config.layers[1], stride=2)
        self.layer3 = _stage(width * 2 * EXPANSION, width * 4, config.layers[2], stride=2)
        self.layer4 = _stage(width * 4 * EXPANSION, width * 8, config.layers[3], stride=2)
        self.attnpool = AttentionPool(config.image_size // 32, width * 32, config.head_count, embed_dim)
        self.checkpointing = False  # recompute a block's activations in backward instead of keeping them

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw features [B, D] of normalized pixels [B, 3, H, W], before L2 normalization."""
        output: Tensor = self.attnpool(self._map(pixels))
        return output

    def trunk(self, pixels: Tensor) -> Tensor:
        """Features before the projection: [B, 32 width] of normalized pixels [B, 3, H, W]."""
        return self.attnpool.pool(self._map(pixels))

    def head(self, features: Tensor) -> Tensor:
        """Raw features [B, D] of what `trunk` gave."""
        output: Tensor = self.attnpool.c_proj(features)
        return output

    def _map(self, pixels: Tensor) -> Tensor:
        """The last feature map [B, 32 width, H / 32, W / 32]."""
        x = F.relu(self.bn1(self.conv1(pixels)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = F.avg_pool2d(x, 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self._run(block, x)
        return x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            contexts = lambda: (nullcontext(), frozen_statistics(block))  # noqa: E731 (forward, recomputation)
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        else:
            x = block(x)
        return x


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalization inside uses the batch's statistics but leaves the running ones alone.

    For a second pass over images that were counted in the first: recomputation and cached gradients.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())  # updated in its place, and forgotten afterwards
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def _pool(stride: int) -> nn.AvgPool2d:
    # The last row of an odd map counts: images of 48 pixels come to 3 x 3 before the last stage.
    return nn.AvgPool2d(stride, ceil_mode=True)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride)
    rest = [Bottleneck(channels * EXPANSION, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
