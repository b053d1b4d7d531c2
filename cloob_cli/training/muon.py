"""Muon for the hidden weight matrices, AdamW for everything else, as one optimizer.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); torch's own implementation, with the
scale of Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982), by which Muon's updates are as large as
AdamW's: both take the same learning rate and the same decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cloob_cli.core.transformer import Block
from cloob_cli.errors import RecipeError


def hidden_matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weight matrices [out, in] inside the transformers' blocks: not embeddings, positions or projections."""
    return [
        parameter
        for block in model.modules()
        if isinstance(block, Block)
        for parameter in block.parameters()
        if parameter.ndim == 2
    ]


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that are stepped, stored and loaded as one.

    Args:
        matrices: what Muon updates; at least one.
        rest: AdamW over all other parameters.

    Raises:
        RecipeError: this torch has no Muon, or there is no matrix.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], rest: torch.optim.AdamW, *, weight_decay: float, momentum: float
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(f"optimizer.name = 'muon' needs torch 2.9, this is {torch.__version__}")
        if not matrices:
            raise RecipeError("optimizer.name = 'muon' finds no matrix to train in a transformer's block")
        rate = rest.param_groups[0]["lr"]
        self._parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                matrices, lr=rate, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            ),
            "adamw": rest,
        }
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        assert closure is None
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        # Loading replaces the groups; those here must stay the same objects, the learning rate is set through them.
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]
