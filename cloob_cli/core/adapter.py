"""A small network behind a tower, which is trained while the tower stays as it is.

ShareLock (arXiv 2410.07173) trains such heads on features that are computed once. This one starts as the identity, so
that a model keeps what it knows until its head has learned something.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloob_cli.core.model_config import AdapterConfig


class Adapter(nn.Module):
    """x + network(norm(x)) of features x [B, D]; the network's last layer is zero at first."""

    def __init__(self, config: AdapterConfig, embed_dim: int) -> None:
        super().__init__()
        sizes = [embed_dim, *[config.width or 4 * embed_dim] * (config.layers - 1), embed_dim]
        self.ln = nn.LayerNorm(embed_dim)
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in pairwise(sizes)])

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the hidden layers' weights from torch's current random state as torch does; make the last layer zero."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()
        for parameter in self.layers[-1].parameters():
            parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.ln(x)
        for number, layer in enumerate(self.layers):
            hidden = layer(F.gelu(hidden) if number else hidden)
        output: Tensor = x + hidden
        return output
