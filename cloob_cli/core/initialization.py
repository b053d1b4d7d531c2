"""CLIP's initialization (openai/CLIP `clip/model.py`, `CLIP.initialize_parameters`).

What the original sets by hand is set here; what it leaves to torch's defaults keeps them (convolutions, the vision
transformer's linear layers, norms).
"""

from __future__ import annotations

import torch
from torch import nn

from cloob_cli.core.resnet import Bottleneck, ModifiedResNet
from cloob_cli.core.transformer import SelfAttention, Transformer, VisionTransformer


@torch.no_grad()
def initialize_attention(module: nn.Module) -> None:
    """Initialize every attention layer within `module` as torch.nn.MultiheadAttention does."""
    for layer in module.modules():
        if isinstance(layer, SelfAttention):
            nn.init.xavier_uniform_(layer.in_proj_weight)
            nn.init.zeros_(layer.in_proj_bias)
            nn.init.zeros_(layer.out_proj.bias)


@torch.no_grad()
def initialize_image_tower(tower: VisionTransformer | ModifiedResNet) -> None:
    """Draw the weights of an image tower from torch's current random state."""
    if isinstance(tower, VisionTransformer):
        _initialize_vision_transformer(tower)
    else:
        _initialize_resnet(tower)


@torch.no_grad()
def initialize_text_tower(
    token_embedding: nn.Embedding,
    positional_embedding: nn.Parameter,
    transformer: Transformer,
    projection: nn.Parameter | nn.Linear,
) -> None:
    """Draw the weights of a text tower's parts from torch's current random state."""
    width = token_embedding.embedding_dim
    nn.init.normal_(token_embedding.weight, std=0.02)
    nn.init.normal_(positional_embedding, std=0.01)
    _initialize_text_transformer(transformer, width)
    _initialize_projection(projection, width)


def _initialize_vision_transformer(tower: VisionTransformer) -> None:
    width = tower.class_embedding.shape[0]
    nn.init.normal_(tower.class_embedding, std=width**-0.5)
    nn.init.normal_(tower.positional_embedding, std=width**-0.5)
    _initialize_projection(tower.proj, width)


def _initialize_resnet(tower: ModifiedResNet) -> None:
    pool = tower.attnpool
    channels = pool.positional_embedding.shape[1]
    nn.init.normal_(pool.positional_embedding, std=channels**-0.5)
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        nn.init.normal_(layer.weight, std=channels**-0.5)
    for module in tower.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)  # every block starts as its shortcut


def _initialize_text_transformer(transformer: Transformer, width: int) -> None:
    # Residual branches are scaled down with depth, as in GPT-2.
    residual_std = width**-0.5 * (2 * len(transformer.blocks)) ** -0.5
    for block in transformer.blocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)


def _initialize_projection(projection: nn.Parameter | nn.Linear, width: int) -> None:
    if isinstance(projection, nn.Linear):
        nn.init.normal_(projection.weight, std=width**-0.5)
        nn.init.zeros_(projection.bias)
    else:
        nn.init.normal_(projection, std=width**-0.5)
