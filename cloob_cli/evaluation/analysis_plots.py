"""Plots of an analysis: the spectra, and what retrieval changes by scale_hopfield (extra `report`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloob_cli.atomic_files import replacing
from cloob_cli.errors import MissingExtraError

PLOTS = ("spectrum.png", "retrieval.png")
_MAKER = "cloob analyze"  # in their metadata, by which they are known to be ours

_MEASURES = (
    ("eigenvalues_99", "eigenvalues for 99 %"),
    ("uniformity", "uniformity (lower: more uniform)"),
    ("ajne", "Ajne's statistic (lower: more uniform)"),
)


def check_plotting() -> None:
    """Raise MissingExtraError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError.of("report", "matplotlib") from None


def plot_analysis(analysis: dict[str, Any], folder: Path) -> list[Path]:
    """Draw `PLOTS` in a folder, from what `cloob analyze --json` prints; returns their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_plotting()
    folder.mkdir(parents=True, exist_ok=True)
    spectrum, retrieval = (folder / name for name in PLOTS)
    return [_spectrum(analysis, spectrum), _retrieval(analysis, retrieval)]


def _spectrum(analysis: dict[str, Any], path: Path) -> Path:
    figure = _figure(7, 4.5)
    axes = figure.add_subplot(xlabel="number of eigenvalues", ylabel="fraction of the variance")
    for kind, eigenvalues in analysis["eigenvalues"].items():
        total = sum(eigenvalues) or 1.0
        explained = [sum(eigenvalues[: number + 1]) / total for number in range(len(eigenvalues))]
        axes.plot(range(1, len(explained) + 1), explained, label=kind)
    axes.axhline(0.99, color="tab:gray", linewidth=0.8)
    axes.legend()
    return _save(figure, path)


def _retrieval(analysis: dict[str, Any], path: Path) -> Path:
    rows: Sequence[dict[str, Any]] = analysis["retrieval"]
    scales = [row["scale_hopfield"] for row in rows]
    figure = _figure(12, 7)
    for number, (name, label) in enumerate(_MEASURES, start=1):
        axes = figure.add_subplot(2, 3, number, xlabel="scale_hopfield", title=label, xscale="log")
        for stored, style in (("from_images", "-"), ("from_texts", "--")):
            for kind, color in (("image", "tab:blue"), ("text", "tab:orange")):
                values = [row[stored][kind][name] for row in rows]
                axes.plot(scales, values, style, color=color, marker="o", label=f"{kind}s {stored.replace('_', ' ')}")
        for kind, color in (("image", "tab:blue"), ("text", "tab:orange")):
            axes.axhline(analysis["embeddings"][kind][name], color=color, linewidth=0.8, linestyle=":")
        if number == 1:
            axes.legend(fontsize="small")
    for number, name in enumerate(("alignment", "modality_gap"), start=4):
        axes = figure.add_subplot(2, 3, number, xlabel="scale_hopfield", title=name.replace("_", " "), xscale="log")
        for stored, style in (("from_images", "-"), ("from_texts", "--")):
            axes.plot(scales, [row[stored][name] for row in rows], style, marker="o", label=stored.replace("_", " "))
        axes.axhline(analysis["embeddings"][name], color="tab:gray", linewidth=0.8, linestyle=":")
    axes = figure.add_subplot(2, 3, 6, xlabel="scale_hopfield", title="where images end", xscale="log", ylim=(0, 1.02))
    for name in ("single", "cluster", "global"):
        axes.plot(scales, [row["from_images"]["fixed_points"][name] for row in rows], marker="o", label=name)
    axes.legend(fontsize="small")
    return _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": _MAKER})
    return path
