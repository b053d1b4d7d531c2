"""The place that an index is to be written at: refused before any work where it cannot be, or would harm others' files.

What `cloob embed` wrote itself it may replace; how that is known stands in output_files.py. A Lance table is known by
the metadata of its schema, and clip-retrieval's layout by its Parquet file, which has as many rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cloob_cli.errors import MissingExtraError, UsageError
from cloob_cli.inference.index.files import LANCE, IndexFiles
from cloob_cli.inference.lance_tables import has_data_with, has_lancedb, is_table, open_table
from cloob_cli.inference.output_files import (
    MADE_BY,
    Command,
    check_output,
    check_writable,
    is_same_file,
    lists_failures,
    made_by,
    may_have_rows,
    rows_of_parquet,
)

_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # what LanceDB allows
_CHOOSE = "choose another --output"
_FORCE = f"{_CHOOSE}, or overwrite it with --force"


def check_index_place(output: Path, files: IndexFiles, inputs: Sequence[Path], *, force: bool = False) -> None:
    """Refuse an output before any work is done.

    Args:
        files: those of `output`.
        inputs: what the command reads.
        force: also replace files that `cloob embed` did not write.

    Raises:
        UsageError: nothing can be written there; it is an input; it exists and `cloob embed` did not write it.
        MissingExtraError: a Lance table without LanceDB.
    """
    if files.form == "npy":
        check_output(output, "embed", [".npy", LANCE], inputs=inputs, force=force)
    elif files.form == "lance":
        check_lance_place(output, files.failures, inputs, "embed", force=force)
    else:
        _check_layout(output, files, inputs, force)


def is_own(output: Path, files: IndexFiles) -> bool:
    """True where `cloob embed` wrote what is there."""
    if files.form == "npy":
        return made_by(output) == "embed"
    if files.form == "lance":
        return _made_table(output, "embed")
    if made_by(files.index) != "embed":
        return False
    try:
        wanted = rows_of_parquet(files.index)
        arrays = [path for path in (files.embeddings, files.beside) if path and path.exists()]
        return all(may_have_rows(path, wanted) for path in arrays)
    except Exception:  # whatever NumPy says of a damaged file
        return False


def check_lance_place(
    output: Path, failures: Path, inputs: Sequence[Path], command: Command, *, force: bool = False
) -> None:
    """Refuse the path of a Lance table that `command` is to write; the arguments are those of `check_index_place`.

    Raises:
        UsageError: nothing can be written there; it is an input; it exists and `command` did not write it.
        MissingExtraError: LanceDB is not installed.
    """
    if not _NAME.fullmatch(output.stem):
        raise UsageError(f"'{output.name}' is no name of a Lance table", "letters, digits, '_', '-' and '.'")
    if not has_lancedb():
        raise MissingExtraError.of("search", "lancedb")
    _check_inputs(output, [output, failures], inputs)
    check_writable(failures, "--output")
    if not output.exists():
        check_writable(output, "--output")
        return
    if not output.is_dir():
        raise UsageError(f"{output} is a file, and a Lance table is a folder", _CHOOSE)
    # With --force too: the whole folder is replaced.
    if not is_table(output) and any(output.iterdir()):
        raise UsageError(f"{output} is a folder, and no Lance table", _CHOOSE)
    if is_table(output) and not force and not _made_table(output, command):
        raise UsageError(f"{output} exists, and `cloob {command}` did not write it", _FORCE)


def _made_table(output: Path, command: Command) -> bool:
    try:
        metadata = open_table(output).schema.metadata or {}
    except Exception:  # whatever LanceDB says of what is no table, or a damaged one
        return has_data_with(output, MADE_BY, f"cloob {command}")
    return bool(metadata.get(MADE_BY.encode()) == f"cloob {command}".encode())


def _check_layout(output: Path, files: IndexFiles, inputs: Sequence[Path], force: bool) -> None:
    if output.suffix.lower() in {".npy", ".parquet", LANCE} and not output.is_dir():
        raise UsageError(f"'{output}' is no name of a folder", "with --layout clip-retrieval --output is a folder")
    if is_table(output):  # which is replaced as a whole when it is updated
        raise UsageError(f"{output} is a Lance table", _CHOOSE)
    _check_inputs(output, files.all, inputs)
    for path in files.all:
        check_writable(path, "--output")
    # clip-retrieval takes all files of such a folder for one array, so another program's part must not lie beside ours.
    for path in filter(None, [files.embeddings, files.beside, files.index]):
        others = sorted(other.name for other in path.parent.glob(f"*{path.suffix}") if other.name != path.name)
        if others:
            raise UsageError(f"{path.parent} holds embeddings of another program: {others[0]}", _CHOOSE)
    if force or is_own(output, files):
        if force or not files.failures.exists() or lists_failures(files.failures):
            return
        raise UsageError(f"{files.failures} exists, and `cloob embed` did not write it", _FORCE)
    for path in files.all:
        if path.exists() and path.stat().st_size:
            raise UsageError(f"{path} exists, and `cloob embed` did not write it", _FORCE)


def _check_inputs(output: Path, written: Sequence[Path], inputs: Sequence[Path]) -> None:
    for source in inputs:
        if any(is_same_file(source, path) for path in [output, *written]):
            raise UsageError(f"{output} would overwrite {source}, which is an input", _CHOOSE)
        if output.suffix == LANCE and output.resolve() in source.resolve().parents:
            raise UsageError(f"{output} would replace {source}, which is an input", _CHOOSE)
