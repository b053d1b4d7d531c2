"""Check that a `tokenizer.json` holds only parts that are allowed.

The tokenizers library runs whatever a file asks for: patterns that never end, replacements that fill the memory, and
numbers that no vocabulary has. Files of foreign origin therefore hold the parts that models of this kind are made of,
and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer as Vocabulary

from cloob_cli.errors import ModelFolderError
from cloob_cli.text_format import first_line

# Words, digits one by one, runs of other signs, and English clitics: the pattern of CLIP's SimpleTokenizer. That one
# ignores case, so U+0345, a mark whose capital is a letter, belongs to no class there and is left out.
_SPECIAL = "<start_of_text>|<end_of_text>|"
_CLITICS = "'s|'t|'re|'ve|'m|'ll|'d"
_CLASSES = r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}"
WORDS = f"{_SPECIAL}(?i:{_CLITICS})|{_CLASSES}\u0345]+"

# The one above and others that CLIP's tokenizers are written with: special tokens of other names or none, which are
# matched before; clitics in lower case; U+0345 as a sign. All are linear in the text.
_WORD_PATTERNS = {
    f"{special}{clitics}|{_CLASSES}{end}"
    for special in ("", _SPECIAL, r"<\|startoftext\|>|<\|endoftext\|>|")
    for clitics in (_CLITICS, f"(?i:{_CLITICS})")
    for end in ("]+", "\u0345]+")
}

_PRE_TOKENIZERS = {"Sequence", "Split", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}
_NORMALIZERS = {"Sequence", "Lowercase", "Precompiled", "NFC", "NFKC", "Replace", "Strip"}
_SPACES = {"pattern": {"Regex": " +"}, "content": " "}


def check_parts(vocabulary: Vocabulary, kind: str, name: str) -> None:
    """Raise ModelFolderError where a tokenizer has other parts than the models of its kind.

    Args:
        kind: as `TokenizerConfig.kind`.
        name: what the tokenizer is called in messages.
    """
    for step in _parts(vocabulary.pre_tokenizer, "pretokenizers"):
        known_pattern = step.get("type") != "Split" or step.get("pattern", {}).get("Regex") in _WORD_PATTERNS
        _allow(step.get("type") in _PRE_TOKENIZERS and known_pattern, step, name)
    if kind == "roberta":  # all others normalize by themselves, and have their special tokens from the configuration
        _check_normalizer(vocabulary, name)
        _check_template(vocabulary, name)


@contextmanager
def tokenizer_errors(name: str, what: str) -> Iterator[None]:
    """Turn what the tokenizers library raises in the body into a ModelFolderError: "NAME WHAT: the reason"."""
    try:
        yield
    except BaseException as problem:
        # The library raises bare Exceptions; its internal failures are no Exceptions at all.
        if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":
            raise ModelFolderError(f"{name} {what}: {first_line(problem)}") from None
        raise


def highest_id(vocabulary: Vocabulary) -> int:
    """The highest id of a vocabulary; -1 where it is empty."""
    return max(vocabulary.get_vocab(with_added_tokens=True).values(), default=-1)


def _check_normalizer(vocabulary: Vocabulary, name: str) -> None:
    seen = []
    for step in _parts(vocabulary.normalizer, "normalizers"):
        spaces = step.get("type") != "Replace" or _SPACES.items() <= step.items()
        # Once each: a step that lengthens the text, over and over, would fill the memory.
        _allow(step.get("type") in _NORMALIZERS and spaces and step.get("type") not in seen, step, name)
        seen += [step["type"]] if step["type"] != "Sequence" else []


def _check_template(vocabulary: Vocabulary, name: str) -> None:
    highest = highest_id(vocabulary)
    for step in _parts(vocabulary.post_processor, "processors"):
        _allow(step.get("type") == "TemplateProcessing", step, name)
        ids = [number for token in step["special_tokens"].values() for number in token["ids"]]
        if ids and max(ids) > highest:
            raise ModelFolderError(f"{name} adds the id {max(ids)} to a text, and its own highest one is {highest}")


def _allow(allowed: bool, step: dict[str, Any], name: str) -> None:
    if not allowed:
        said = json.dumps(step)
        shown = said if len(said) <= 80 else f"{said[:77]}..."
        raise ModelFolderError(f"{name} holds a step that no tokenizer of these models has: {shown}")


def _parts(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer and everything in it, as in its file; nothing where there is no such part."""
    if part is None:
        return
    left = [json.loads(part.__getstate__())]
    while left:
        step = left.pop(0)
        yield step
        left[:0] = step.get(inner, []) if step.get("type") == "Sequence" else []
