"""The transformer of CLIP's towers and the vision transformer on top of it.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), after openai/CLIP
`clip/model.py`; parameter names are open_clip's, so that weights move between the programs unchanged.

Every tower that cloob knows reads a single token of the last block. So the last block computes only that token:
the same numbers for less work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cloob_cli.core.model_config import Activation, VisionConfig
from cloob_cli.core.positional_embeddings import fitted_positions


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the approximation of GELU that CLIP and the ml-jku checkpoints were trained with."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation: what `jax.nn.gelu` computes by default."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention of [B, H, N, W/H] tensors; `mask` is bool, broadcast to [B, H, N, N].

    torch's fused kernel serves everywhere but in bfloat16 training on a CPU: there its backward took 133 ms where
    plain matrix products took 16 (batch 256, 4 heads, 65 tokens, width 64 a head, 2 cores with AMX).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    attended: Tensor = scores.softmax(-1).to(value.dtype) @ value
    return attended


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, causal: bool, valid_queries: Tensor | None, valid_keys: Tensor | None) -> Tensor:
        """Attend from every token of x [B, N, W] to every token; both masks are bool [B, N]."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, W/H]
        if valid_queries is not None:
            # A zero query scores every key alike: the uniform attention that a row of equal scores gives.
            query = query * valid_queries[:, None, :, None].to(query.dtype)
        mask = None if valid_keys is None else valid_keys[:, None, None, :]
        attended = attention(query, key, value, mask, causal)
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return output

    def attend_from(self, token: Tensor, x: Tensor, *, valid_keys: Tensor | None) -> Tensor:
        """Attend from one token [B, W] to every token of x [B, N, W]; gives [B, W]."""
        width = x.shape[-1]
        query = F.linear(token, self.in_proj_weight[:width], self.in_proj_bias[:width])
        query = query.unflatten(-1, (self.heads, 1, -1))  # [B, H, 1, W/H]
        projected = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = projected.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if valid_keys is None else valid_keys[:, None, None, :]
        output: Tensor = self.out_proj(attention(query, key, value, mask, causal=False).flatten(1))
        return output


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.c_proj(self.activation(self.c_fc(x)))
        return output


class Block(nn.Module):
    """A residual block: x + attention(norm(x)), then x + mlp(norm(x)), as in CLIP.

    With `post_norm`: norm(x + attention(x)), then norm(x + mlp(x)), as in Vaswani et al. (2017) and BERT.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, activation: Activation, epsilon: float, post_norm: bool
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.ln_1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(width, round(width * mlp_ratio), activation)

    def forward(
        self, x: Tensor, causal: bool = False, valid_queries: Tensor | None = None, valid_keys: Tensor | None = None
    ) -> Tensor:
        source = x if self.post_norm else self.ln_1(x)
        return self._finish(x, self.attn(source, causal=causal, valid_queries=valid_queries, valid_keys=valid_keys))

    def one_token(self, x: Tensor, index: Tensor | int, valid_keys: Tensor | None = None) -> Tensor:
        """The output of `forward` for one token of each sequence: [B, W] of x [B, N, W]."""
        source = x if self.post_norm else self.ln_1(x)
        return self._finish(_pick(x, index), self.attn.attend_from(_pick(source, index), source, valid_keys=valid_keys))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + attended
        if self.post_norm:
            x = self.ln_1(x)
            x = self.ln_2(x + self.mlp(x))
        else:
            x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """A stack of blocks that is read at one token of each sequence."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        activation: Activation,
        epsilon: float,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            [Block(width, heads, mlp_ratio, activation, epsilon, post_norm) for _ in range(layers)]
        )
        self.checkpointing = False  # recompute a block's activations in backward instead of keeping them

    @property
    def blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.resblocks]

    def forward(
        self,
        x: Tensor,
        index: Tensor | int,
        *,
        causal: bool = False,
        valid_queries: Tensor | None = None,
        valid_keys: Tensor | None = None,
    ) -> Tensor:
        """The last block's output for one token of each sequence.

        Args:
            x: [B, N, W].
            index: which token is read: a number, or int64 [B]. It must be a valid query.
            causal: a token attends to itself and to what stands before it. Not together with `valid_keys`.
            valid_queries: bool [B, N]; a token that is not valid attends to all tokens alike.
            valid_keys: bool [B, N]; no token attends to one that is not valid.

        Returns:
            [B, W] in the dtype of x.
        """
        *blocks, last_block = self.blocks
        for block in blocks:
            x = self._run(block, x, causal, valid_queries, valid_keys)
        if causal:
            positions = torch.arange(x.shape[1], device=x.device)
            last = index if isinstance(index, Tensor) else torch.full_like(positions[:1], index)
            valid_keys = (positions <= last[:, None]).expand(x.shape[0], -1)
        return self._run(last_block.one_token, x, index, valid_keys)

    def _run(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            # No dropout anywhere, so there is no random state to keep.
            output: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
            return output
        return function(*arguments)


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2020) read at its class token, as CLIP has it.

    Options of `VisionConfig` cover the variants: norms before and after the blocks, a bias of the patch embedding
    and of the projection, a stem of convolutions before it.

    Attributes:
        patch_dropout: fraction of an image's patches that the blocks do not see in training, chosen anew by torch's
            random numbers for every image (FLIP: Li et al., "Scaling Language-Image Pre-training via Masking",
            arXiv 2212.00794). Never in evaluation.
    """

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        assert isinstance(config.layers, int)
        assert config.patch_size is not None
        width, patch, epsilon = config.width, config.patch_size, config.norm_epsilon
        self.patch_dropout = 0.0
        self.stem: nn.Module = nn.Identity()
        if config.stem == "conv":
            self.stem = convolutional_stem(patch, width)
            self.conv1 = nn.Conv2d(width, width, kernel_size=1, bias=config.patch_bias)
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=config.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((config.image_size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width, eps=epsilon) if config.norm_pre else nn.Identity()
        self.transformer = Transformer(
            width, config.layers, config.head_count, config.mlp_ratio, config.activation, epsilon
        )
        self.ln_post = nn.LayerNorm(width, eps=epsilon) if config.norm_post else nn.Identity()
        self.proj: nn.Parameter | nn.Linear
        if config.projection_bias:
            self.proj = nn.Linear(width, embed_dim)
        else:
            self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw features [B, D] of normalized pixels [B, 3, H, W], before L2 normalization."""
        return self.head(self.trunk(pixels))

    def head(self, features: Tensor) -> Tensor:
        """Raw features [B, D] of what `trunk` gave."""
        return project(features, self.proj)

    def trunk(self, pixels: Tensor) -> Tensor:
        """Features before the projection: [B, width] of normalized pixels [B, 3, H, W]."""
        grid = self.conv1(self.stem(pixels))  # [B, W, height, width]
        patches = grid.flatten(2).transpose(1, 2)  # [B, patches, W]
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        positions = fitted_positions(self.positional_embedding, grid.shape[2], grid.shape[3])
        x = torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)
        if self.training and self.patch_dropout:
            x = self._without_some_patches(x)
        features: Tensor = self.ln_post(self.transformer(self.ln_pre(x), 0))
        return features

    def _without_some_patches(self, x: Tensor) -> Tensor:
        """The class token and a random choice of patches of each image: [B, 1 + kept, W] of [B, 1 + patches, W]."""
        patches = x.shape[1] - 1
        kept = max(1, round(patches * (1 - self.patch_dropout)))
        places = torch.rand(x.shape[0], patches, device=x.device).topk(kept).indices
        return torch.cat([x[:, :1], x[:, 1:].gather(1, places[..., None].expand(-1, -1, x.shape[2]))], dim=1)


def convolutional_stem(patch: int, width: int) -> nn.Sequential:
    """Convolutions of 3x3 and stride 2, with batch normalization and ReLU: H x W pixels to H/patch x W/patch cells.

    Xiao et al., "Early Convolutions Help Transformers See Better" (arXiv 2106.14881): channels double up to the
    tower's width, a 1x1 convolution follows (here `conv1`), and for equal cost the tower has one block less.
    """
    layers: list[nn.Module] = []
    count, channels_in = patch.bit_length() - 1, 3
    for number in range(1, count + 1):
        channels = width >> (count - number)
        layers += [
            nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        channels_in = channels
    return nn.Sequential(*layers)


def project(x: Tensor, projection: nn.Parameter | nn.Linear) -> Tensor:
    """x [B, W] times a projection kept as a matrix [W, D] (CLIP) or as a linear layer with bias (crowsonkb)."""
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _pick(x: Tensor, index: Tensor | int) -> Tensor:
    """One token of each sequence: [B, W] of x [B, N, W]."""
    if isinstance(index, int):
        return x[:, index]
    return x.gather(1, index[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)
