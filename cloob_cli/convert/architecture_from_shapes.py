"""Derive an architecture from the shapes of a checkpoint's tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from cloob_cli.errors import ConversionError, MissingConfigurationError

HEAD_WIDTH = 64  # CLIP's rule: a head for every 64 channels


def count_layers(names: Iterable[str], pattern: str) -> int:
    """Count the different numbers that the group of `pattern` takes in `names`; they must be 0, 1, 2, ..."""
    found = {int(match.group(1)) for name in names if (match := re.match(pattern, name))}
    if not found or found != set(range(len(found))):
        raise ConversionError("the checkpoint lacks layers: their numbers have gaps")
    return len(found)


def heads_of(width: int, where: str) -> int:
    """Attention heads of a tower by CLIP's rule, which is the only thing that shapes leave open."""
    if width % HEAD_WIDTH:
        raise MissingConfigurationError(
            f"the {where} tower's number of heads cannot be read from its width {width}",
            "give the checkpoint's own configuration with --config FILE",
        )
    return width // HEAD_WIDTH


def grid_of(positions: int) -> int:
    """The side of the square grid behind a positional embedding of grid² + 1 rows."""
    grid = math.isqrt(max(positions - 1, 0))
    if grid * grid + 1 != positions:
        raise ConversionError(f"{positions} positions are not a square grid and one token")
    return grid
