"""`cloob analyze`: the geometry of a model's embeddings, and what Hopfield retrieval makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cloob_cli import console, signals
from cloob_cli.commands import completion
from cloob_cli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    WorkersOption,
)
from cloob_cli.errors import DataError, Interrupted, UsageError


def analyze(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Zoo name, model folder or hf://ORG/REPO[@REVISION].",
            autocompletion=completion.usable_models,
        ),
    ],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set, as `cloob eval` takes it.")],
    scale_hopfield: Annotated[
        list[float] | None,
        typer.Option(help="beta of the retrieval; may be repeated.", show_default="8, 14.3, 30 and 100"),
    ] = None,
    split: Annotated[str, typer.Option(help="The part of the data set.")] = "test",
    limit: Annotated[int, typer.Option(min=2, help="So many pairs at most, evenly spaced.")] = 2000,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a .json file as well.")] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw spectrum.png and retrieval.png there (extra report).")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep embeddings and use kept ones.")] = True,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = 64,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what the CLOOB paper looks at.

    Before and after retrieval: eigenvalues of the covariance for 99 % of the variance, alignment, uniformity,
    Ajne's statistic and the modality gap; the effective number of patterns that a query retrieves, and where the
    iterated update rule ends.
    """
    console.configure(quiet=quiet)
    scales = scale_hopfield or []
    if any(scale <= 0 for scale in scales):
        raise UsageError("--scale-hopfield is above 0")
    with signals.leaving_at_once():
        from cloob_cli.commands.eval_data import located
        from cloob_cli.evaluation.analysis_plots import PLOTS, check_plotting, plot_analysis
        from cloob_cli.evaluation.evaluate import Asked, open_data
        from cloob_cli.inference.output_paths import check_output
    if output is not None:
        check_output(output, "analyze", [".json"], force=force)
    if plots is not None:
        check_plotting()
        for name in PLOTS:
            check_output(plots / name, "analyze", [".png"], force=force, option="--plots")
    asked = Asked(split=split, limit=limit)
    data = open_data(located(dataset, asked), asked)
    if len(data) < 2:
        raise DataError(f"{data.name} holds a single image", "an analysis compares two or more")
    try:
        found = _analyze(model, data, asked, scales, (device, precision, batch_size, workers), cache)
    except KeyboardInterrupt:
        raise Interrupted("interrupted", "embeddings of the whole data set are kept, if it came so far") from None
    if output is not None:
        _write(output, found)
        console.info(f"wrote {output}")
    if plots is not None:
        for path in plot_analysis(found, plots):
            console.info(f"wrote {path}")
    if as_json:
        console.json_document(found)
    else:
        console.table(*_rows(found))
    if found["skipped"]:
        console.warn(f"{found['skipped']} image(s) skipped")
        raise typer.Exit(3)


def _analyze(
    name: str, data: Any, asked: Any, scales: list[float], options: tuple[Any, Any, int, Any], cache: bool
) -> dict[str, Any]:
    from cloob_cli.checkpoint.folder import weights_sha256
    from cloob_cli.commands.inference_run import model_name, open_model
    from cloob_cli.evaluation import analysis
    from cloob_cli.evaluation.embeddings import Embedder
    from cloob_cli.evaluation.evaluate import chosen_images
    from cloob_cli.registry import paths

    device, precision, batch_size, workers = options
    model, folder = open_model(name, device, precision)
    identity = weights_sha256(folder)
    embedder = Embedder(model, identity, paths.evaluation_folder() if cache else None, batch_size, workers)
    chosen = chosen_images(data, asked.limit)
    with console.track(data.name, len(chosen), "images") as bar:
        pairs = analysis.embed_pairs(embedder, data, chosen, lambda failure: bar.advance())
    found: dict[str, Any] = {
        "dataset": data.name,
        "model": model_name(model, folder),
        "pairs": len(pairs.images),
        "skipped": pairs.skipped,
        "settings": {"weights_sha256": identity, "split": asked.split, "scale_hopfield": model.config.scale_hopfield},
        "embeddings": analysis.geometry(pairs.images, pairs.texts),
        "eigenvalues": analysis.spectra(pairs),
        "retrieval": [],
    }
    chosen_scales = list(dict.fromkeys(scales or analysis.SCALES))
    with console.track("retrieval", len(chosen_scales), "scales") as bar:
        for scale in chosen_scales:
            found["retrieval"].append(analysis.after_retrieval(pairs, scale))
            bar.advance()
    return found


def _rows(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """The table: a row for each kind of embedding, before retrieval and from each store by each scale."""
    columns = ["embeddings", "scale", "eigenvalues 99 %", "uniformity", "Ajne", "alignment", "gap", "patterns"]
    columns += ["fixed points", "single", "cluster", "global"]
    rows = [_row(kind + "s", None, found["embeddings"], kind) for kind in ("image", "text")]
    for one in found["retrieval"]:
        for stored, own in (("from_images", "image"), ("from_texts", "text")):
            for kind in ("image", "text"):
                row = _row(f"{kind}s {stored.replace('_', ' ')}", one["scale_hopfield"], one[stored], kind)
                if kind == own:
                    ends = one[stored]["fixed_points"]
                    row[-4:] = [ends["distinct"], *(f"{ends[name]:.0%}" for name in ("single", "cluster", "global"))]
                rows.append(row)
    return columns, rows


def _row(name: str, scale: float | None, measures: dict[str, Any], kind: str) -> list[object]:
    one = measures[kind]
    patterns = one.get("effective_patterns")
    return [
        name,
        f"{scale:g}" if scale is not None else None,
        one["eigenvalues_99"],
        f"{one['uniformity']:.3f}",
        f"{one['ajne']:.3g}",
        f"{measures['alignment']:.3f}",
        f"{measures['modality_gap']:.3f}",
        f"{patterns['median']:.1f}" if patterns else None,
        None,
        None,
        None,
        None,
    ]


def _write(output: Path, found: dict[str, Any]) -> None:
    from cloob_cli.atomic_files import replacing

    with replacing(output) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
