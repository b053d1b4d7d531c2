"""Paths of result files, and the check that a command replaces without being asked only those that it wrote itself.

That it wrote a file is known

* of a .parquet file by its metadata (`made_by`; of files of version 0.1.0 by the other metadata, or their columns);
* of a .npy file by the .parquet file beside it, which has as many rows; one that is damaged so that its rows cannot be
  told belongs to that .parquet file too, and reading it says what is wrong;
* of a .csv or .jsonl file of labels by its first line: the columns, or the keys, that `classify` writes;
* of a report, .html, by the name of the generator in its head, whichever command asked for it;
* of a .json or .csv file of scores by its keys, or its first line, of a .json file of `analyze` by its keys, and of
  its .png files by what they say of their maker;
* of a .failures.jsonl file by all its lines, and by an output of the same command beside it.

An empty file holds nothing that could be lost.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from cloob_cli.atomic_files import existing_folder
from cloob_cli.errors import UsageError
from cloob_cli.inference.arrow_file import arrow_file

Command = Literal["classify", "embed", "embed --engine ray", "eval", "analyze", "report"]

MADE_BY = "made_by"  # the key in a Parquet file's metadata; its value is the command, "cloob embed"
RAY: Command = "embed --engine ray"  # its .parquet file has embeddings, that of `embed` is the index of a .npy file
_EMBED_KEYS = {b"model", b"weights_sha256", b"preprocessing", b"version"}
_CHOICE = ["label", "probability", "cosine"]
_ANALYSIS = {"dataset", "model", "pairs", "embeddings", "retrieval"}  # among the keys of a document of `analyze`
_SCORES = ("dataset", "model", "task")  # the first columns, or keys of each record
_FURTHER = [
    "rejection",
    "decided_by",
    "labels",
    "set",
    "sorted_to",
]  # what `classify` writes behind these, where it was asked to
_CSV_HEADER = re.compile(
    r"path,label,probability,cosine(,label_\d+,probability_\d+,cosine_\d+)*" + "".join(f"(,{n})?" for n in _FURTHER)
)
_GENERATOR = b'<meta name="generator" content="cloob '
_DRAWN_BY = b"Software\0cloob analyze"
_HEAD = 1024  # bytes of a page or an image in which that stands
_FIRST_LINE = 1 << 20  # bytes of a first line that are read


def failures_path(output: Path) -> Path:
    """The file that lists skipped inputs: `emb.failures.jsonl` beside `emb.npy`."""
    return output.with_suffix(".failures.jsonl")


def output_files(output: Path, command: Command) -> list[Path]:
    """All files that `command -o output` writes, `output` first and the failures last."""
    if command in ("eval", "analyze", "report"):
        return [output]
    index = [output.with_suffix(".parquet")] if command == "embed" else []
    return [output, *index, failures_path(output)]


def check_output(
    output: Path,
    command: Command,
    suffixes: Sequence[str],
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
    option: str = "--output",
) -> None:
    """Refuse output paths before any work is done.

    Args:
        inputs: files that the command reads.
        force: also replace files that the command did not write. Inputs are refused all the same.
        option: the one that names the output.

    Raises:
        UsageError: the suffix is none of `suffixes`; a file cannot be written there; it is an input; or it exists and
            this command did not write it.
    """
    if output.suffix.lower() not in suffixes:
        raise UsageError(f"cannot write '{output.name}': unknown file type", f"use one of: {' '.join(suffixes)}")
    files = output_files(output, command)
    inputs = list(inputs)
    for path in files:
        check_writable(path, option)
        if source := next((source for source in inputs if is_same_file(source, path)), None):
            raise UsageError(f"{path} would overwrite {source}, which is an input", f"choose another {option}")
    if force:
        return
    for path in files:
        if path.exists() and path.stat().st_size and not _is_own(path, output, command):
            writer = "cloob" if command == "report" else f"`cloob {command}`"
            raise UsageError(
                f"{path} exists, and {writer} did not write it",
                f"choose another {option}, or overwrite it with --force",
            )


def check_place(path: Path, inputs: Iterable[Path], force: bool) -> None:
    """Refuse a path for a calibration file: where nothing can be written, an input, or a file of another kind.

    Raises:
        UsageError: that.
    """
    check_writable(path, "--calibration")
    if source := next((source for source in inputs if is_same_file(source, path)), None):
        raise UsageError(f"{path} would overwrite {source}, which is an input", "choose another --calibration")
    if not force and path.exists() and path.stat().st_size and b'"cloob_calibration"' not in path.read_bytes()[:64]:
        raise UsageError(f"{path} exists, and is no calibration", "choose another --calibration, or --force")


def check_writable(path: Path, option: str) -> None:
    """Refuse a path for a file where none can be written, or where something else is.

    Raises:
        UsageError: that.
    """
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder, a file was expected", f"choose another {option}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is not a regular file", f"choose another {option}")
    check_place_of(path, option)


def check_place_of(path: Path, option: str, *, is_folder: bool = False) -> None:
    """Refuse a path where neither a file nor a folder can be made.

    Args:
        is_folder: it is one in which files are to be made, there already or not.

    Raises:
        UsageError: that.
    """
    real = Path(os.path.realpath(path))
    folder = existing_folder(real if is_folder else real.parent)
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: {folder} is not a folder", f"choose another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: no permission to write in {folder}", f"choose another {option}")


def is_same_file(one: Path, other: Path) -> bool:
    """True for two names of one file or folder that is there."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


def _is_own(path: Path, output: Path, command: Command) -> bool:
    if path == failures_path(output):
        # The list does not say who wrote it, so its neighbors must: commands that share a stem share its name.
        return lists_failures(path) and _makers_beside(output) == {command}
    return made_by(path) == command


def _makers_beside(output: Path) -> set[Command]:
    candidates = (output.with_suffix(suffix) for suffix in (".npy", ".parquet", ".csv", ".jsonl"))
    return {maker for path in {output, *candidates} if path.is_file() and (maker := made_by(path))}


def made_by(path: Path) -> Command | None:
    """The command that wrote a result file; None where that is not certain."""
    try:
        match path.suffix.lower():
            case ".parquet":
                return _maker_of_parquet(path)
            case ".npy":
                index = path.with_suffix(".parquet")
                if _maker_of_parquet(index) != "embed":
                    return None
                return "embed" if may_have_rows(path, rows_of_parquet(index)) else None
            case ".csv":
                header = _read_first_line(path)
                if header.startswith(",".join(_SCORES) + ","):
                    return "eval"
                return "classify" if _CSV_HEADER.fullmatch(header) else None
            case ".json":
                records = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(records, dict):
                    return "analyze" if records.keys() >= _ANALYSIS else None
                ours = isinstance(records, list) and all(record.keys() >= {*_SCORES, "metrics"} for record in records)
                return "eval" if ours else None
            case ".html" | ".htm":
                with path.open("rb") as stream:
                    return "report" if _GENERATOR in stream.read(_HEAD) else None
            case ".png":
                with path.open("rb") as stream:
                    return "analyze" if _DRAWN_BY in stream.read(_HEAD) else None
            case ".jsonl":
                value = json.loads(_read_first_line(path))
                return "classify" if isinstance(value, dict) and _is_row([*value]) else None
    except Exception:  # whatever pyarrow, NumPy or json say of it: a damaged file is not known to be ours
        pass
    return None


def _is_row(keys: list[str]) -> bool:
    """True for the keys of a row that `classify` writes."""
    first = ["path", *_CHOICE, "top"]
    return keys[: len(first)] == first and keys[len(first) :] == [name for name in _FURTHER if name in keys]


def _maker_of_parquet(path: Path) -> Command | None:
    from pyarrow import parquet

    with arrow_file(path) as opened:
        schema = parquet.read_schema(opened)
    metadata = schema.metadata or {}
    commands: tuple[Command, ...] = ("classify", "embed", RAY)
    for command in commands:
        if metadata.get(MADE_BY.encode()) == f"cloob {command}".encode():
            return command
    if metadata.keys() >= _EMBED_KEYS and len(schema.names) == 1:
        return "embed"
    return "classify" if schema.names == ["path", *_CHOICE, "top"] else None


def rows_of_parquet(path: Path) -> int:
    """The number of rows of a Parquet file."""
    from pyarrow import parquet

    with arrow_file(path) as opened:
        return int(parquet.read_metadata(opened).num_rows)


def may_have_rows(path: Path, rows: int) -> bool:
    """True for a .npy file of `rows` numbers or lists of them, by its header, and for one whose header is damaged."""
    from cloob_cli.inference.npy_file import told_shape

    shape = told_shape(path)
    return shape is None or shape[:1] == (rows,)


def _read_first_line(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.readline(_FIRST_LINE).decode("utf-8").rstrip("\r\n")


def lists_failures(path: Path) -> bool:
    """True for a list of inputs that were skipped."""
    try:
        with path.open(encoding="utf-8") as stream:
            return all(list(dict.keys(json.loads(line))) == ["path", "reason"] for line in stream)
    except Exception:  # not text, not JSON, not objects
        return False
