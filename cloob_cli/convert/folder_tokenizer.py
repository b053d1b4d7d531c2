"""The tokenizer in a folder of open_clip or transformers: CLIP's own, or another vocabulary of the same form."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from cloob_cli import assets
from cloob_cli.convert.folder_formats import read_object
from cloob_cli.core.model_config import CLIP_VOCAB_SIZE, ModelConfig
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.errors import ConversionError, ModelFolderError

_FILE, _SETTINGS = "tokenizer.json", ("tokenizer_config.json", "special_tokens_map.json")
_HINT = "cloob opens CLIP's tokenizer, and tokenizer.json files of byte-level BPE with a start and an end token"


def folder_tokenizer(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Tokenizer]:
    """The tokenizer of a folder, and the configuration with what the folder says of it.

    CLIP's own vocabulary is recognized by its merges, whatever its special tokens are called: texts then become the
    ids of CLIP's original tokenizer, which repairs them first.

    Raises:
        ConversionError: there is none that fits, or it is of another kind.
    """
    if _is_clip(folder, config):
        tokenizer = config.tokenizer.model_copy(update={"kind": "clip"})
        data = assets.clip_tokenizer_file().read_bytes()
        own = Tokenizer(data, tokenizer, config.text.context_length, id_limit=config.text.vocab_size)
        return config.model_copy(update={"tokenizer": tokenizer}), own
    if not (folder / _FILE).is_file():
        raise ConversionError(f"{folder} has no {_FILE}, and its vocabulary is not CLIP's", _HINT)
    if not config.text.causal:
        raise ConversionError(
            f"{folder}: a vocabulary of its own in a text tower that sees padding: not supported", _HINT
        )
    return _own(folder, config)


def _is_clip(folder: Path, config: ModelConfig) -> bool:
    if _of_open_clip(config):
        return config.tokenizer.kind == "clip"  # its own, whatever lies in the folder
    merges = _merges(folder)
    return config.text.vocab_size == CLIP_VOCAB_SIZE if merges is None else merges == _clip_merges()


def _of_open_clip(config: ModelConfig) -> bool:
    return config.source.get("format") == "open_clip"


def _own(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Tokenizer]:
    start, end = (_special_token(folder, name) for name in ("bos_token", "eos_token"))
    described = read_object(folder / _FILE)
    tokenizer = config.tokenizer.model_copy(
        update={
            "kind": "bpe",
            "start_token": start,
            "end_token": end,
            # open_clip cleans texts before, as its configuration says; transformers does what the file says.
            "lower_case": _lower_case(described) or (_of_open_clip(config) and config.tokenizer.lower_case),
        }
    )
    try:
        own = Tokenizer(folder / _FILE, tokenizer, config.text.context_length, id_limit=config.text.vocab_size)
        framed = own.rows(["a"])[0]
    except ModelFolderError as problem:
        raise ConversionError(problem.message, problem.hint or _HINT) from None
    if own.vocab_size > config.text.vocab_size or framed[-1] != own.vocab_size - 1:
        raise ConversionError(
            f"{folder / _FILE}: the end token {end!r} is not the highest of at most {config.text.vocab_size} ids, and "
            "CLIP's text tower is read there",
            _HINT,
        )
    return config.model_copy(update={"tokenizer": tokenizer}), own


def _special_token(folder: Path, name: str) -> str:
    for file in _SETTINGS:
        said = read_object(folder / file).get(name) if (folder / file).is_file() else None
        token = said.get("content") if isinstance(said, dict) else said
        if isinstance(token, str):
            return token
    raise ConversionError(f"{folder}: {_SETTINGS[0]} names no {name}", _HINT)


def _merges(folder: Path) -> list[str] | None:
    """The merges of the vocabulary in a folder, each "left right"; None where there is no vocabulary."""
    if (folder / _FILE).is_file():
        return _merges_of(read_object(folder / _FILE), folder / _FILE)
    path = folder / "merges.txt"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ConversionError(f"{path} cannot be read ({problem})") from None
    return [line for line in lines if line and not line.startswith("#version")]


def _merges_of(described: dict[str, Any], where: Path) -> list[str]:
    model = described.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(merges, list):
        kind = model.get("type") if isinstance(model, dict) else None
        raise ConversionError(f"{where}: a tokenizer of the kind {str(kind)[:40]!r} is not supported", _HINT)
    return [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in merges]


@cache
def _clip_merges() -> list[str]:
    path = assets.clip_tokenizer_file()
    return _merges_of(json.loads(path.read_text(encoding="utf-8")), path)


def _lower_case(described: dict[str, Any]) -> bool:
    normalizer = described.get("normalizer")
    parts = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    return any(isinstance(part, dict) and part.get("type") == "Lowercase" for part in parts)
