"""The weights between the start of a run and its end (`finetune.interpolate`), and a comparison along the way.

Fine-tuning learns a domain and forgets others; weights in between often have the better of both (WiSE-FT, Wortsman et
al., arXiv 2109.01903).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cloob_cli.atomic_files import replacing
from cloob_cli.checkpoint.folder import WEIGHTS_FILE
from cloob_cli.core.blending import blended
from cloob_cli.errors import Interrupted, one_line
from cloob_cli.training.build_run import Run
from cloob_cli.training.events import Blended, Event, Notice

ALPHAS = [number / 10 for number in range(11)]


@dataclass(frozen=True)
class WeightPath:
    """The straight way of a model's weights from the start of a run (0) to its end (1)."""

    model: torch.nn.Module
    start: Mapping[str, Tensor]
    end: Mapping[str, Tensor]

    @classmethod
    @contextmanager
    def of(cls, run: Run) -> Iterator[WeightPath]:
        """The way of a run's model as it is now; it has its own weights again afterwards.

        Only the main process has the start, and it alone scores and saves: elsewhere the weights do not change.
        """
        from safetensors.torch import load_file

        end = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
        start = load_file(run.folder.start / WEIGHTS_FILE) if run.is_main else end
        try:
            yield cls(run.model, start, end)
        finally:
            run.model.load_state_dict(end)

    def go_to(self, alpha: float) -> None:
        """Give the model the weights at `alpha`."""
        self.model.load_state_dict(blended(self.start, self.end, alpha))


def compare_alphas(run: Run, path: WeightPath, chosen: float, known: Mapping[str, float]) -> Iterator[Event]:
    """Score the model at every alpha and write the scores down; `known` are those at `chosen`.

    Only the main process computes, the others wait. Scores that fail are told and end the comparison.
    """
    rows = []
    if run.is_main:
        for alpha in sorted({*ALPHAS, chosen}):
            run.stop.check()
            path.go_to(alpha)
            try:
                found = known if alpha == chosen else run.validator.run(run.model, run.accelerator.autocast)
            except Interrupted:
                raise
            except Exception as problem:
                yield Notice(f"the comparison failed at alpha {alpha:g}: {one_line(problem)}")
                break
            scores = {name: value for name, value in found.items() if name != "loss"}
            rows.append({"alpha": alpha, **scores})
            yield Blended(alpha, scores, alpha == chosen)
        with replacing(run.folder.interpolation) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    run.accelerator.wait_for_everyone()
