"""Models in the form of other programs, one module a program. Start reading at `export_model`."""

from __future__ import annotations

from pathlib import Path

from cloob_cli.errors import UsageError

TARGETS = ("open_clip", "transformers", "onnx")


def export_model(folder: Path, to: str, output: Path) -> None:
    """Write the model in `folder` in the form of another program.

    Args:
        to: one of `TARGETS`.
        output: the folder to write; it appears only when everything is in it.

    Raises:
        NotExportableError: the target has no such architecture.
        MissingExtraError: "onnx" without the extra `onnx`.
        UsageError: no such target.
    """
    folder, output = Path(folder), Path(output)
    if to == "open_clip":
        from cloob_cli.export.open_clip import export_open_clip

        export_open_clip(folder, output)
    elif to == "transformers":
        from cloob_cli.export.transformers import export_transformers

        export_transformers(folder, output)
    elif to == "onnx":
        from cloob_cli.export.onnx import export_onnx

        export_onnx(folder, output)
    else:
        raise UsageError(f"cannot export to {to!r}", f"known: {', '.join(TARGETS)}")
