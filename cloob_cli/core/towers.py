"""The parts of a model's two towers by name: what comes before the blocks, the blocks, the projection.

Names: `image` and `text` are whole towers; `image.trunk` is all of one but its projection; `image.embedding`,
`image.layers`, `image.layers:0-9` and `image.projection` are parts of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from cloob_cli.core.model import CloobModel
from cloob_cli.core.resnet import ModifiedResNet
from cloob_cli.errors import RecipeError

Piece = nn.Module | nn.Parameter
TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, ...] = ("image", "text")


@dataclass(frozen=True)
class Tower:
    """The pieces of one tower, from its input to its output.

    Attributes:
        embedding: what comes before the blocks.
        blocks: one piece each.
        pooling: what comes between the blocks and the projection.
        projection: the last matrix, into the space of embeddings.
    """

    embedding: Sequence[Piece]
    blocks: Sequence[nn.Module]
    pooling: Sequence[Piece]
    projection: Sequence[Piece]

    @property
    def trunk(self) -> list[Piece]:
        return [*self.embedding, *self.blocks, *self.pooling]


def tower(model: CloobModel, name: TowerName) -> Tower:
    """The pieces of the tower `name`; those without any parameter are left out or are empty modules."""
    if name == "text":
        return Tower(
            [model.token_embedding, model.positional_embedding, model.ln_embedding],
            list(model.transformer.resblocks),
            [model.ln_final],
            [model.text_projection],
        )
    visual = model.visual
    if isinstance(visual, ModifiedResNet):
        pool = visual.attnpool
        return Tower(
            [visual.conv1, visual.bn1, visual.conv2, visual.bn2, visual.conv3, visual.bn3],
            [block for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4) for block in stage],
            [pool.positional_embedding, pool.q_proj, pool.k_proj, pool.v_proj],
            [pool.c_proj],
        )
    return Tower(
        [visual.stem, visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre],
        list(visual.transformer.resblocks),
        [visual.ln_post],
        [visual.proj],
    )


def parts(model: CloobModel, names: Iterable[str]) -> list[Piece]:
    """The pieces that `names` mean.

    Raises:
        RecipeError: a tower has fewer blocks than a name says, or there is no such part.
    """
    found: list[Piece] = []
    for name in names:
        match = re.fullmatch(r"(image|text)(?:\.(\w+)(?::(\d+)(?:-(\d+))?)?)?", name)
        if match is None:
            raise RecipeError(f"{name!r} is no part of a model")
        side, part, first, last = match.groups()
        pieces = tower(model, "image" if side == "image" else "text")
        if part == "layers":
            begin = int(first or 0)
            end = int(last or first) if first else len(pieces.blocks) - 1
            if end >= len(pieces.blocks):
                count = len(pieces.blocks)
                raise RecipeError(f"{name!r}: the {side} tower has {count} blocks, the last is number {count - 1}")
            found += pieces.blocks[begin : end + 1]
        else:
            found += [*pieces.trunk, *pieces.projection] if part is None else getattr(pieces, part)
    return found


def freeze(model: CloobModel, names: Sequence[str]) -> None:
    """Keep the parts that `names` mean as they are: no gradients, and their batch normalization never in training mode.

    Raises:
        RecipeError: see `parts`; or no parameter is left to train but the temperature.
    """
    if not names:
        return
    pieces = parts(model, names)
    for piece in pieces:
        piece.requires_grad_(False)
    model.stay_in_evaluation([piece for piece in pieces if isinstance(piece, nn.Module)])
    if trunk_is_frozen(model, "image"):
        model.stay_in_evaluation([model.visual])  # as a whole: it drops no patches either
    if not any(parameter.requires_grad for name, parameter in model.named_parameters() if name != "logit_scale"):
        raise RecipeError("train.freeze leaves nothing to train", "take a tower or some of its layers out of it")


def trunk_is_frozen(model: CloobModel, name: TowerName) -> bool:
    """True where nothing of a tower is trained, but for its projection and its adapter."""
    return not any(map(_trained, tower(model, name).trunk))


def depths(model: CloobModel) -> dict[int, tuple[TowerName, int]]:
    """By the id of each tower parameter: its tower, and how many layers lie between it and the tower's last block.

    The last block and what comes after it have 0, the first of N blocks N - 1, what comes before the blocks N.
    """
    found: dict[int, tuple[TowerName, int]] = {}
    for name in TOWERS:
        pieces = tower(model, name)
        count = len(pieces.blocks)
        layers = [(pieces.embedding, count), *(([block], count - 1 - n) for n, block in enumerate(pieces.blocks))]
        for layer, depth in [*layers, ([*pieces.pooling, *pieces.projection], 0)]:
            for piece in layer:
                found |= {id(parameter): (name, depth) for parameter in _parameters(piece)}
    return found


def _parameters(piece: Piece) -> Iterable[nn.Parameter]:
    return [piece] if isinstance(piece, nn.Parameter) else piece.parameters()


def _trained(piece: Piece) -> bool:
    return any(parameter.requires_grad for parameter in _parameters(piece))
