"""The optimizer: AdamW and its parameter groups, alone or beside Muon.

Muon is Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), in torch's own implementation,
with the scale of Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982), by which Muon's updates are as
large as AdamW's: both take the same learning rate and the same decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch

from cloob_cli.core.model import CloobModel
from cloob_cli.core.towers import depths
from cloob_cli.core.transformer import Block
from cloob_cli.errors import RecipeError
from cloob_cli.recipe import OptimizerSection

# Parameters with one of these in their name do not decay by the rule "names".
_NAMES_WITHOUT_DECAY = ("bn", "ln", "bias", "logit_scale")


def build_optimizer(
    model: torch.nn.Module, section: OptimizerSection, beside: torch.nn.Module | None = None
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`, with the fused step where torch has one for the device; beside Muon if asked.

    Args:
        beside: a further module that is trained with the model, by AdamW.

    Raises:
        RecipeError: Muon is asked for and torch is too old for it, or the model has no matrix for it.
    """
    device = next(model.parameters()).device.type
    matrices = [p for p in hidden_matrices(model) if p.requires_grad] if section.name == "muon" else []
    rates = peak_rates(model, section)
    groups = by_rate(parameter_groups(model, section.weight_decay, section.decay, matrices), rates)
    if beside is not None:
        groups += parameter_groups(beside, section.weight_decay)[:1]
    adamw = torch.optim.AdamW(
        groups,
        lr=section.learning_rate,
        betas=(section.beta1, section.beta2),
        eps=section.epsilon,
        fused=device in {"cpu", "cuda"},
    )
    if section.name == "adamw":
        return adamw
    return MuonWithAdamW(
        by_rate([{"params": matrices}], rates), adamw, weight_decay=section.weight_decay, momentum=section.momentum
    )


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float,
    decay: Literal["matrices", "names"] = "matrices",
    without: Collection[torch.nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Two AdamW groups of the trainable parameters, those that decay and those that do not; none of `without`.

    By "matrices", parameters of two or more dimensions decay: matrices, kernels and positional embeddings. Gains,
    biases, the class token and the temperature have fewer; decaying them pulls the network's scale towards zero
    without regularizing anything. "names" is the reference program's rule: all decay whose name holds none of "bn",
    "ln", "bias" and "logit_scale"; `downsample.1.weight`, a BatchNorm's gain, then decays although no other gain does.
    """
    left_out = {id(parameter) for parameter in without}
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in left_out]

    def decays(name: str, parameter: torch.Tensor) -> bool:
        if decay == "names":
            return not any(part in name for part in _NAMES_WITHOUT_DECAY)
        return parameter.ndim >= 2

    return [
        {"params": [p for name, p in trainable if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if not decays(name, p)], "weight_decay": 0.0},
    ]


def peak_rates(model: torch.nn.Module, section: OptimizerSection) -> dict[int, float]:
    """The highest learning rate of each parameter, by its id, where it is not `section.learning_rate`.

    A tower has its own; a layer's is that of the layer after it times `layer_decay` (Dong et al., "CLIP Itself is a
    Strong Fine-tuner", arXiv 2212.06138).
    """
    own = {"image": section.image_learning_rate, "text": section.text_learning_rate}
    alike = section.layer_decay == 1 and own == {"image": None, "text": None}
    if alike or not isinstance(model, CloobModel):
        return {}
    rates = {name: section.learning_rate if rate is None else rate for name, rate in own.items()}
    return {number: rates[name] * section.layer_decay**depth for number, (name, depth) in depths(model).items()}


def by_rate(groups: list[dict[str, Any]], rates: Mapping[int, float]) -> list[dict[str, Any]]:
    """Parameter groups of one highest learning rate each: `peak`, where it is not the recipe's."""
    if not rates:
        return groups
    split: list[dict[str, Any]] = []
    for group in groups:
        by_peak: dict[float | None, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_peak.setdefault(rates.get(id(parameter)), []).append(parameter)
        split += [
            group | {"params": members} | ({} if peak is None else {"peak": peak}) for peak, members in by_peak.items()
        ]
    return split or groups


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float | Callable[[float | None], float]) -> None:
    """Give every parameter group a learning rate: the same, or one that follows from its `peak` (or None)."""
    for group in optimizer.param_groups:
        group["lr"] = rate(group.get("peak")) if callable(rate) else rate


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
        matrices: parameter groups of what Muon updates; at least one parameter.
        rest: AdamW over all other parameters.

    Raises:
        RecipeError: this torch has no Muon, or there is no matrix.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], rest: torch.optim.AdamW, *, weight_decay: float, momentum: float
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(f"optimizer.name = 'muon' needs torch 2.9, this is {torch.__version__}")
        if not any(group["params"] for group in matrices):
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
