"""Other programs' checkpoints in our form: one module a layout, and readers that never run what they read.

Start reading at `convert_checkpoint`. `mljku`, `crowsonkb` and `rinna` are the layouts; `torch_file` and
`haiku_pickle` read files that may be hostile.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.errors import ConversionError, ModelFolderError

if TYPE_CHECKING:
    from torch import Tensor

    from cloob_cli.core.config import ModelConfig
    from cloob_cli.core.model import CloobModel
    from cloob_cli.data.text import Tokenizer

FORMATS = ("mljku", "crowsonkb", "rinna")
CONFIG_FILE = "config.json"
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin", "checkpoint.pt", "checkpoint.pkl")


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint, from which a model folder is written.

    Attributes:
        format: the layout that the source had.
        ignored: the source's tensors that have no place in the model; every other was used exactly once.
    """

    model: CloobModel
    config: ModelConfig
    tokenizer: Tokenizer
    ignored: list[str]
    format: str


def convert_checkpoint(
    path: Path,
    format: str | None = None,
    config: Path | dict[str, Any] | None = None,
    architecture: str | None = None,
    name: str = "",
    tokenizer: Path | None = None,
) -> Converted:
    """Read another program's checkpoint without running any of it, and convert it.

    Args:
        path: the checkpoint, or a folder that holds it.
        format: one of `FORMATS`; None: the file shows it.
        config: the checkpoint's own configuration; None: the `config.json` beside it where there is one.
            `{"architecture": "RN50"}` names an architecture instead.
        architecture: an open_clip name, where there is no configuration. Without either the shapes decide.
        name: the model's name, for its configuration.
        tokenizer: the folder of a sentence-piece vocabulary (format "rinna"); None: the checkpoint's folder.

    Raises:
        UnsafeCheckpointError: it asks for anything but numbers in containers; nothing of it was run.
        ConversionError: it is damaged or does not have the layout of its format.
        MissingExtraError: format "rinna" without the extra `transformers`.
    """
    from cloob_cli.core.model import with_weights

    path = locate(Path(path))
    upstream = _upstream(path, config)
    if upstream is not None and set(upstream) == {"architecture"}:
        architecture, upstream = str(upstream["architecture"]), None
    contents = _read(path, format)
    format = format or _recognize(path, contents)
    model_config, tensors, ignored = _converter(format)(contents, upstream, architecture)
    del contents
    model_config, vocabulary = _with_tokenizer(
        model_config.model_copy(update={"name": name}), Path(tokenizer or path.parent)
    )
    try:
        model = with_weights(model_config, tensors)
    except ModelFolderError as problem:
        raise ConversionError(f"{path}: {problem.message}", problem.hint) from None
    model.eval().requires_grad_(False)
    return Converted(model, model_config, vocabulary, ignored, format)


def locate(path: Path) -> Path:
    """The file with the weights: `path` itself, or the one in that folder.

    Raises:
        ConversionError: the folder holds none.
    """
    if not path.is_dir():
        return path
    for name in _WEIGHTS_FILES:
        if (path / name).is_file():
            return path / name
    raise ConversionError(f"{path} holds no checkpoint", f"expected one of {', '.join(_WEIGHTS_FILES)}")


def _upstream(path: Path, config: Path | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(config, dict):
        return config or None
    file = path.parent / CONFIG_FILE if config is None else Path(config)
    if config is None and not file.is_file():
        return None
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ConversionError(f"{file} cannot be read as JSON ({problem})") from None
    if not isinstance(described, dict):
        raise ConversionError(f"{file} holds no JSON object")
    return described


def _read(path: Path, format: str | None) -> Any:
    from cloob_cli.convert.haiku_pickle import read_haiku_pickle
    from cloob_cli.convert.torch_file import is_torch_file, read_safetensors, read_torch_file

    if path.suffix == ".safetensors":
        return read_safetensors(path)
    is_haiku = format in (None, "crowsonkb") and not is_torch_file(path)
    return read_haiku_pickle(path) if is_haiku else read_torch_file(path)


def _recognize(path: Path, contents: Any) -> str:
    from cloob_cli.convert import mljku, rinna

    if isinstance(contents, dict) and "params" in contents:
        return "crowsonkb"
    if mljku.recognizes(contents):
        return "mljku"
    if rinna.recognizes(contents):
        return "rinna"
    raise ConversionError(f"{path} has none of the layouts that cloob converts", f"they are {', '.join(FORMATS)}")


_Converter = Callable[[Any, "dict[str, Any] | None", "str | None"], "tuple[ModelConfig, dict[str, Tensor], list[str]]"]


def _converter(format: str) -> _Converter:
    from cloob_cli.convert import crowsonkb, mljku, rinna

    known: dict[str, _Converter] = {
        "mljku": mljku.convert,
        "crowsonkb": crowsonkb.convert,
        "rinna": rinna.convert,
    }
    if format not in known:
        raise ConversionError(f"unknown format {format!r}", f"known: {', '.join(FORMATS)}")
    return known[format]


def _with_tokenizer(config: ModelConfig, folder: Path) -> tuple[ModelConfig, Tokenizer]:
    from cloob_cli.convert.sentencepiece_vocabulary import read_sentencepiece
    from cloob_cli.data.text import Tokenizer, clip_tokenizer

    if config.tokenizer.kind != "roberta":
        return config, clip_tokenizer(config.text.context_length)
    data, pad_id = read_sentencepiece(folder)
    # The reference program masks what its tokenizer padded, whatever id the model's configuration names.
    text = config.text.model_copy(update={"pad_id": pad_id})
    tokenizer = config.tokenizer.model_copy(update={"pad_id": pad_id})
    config = config.model_copy(update={"text": text, "tokenizer": tokenizer})
    return config, Tokenizer(data, config.tokenizer, config.text.context_length)
