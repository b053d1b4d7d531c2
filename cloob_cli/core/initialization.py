"""CLIP's initialization (openai/CLIP `clip/model.py`, `CLIP.initialize_parameters`).

What the original sets by hand is set here; what it leaves to torch's defaults keeps them (convolutions, the vision
transformer's linear layers, norms).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from cloob_cli.core.resnet import Bottleneck, ModifiedResNet
from cloob_cli.core.transformer import SelfAttention, Transformer, VisionTransformer

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel


@torch.no_grad()
def initialize(model: CloobModel) -> None:
    """Draw every weight of `model` from torch's current random state; layers that torch initializes are kept."""
    for module in model.modules():
        if isinstance(module, SelfAttention):  # as torch.nn.MultiheadAttention does
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
    if isinstance(model.visual, VisionTransformer):
        _initialize_vision_transformer(model.visual)
    else:
        _initialize_resnet(model.visual)
    width = model.config.text.width
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    nn.init.normal_(model.positional_embedding, std=0.01)
    _initialize_text_transformer(model.transformer, width)
    _initialize_projection(model.text_projection, width)
    model.logit_scale.fill_(math.log(model.config.inv_tau))


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
