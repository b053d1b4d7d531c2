"""Rules for the answers of `cloob classify`: `--unknown`, `--multi-label`, `--calibration` and what belongs to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console
from cloob_cli.errors import UsageError

if TYPE_CHECKING:
    from cloob_cli.filing.filing import LabelPath
    from cloob_cli.inference.answers import Rejection, Rules
    from cloob_cli.inference.calibration import Calibration
    from cloob_cli.inference.labels import Label
    from cloob_cli.inference.result_rows import Classified


@dataclass(frozen=True)
class RuleOptions:
    """The options of the command line that are about answers."""

    unknown: str | None = None
    rejection: Rejection | None = None
    threshold: float | None = None
    reference: Path | None = None
    several: bool = False
    sure: float | None = None
    calibration: Path | None = None
    calibrating: bool = False

    def check(self, labels: Sequence[Label]) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: an option without the one that it is for, or a value out of range.
        """
        if self.unknown is not None and not self.unknown.strip():
            raise UsageError("--unknown is empty", "give a name for images that belong to no label: --unknown other")
        if self.unknown is not None and any("\ud800" <= c <= "\udfff" for c in self.unknown):
            raise UsageError("--unknown is not UTF-8")
        if self.unknown in {name for label in labels for name in label.path}:
            raise UsageError(f"--unknown '{self.unknown}' is the name of a label too", "choose another name")
        if self.threshold is not None:
            if not (self.unknown is not None or self.several):
                raise UsageError("--threshold is for --unknown or --multi-label")
            if not math.isfinite(self.threshold):
                raise UsageError("--threshold is not a number")
        if (self.rejection or self.reference) and (self.unknown is None or self.several) and not self.calibrating:
            raise UsageError(
                "--rejection and --reference choose the score of --unknown",
                "with --multi-label an image is unknown where no label reaches the threshold",
            )
        if self.sure is not None and not any(label.above for label in labels):
            raise UsageError("--sure is for labels in a tree", "like: animal > bird > robin")

    def rules(self, model: str, calibration: Calibration | None = None, stored: float | None = None) -> Rules:
        """The rules for `Answers`; says where a threshold is not the user's own.

        Args:
            model: its name.
            calibration: what was fitted before.
            stored: the threshold that stored images have.

        Raises:
            UsageError: `calibration` is of another rejection score.
        """
        from cloob_cli import assets
        from cloob_cli.inference.answers import DEFAULT_SHARE, DEFAULT_THRESHOLDS, Rules
        from cloob_cli.inference.calibration import calibrated

        if calibration is not None and self.rejection not in (None, calibration.rejection):
            raise UsageError(
                f"{self.calibration} has a threshold for the {calibration.rejection} score", "leave --rejection out"
            )
        rejection = self.rejection or (calibration.rejection if calibration else "energy")
        least = DEFAULT_SHARE if self.sure is None else self.sure
        bundled = assets.BUNDLED_MODEL
        threshold = self.threshold
        if threshold is None:
            threshold = DEFAULT_THRESHOLDS[rejection] if stored is None else stored
        if self.several and self.threshold is not None:
            least = self.threshold
        elif self.several and calibration is None and model != bundled:
            console.hint(f"the level of a label by itself was measured with {bundled}; --calibrate fits it to {model}")
        elif self.unknown is not None and self.threshold is None and not self.several and calibration is None:
            console.info(f"images are '{self.unknown}' where the {rejection} score exceeds {threshold:.4g}")
            if stored is None and model != bundled:
                console.warn(f"that threshold was measured with {bundled}; scores of {model} lie elsewhere")
            console.hint("--threshold sets another, --calibrate fits one to your images")
        rules = Rules(self.unknown, rejection, threshold, least, self.several)
        return rules if calibration is None else calibrated(calibration, rules, self.threshold is not None)


def label_paths(labels: Sequence[Label], unknown: str | None) -> dict[str, LabelPath]:
    """The path in the tree of every name that an answer may have."""
    paths: dict[str, LabelPath] = {}
    for label in labels:
        for depth in range(len(label.path)):
            paths[label.path[depth]] = label.path[: depth + 1]
    if unknown is not None:
        paths[unknown] = (unknown,)
    return paths


def filed_under(
    row: Classified, paths: dict[str, LabelPath], unknown: str | None, several: bool
) -> tuple[list[LabelPath], list[LabelPath]]:
    """The folders that an image goes into, and its keywords: an unknown image has a folder and no keyword."""
    names = [row.label.label]
    if several:
        found = [choice["label"] for choice in row.further["labels"]]
        names = found or names[: unknown is not None]
    folders = [paths[name] for name in names]
    return folders, [path for path in folders if path != (unknown,)]
