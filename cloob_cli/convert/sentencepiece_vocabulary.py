"""A sentence-piece model as a `tokenizer.json`, so that nothing but the tokenizers library is needed afterwards.

Kudo & Richardson, "SentencePiece" (2018), unigram models only. The steps are those of the reference tokenizer of
rinnakk/japanese-clip: lower case, the model's own normalization, pieces, and a [CLS] token in front. The ids are the
same but for one oddity of the tokenizers library, which drops a combining accent that follows a full-width letter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from cloob_cli.errors import ConversionError, MissingExtraError
from cloob_cli.text_format import os_reason

MODEL_FILE = "spiece.model"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_START, _PAD = "[CLS]", "[PAD]"
_UNIGRAM = 1  # TrainerSpec.ModelType


def read_sentencepiece(folder: Path) -> tuple[bytes, int]:
    """The contents of a `tokenizer.json` that gives the ids of the sentence-piece model in `folder`; the padding's id.

    Args:
        folder: holds `spiece.model` and, where there are special tokens, `special_tokens_map.json`.

    Raises:
        ConversionError: a file is missing or damaged, or it is no unigram model with [CLS] and [PAD].
        MissingExtraError: the package sentencepiece or protobuf is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2 as messages
    except ImportError:
        raise MissingExtraError.of("transformers", "sentencepiece") from None

    path = Path(folder) / MODEL_FILE
    model: Any = messages.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as problem:
        raise ConversionError(f"{path}: {os_reason(problem)}") from None
    except DecodeError:
        raise ConversionError(f"{path} is not a sentence-piece model") from None
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    names = [piece for piece, _ in pieces]
    if model.trainer_spec.model_type != _UNIGRAM or not {_START, _PAD} <= set(names):
        raise ConversionError(f"{path} is not a unigram model with the tokens {_START} and {_PAD}")

    vocabulary = Tokenizer(
        models.Unigram(pieces, model.trainer_spec.unk_id, byte_fallback=model.trainer_spec.byte_fallback)
    )
    rules = model.normalizer_spec
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
        if "nfkc" in rules.name:
            # The tokenizers library misses pairs of three-byte signs (half-width kana and its voicing mark).
            steps.append(normalizers.NFC())
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Strip()]
    vocabulary.normalizer = normalizers.Sequence(steps)
    vocabulary.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if rules.add_dummy_prefix else "never")
    special = [AddedToken(token, normalized=False, special=True) for token in _special_tokens(folder, names)]
    vocabulary.add_special_tokens(special)
    vocabulary.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A", special_tokens=[(_START, names.index(_START))]
    )
    return vocabulary.to_str().encode(), names.index(_PAD)


def _special_tokens(folder: Path, names: list[str]) -> list[str]:
    path = Path(folder) / _SPECIAL_TOKENS_FILE
    found = {_START, _PAD}
    if path.is_file():
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            for value in listed.values():
                for token in value if isinstance(value, list) else [value]:
                    found.add(token["content"] if isinstance(token, dict) else str(token))
        except (OSError, ValueError, AttributeError, KeyError) as problem:
            raise ConversionError(f"{path} is not a map of special tokens ({problem})") from None
    return [name for name in names if name in found]
