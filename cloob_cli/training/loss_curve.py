"""The loss curve of a run as a PNG (extra `report`)."""

from __future__ import annotations

from pathlib import Path

from cloob_cli.atomic_files import replacing
from cloob_cli.errors import MissingExtraError
from cloob_cli.training.metrics_file import read_rows


def draw_loss_curve(metrics: Path, image: Path) -> None:
    """Draw loss and learning rate over the steps of a metrics.jsonl as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `report`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.of("report", "matplotlib") from None
    rows = [row for row in read_rows(metrics) if "loss" in row]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss = figure.add_subplot(xlabel="step", ylabel="loss")
    loss.plot(steps, [row["loss"] for row in rows], color="tab:blue")
    rate = loss.twinx()
    rate.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray", linewidth=0.8)
    rate.set_ylabel("learning rate")
    with replacing(image) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
