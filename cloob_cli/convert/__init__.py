"""Other programs' checkpoints in our form: one module a layout, and readers that never run what they read.

Start reading at `convert_checkpoint`. `mljku`, `crowsonkb`, `rinna`, `open_clip`, `transformers_clip` and `openai` are
the layouts; `torch_file`, `haiku_pickle` and `torchscript_archive` read files that may be hostile; `folder_formats`
tells whose a folder is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.convert.folder_formats import (
    CONFIG_FILE,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    foreign_form,
    is_rinna,
    read_object,
)
from cloob_cli.errors import ConversionError, ModelFolderError

if TYPE_CHECKING:
    from torch import Tensor

    from cloob_cli.core.model import CloobModel
    from cloob_cli.core.model_config import ModelConfig
    from cloob_cli.data.tokenizer import Tokenizer

TORCH = "torch"  # a file of torch.save, in whichever of these layouts
FORMATS = ("mljku", "crowsonkb", "rinna", "open_clip", "transformers", "openai")
_WEIGHTS_FILES = (*TRANSFORMERS_WEIGHTS, "checkpoint.pt", "checkpoint.pkl")


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint, from which a model folder is written.

    Attributes:
        format: the layout that the source had.
        as_it_is: the safetensors file that holds the model's tensors already, each under its name; None: there is none.
        ignored: the source's tensors that have no place in the model; every other was used exactly once.
    """

    model: CloobModel
    config: ModelConfig
    tokenizer: Tokenizer
    ignored: list[str]
    format: str
    as_it_is: Path | None = None


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
        format: one of `FORMATS`; None, or `TORCH` for a file of torch.save: the file shows it.
        config: the checkpoint's own configuration; None: the one beside it (`config.json`, `open_clip_config.json`)
            where there is one.
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

    path, contents, upstream, format = _opened(Path(path), format, config)
    if upstream is not None and set(upstream) == {"architecture"}:
        architecture, upstream = str(upstream["architecture"]), None
    model_config, tensors, ignored = _converter(format)(contents, upstream, architecture)
    model_config = _with_preprocessing(model_config.model_copy(update={"name": name}), path.parent)
    model_config, vocabulary = _with_tokenizer(model_config, tokenizer or path.parent, upstream)
    try:
        model = with_weights(model_config, tensors)
    except ModelFolderError as problem:
        raise ConversionError(f"{path}: {problem.message}", problem.hint) from None
    model.eval().requires_grad_(False)
    is_ours = format == "open_clip" and path.suffix == ".safetensors" and _same_tensors(contents, model)
    return Converted(model, model_config, vocabulary, ignored, format, path if is_ours else None)


def describe_folder(folder: Path) -> ModelConfig:
    """The configuration of a model in another program's folder; its weights are not converted.

    Raises:
        ConversionError, UnsafeCheckpointError: as `convert_checkpoint`.
    """
    from cloob_cli.convert import open_clip, transformers_clip

    path, contents, upstream, format = _opened(folder, foreign_form(folder), None)
    describe = open_clip.describe if format == "open_clip" else transformers_clip.describe
    return _with_tokenizer(_with_preprocessing(describe(contents, upstream), path.parent), path.parent, upstream)[0]


def locate(path: Path, format: str | None = None) -> Path:
    """The file with the weights: `path` itself, or the one in that folder; `format` decides where it has several.

    Raises:
        ConversionError: the folder holds none.
    """
    if not path.is_dir():
        return path
    form = format if format in ("open_clip", "transformers") else foreign_form(path)
    names = OPEN_CLIP_WEIGHTS if form == "open_clip" else _WEIGHTS_FILES
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ConversionError(f"{path} holds no checkpoint", f"expected one of {', '.join(names)}")


def _opened(
    path: Path, format: str | None, config: Path | dict[str, Any] | None
) -> tuple[Path, Any, dict[str, Any] | None, str]:
    """The file with the weights, its contents, its own configuration, and its format."""
    if config is None and format in (None, "transformers") and path.is_dir() and foreign_form(path) == "transformers":
        _refuse_other_models(path)  # before a large file is read
    path = locate(path, format)
    upstream = _upstream(path, config)
    contents = _read(path, format)
    known = format if format not in (None, TORCH) else _recognize(path, contents, upstream)
    return path, contents, upstream, known


def _refuse_other_models(folder: Path) -> None:
    from cloob_cli.convert.transformers_clip import refuse_others

    refuse_others(read_object(folder / CONFIG_FILE), str(folder))


def _upstream(path: Path, config: Path | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(config, dict):
        return config or None
    if config is not None:
        return read_object(Path(config))
    beside = path.parent / (OPEN_CLIP_CONFIG if path.name in OPEN_CLIP_WEIGHTS else CONFIG_FILE)
    return read_object(beside) if beside.is_file() else None


def _read(path: Path, format: str | None) -> Any:
    from cloob_cli.convert.haiku_pickle import read_haiku_pickle
    from cloob_cli.convert.torch_file import is_torch_file, read_safetensors, read_torch_file
    from cloob_cli.convert.torchscript_archive import is_torchscript, read_torchscript

    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if format in (None, TORCH, "openai", "open_clip") and is_torchscript(path):
        return read_torchscript(path)
    is_haiku = format in (None, "crowsonkb") and not is_torch_file(path)
    return read_haiku_pickle(path) if is_haiku else read_torch_file(path)


def _recognize(path: Path, contents: Any, upstream: dict[str, Any] | None) -> str:
    from cloob_cli.convert import mljku, open_clip, rinna, transformers_clip
    from cloob_cli.convert.torchscript_archive import is_torchscript

    if is_torchscript(path) and not (upstream and "vision_cfg" in upstream.get("model_cfg", upstream)):
        return "openai"
    if isinstance(contents, dict) and "params" in contents:
        return "crowsonkb"
    if mljku.recognizes(contents):
        return "mljku"
    if transformers_clip.recognizes(contents):
        return "transformers"
    if rinna.recognizes(contents) and (upstream is None or is_rinna(upstream)):
        return "rinna"
    if open_clip.recognizes(contents):
        return "open_clip"
    raise ConversionError(f"{path} has none of the layouts that cloob converts", f"they are {', '.join(FORMATS)}")


def _same_tensors(contents: Any, model: CloobModel) -> bool:
    found = {name: tuple(tensor.shape) for name, tensor in contents.items()}
    return found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


_Converter = Callable[[Any, "dict[str, Any] | None", "str | None"], "tuple[ModelConfig, dict[str, Tensor], list[str]]"]


def _converter(format: str) -> _Converter:
    from cloob_cli.convert import crowsonkb, mljku, open_clip, openai, rinna, transformers_clip

    known: dict[str, _Converter] = {
        "mljku": mljku.convert,
        "crowsonkb": crowsonkb.convert,
        "rinna": rinna.convert,
        "open_clip": open_clip.convert,
        "transformers": transformers_clip.convert,
        "openai": openai.convert,
    }
    if format not in known:
        raise ConversionError(f"unknown format {format!r}", f"known: {', '.join(FORMATS)}")
    return known[format]


def _with_preprocessing(config: ModelConfig, folder: Path) -> ModelConfig:
    if config.source.get("format") != "transformers":
        return config  # its configuration has said it
    from cloob_cli.convert.transformers_clip import preprocessing

    return config.model_copy(update={"preprocess": preprocessing(folder, config.vision.image_size)})


def _with_tokenizer(
    config: ModelConfig, folder: Path, upstream: dict[str, Any] | None
) -> tuple[ModelConfig, Tokenizer]:
    from cloob_cli.convert.sentencepiece_vocabulary import read_sentencepiece
    from cloob_cli.data.tokenizer import Tokenizer, clip_tokenizer

    if config.source.get("format") in ("open_clip", "transformers"):
        from cloob_cli.convert.folder_tokenizer import folder_tokenizer
        from cloob_cli.convert.transformers_clip import check_end

        config, own = folder_tokenizer(folder, config)
        if config.source["format"] == "transformers":
            check_end(upstream or {}, own.rows([""])[0][-1])
        return config, own
    if config.tokenizer.kind != "roberta":
        return config, clip_tokenizer(config.text.context_length)
    data, pad_id = read_sentencepiece(folder)
    # The reference program masks what its tokenizer padded, whatever id the model's configuration names.
    text = config.text.model_copy(update={"pad_id": pad_id})
    tokenizer = config.tokenizer.model_copy(update={"pad_id": pad_id})
    config = config.model_copy(update={"text": text, "tokenizer": tokenizer})
    return config, Tokenizer(data, config.tokenizer, config.text.context_length)
