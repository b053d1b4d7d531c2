"""The summary of `cloob classify --calibrate`: what was fitted to the labeled images, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console

if TYPE_CHECKING:
    from cloob_cli.inference.calibration import Calibration


def show_calibration(calibration: Calibration, path: Path, as_json: bool) -> None:
    """Show what was fitted and how well it does."""
    if calibration.temperature == 1:
        console.warn(
            "no temperature fits these images, as all are right or most are wrong: probabilities stay as they are"
        )
    if as_json:
        console.json_document(calibration.model_dump())
        return
    rows: list[tuple[str, str]] = [
        ("images", f"{calibration.images}"),
        ("unknown images", f"{calibration.unknown_images}"),
        ("accuracy", f"{calibration.accuracy:.4f}"),
        ("calibration error before", f"{calibration.ece_before:.4f}"),
        ("calibration error after", f"{calibration.ece_after:.4f}"),
        ("temperature", f"{calibration.temperature:.4f}"),
        (f"{calibration.rejection} threshold", f"{calibration.threshold:.4f}"),
        ("known images kept", f"{calibration.known_kept:.4f}"),
    ]
    if calibration.unknown_rejected is not None:
        rows.append(("unknown images rejected", f"{calibration.unknown_rejected:.4f}"))
        rows.append(("AUROC of the score", f"{calibration.auroc:.4f}"))
    if calibration.coverage is not None:
        rows.append((f"labels in a set of {calibration.coverage:g}", f"{calibration.mean_set_size:.2f}"))
    console.table(["what", "value"], rows)
    console.info(f"wrote {path}")
    console.hint(f"use it with: cloob classify DIR --calibration {path}, and the same labels and model")
