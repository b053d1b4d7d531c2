"""Token ids of captions and labels, as CLIP makes them; vocabularies that are trained.

CLIP's pipeline: repair (ftfy), HTML unescape twice, collapse white space, lower case; then byte-level BPE with an
end-of-word mark. The first steps are not expressible in a `tokenizer.json` and run here; all the rest is in the file,
context length included, so that other programs get the same ids for ordinary text from the file alone.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Vocabulary

from cloob_cli import assets
from cloob_cli.core.model_config import TokenizerConfig
from cloob_cli.data.tokenizer_check import WORDS, check_parts, highest_id, tokenizer_errors
from cloob_cli.errors import InputError, ModelFolderError
from cloob_cli.text_format import os_reason

_DEFAULT = TokenizerConfig()
_END_OF_WORD = "</w>"

# What the trained and CLIP's own vocabularies have before their merges: 256 bytes, 256 bytes that end a word; after
# them the start and the end token, the end token last, because models pool the text at the highest id.
_BYTES, _SPECIAL = 512, 2


class Tokenizer:
    """Texts to ids, as one model was trained with.

    Args:
        source: a `tokenizer.json` (Hugging Face tokenizers), as a path or as the file's bytes.
        config: cleaning, special tokens, padding and truncation.
        context_length: ids in a row, start and end included.
        id_limit: one more than the highest id that the text tower knows, where it is another number than here.

    Raises:
        ModelFolderError: the file is missing, is no tokenizer of these models, or lacks the special tokens that
            `config` names.
    """

    def __init__(
        self,
        source: Path | str | bytes,
        config: TokenizerConfig | None = None,
        context_length: int = 77,
        id_limit: int | None = None,
    ) -> None:
        self.config = config or _DEFAULT
        self.context_length = context_length
        self.id_limit = id_limit
        self._name = "the tokenizer" if isinstance(source, bytes) else str(source)
        own_normalizer = self.config.kind == "roberta"
        with tokenizer_errors(self._name, "is not a tokenizer.json"):
            self._vocabulary, self._normalizer = _shared(_read(source, self._name), own_normalizer)
        check_parts(self._vocabulary, self.config.kind, self._name)
        self._start = self._end = -1
        if not own_normalizer:
            self._start, self._end = (self._special(name) for name in (self.config.start_token, self.config.end_token))

    def __call__(self, texts: str | list[str]) -> torch.Tensor:
        """Token ids of one text or of several -> int64 [B, context_length], padded with `config.pad_id`.

        Raises:
            ModelFolderError: a text has a token that the text tower does not know.
        """
        tokens = self.padded(self.rows([texts] if isinstance(texts, str) else list(texts)))
        if self.id_limit is not None and tokens.numel() and int(tokens.max()) >= self.id_limit:
            raise ModelFolderError(f"{self._name} gives the id {int(tokens.max())}, the text tower has {self.id_limit}")
        return tokens

    def padded(self, rows: list[list[int]]) -> torch.Tensor:
        """Pad the result of `rows` -> int64 [B, context_length]."""
        tokens = torch.full((len(rows), self.context_length), self.config.pad_id, dtype=torch.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.as_tensor(ids)
        return tokens

    def rows(self, texts: list[str]) -> list[list[int]]:
        """The same without padding: start, text and end, cut to at most `context_length` ids."""
        return [self._frame(ids) for ids in self._encode(texts)]

    def lengths(self, texts: list[str]) -> list[int]:
        """The number of ids of each text, start and end included, before any is cut."""
        frame = 0 if self.config.kind == "roberta" else 2
        return [len(ids) + frame for ids in self._encode(texts)]

    def has_unknown(self, text: str) -> bool:
        """True where the vocabulary has no entry for a part of `text` but the one that stands for everything unknown.

        Never with bytes as entries, CLIP's form and trained ones.
        """
        return self._unknown is not None and self._unknown in self.encode(text)

    @cached_property
    def _unknown(self) -> int | None:
        model = json.loads(self._vocabulary.to_str())["model"]
        number = model.get("unk_id")
        return number if number is not None else self._vocabulary.token_to_id(model.get("unk_token") or "")

    def _encode(self, texts: list[str]) -> list[list[int]]:
        cleaned = [self._clean(text) for text in texts]
        with tokenizer_errors(self._name, "fails at a text"):
            bare = self._vocabulary.encode_batch_fast(cleaned, add_special_tokens=self.config.kind == "roberta")
        return [encoding.ids for encoding in bare]

    def encode(self, text: str) -> list[int]:
        """The bare ids of `text`: nothing added, nothing cut."""
        return self._vocabulary.encode(self._clean(text), add_special_tokens=False).ids

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return _shared_highest_id(self._vocabulary) + 1

    def to_json(self) -> str:
        """The contents of a `tokenizer.json` that also pads and cuts to `context_length`."""
        whole = Vocabulary.from_str(self._vocabulary.to_str())
        whole.normalizer = self._normalizer
        pad = self.config.pad_id
        whole.enable_truncation(self.context_length)
        whole.enable_padding(length=self.context_length, pad_id=pad, pad_token=whole.id_to_token(pad) or "<pad>")
        return whole.to_str()

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def _clean(self, text: str) -> str:
        if self.config.kind == "roberta":
            # Its own file holds its whole pipeline; only what cannot be encoded at all is replaced.
            return text.encode("utf-8", "replace").decode("utf-8")
        return clean(text, lower_case=self.config.lower_case)

    def _frame(self, ids: list[int]) -> list[int]:
        framed = ids if self.config.kind == "roberta" else [self._start, *ids, self._end]
        if len(framed) <= self.context_length:
            return framed
        if self.config.truncation == "mljku":
            return framed[: self.context_length]
        return [*framed[: self.context_length - 1], framed[-1]]

    def _special(self, name: str) -> int:
        number = self._vocabulary.token_to_id(name)
        if number is None:
            raise ModelFolderError(f"the tokenizer has no token {name!r}, which the configuration names")
        return number


def clip_tokenizer(context_length: int = 77) -> Tokenizer:
    """CLIP's own vocabulary of 49,408 entries."""
    data = assets.clip_tokenizer_file().read_bytes()
    return Tokenizer(data, TokenizerConfig(kind="clip"), context_length)


def train_bpe(captions: Iterable[str], vocab_size: int, context_length: int = 77) -> Tokenizer:
    """Train a vocabulary like CLIP's on `captions`, at most `vocab_size` entries (few captions give fewer).

    Raises:
        InputError: `vocab_size` is below 514, or there is no text in `captions`.
    """
    if vocab_size < _BYTES + _SPECIAL:
        raise InputError(f"a vocabulary of {vocab_size} is too small: bytes and special tokens alone are 514")
    vocabulary = _empty(models.BPE(end_of_word_suffix=_END_OF_WORD))
    alphabet = _byte_order()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,  # two merges more than fit beside the special tokens
        initial_alphabet=alphabet,
        # Named here, the ends of words get fixed numbers. Otherwise they are numbered as words happen to come out of a
        # hash table, and merges of equal count come in another order in every run.
        special_tokens=[sign + _END_OF_WORD for sign in alphabet],
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    seen = 0

    def cleaned() -> Iterator[str]:
        nonlocal seen
        for caption in captions:
            text = clean(caption)
            seen += bool(text)
            yield text

    vocabulary.train_from_iterator(cleaned(), trainer)
    if not seen:
        raise InputError("no caption has any text: a tokenizer cannot be trained")
    merges = json.loads(vocabulary.to_str())["model"]["merges"]
    pairs = [(left, right) for left, right in merges][: vocab_size - _BYTES - _SPECIAL]
    return Tokenizer(byte_level_bpe(pairs).to_str().encode(), TokenizerConfig(kind="bpe"), context_length)


def byte_level_bpe(merges: list[tuple[str, str]]) -> Vocabulary:
    """A vocabulary like CLIP's: bytes, bytes that end a word, one entry a merge, start token, end token."""
    alphabet = _byte_order()
    entries = alphabet + [sign + _END_OF_WORD for sign in alphabet] + [left + right for left, right in merges]
    start, end = _DEFAULT.start_token, _DEFAULT.end_token
    numbers = {entry: number for number, entry in enumerate([*entries, start, end])}
    vocabulary = _empty(models.BPE(vocab=numbers, merges=merges, end_of_word_suffix=_END_OF_WORD))
    vocabulary.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (start, end)])
    vocabulary.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, numbers[start]), (end, numbers[end])]
    )
    return vocabulary


def clean(text: str, lower_case: bool = True) -> str:
    """Text as CLIP's SimpleTokenizer sees it: repaired, unescaped, single spaces, lower case. Never raises."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else nothing there to repair or unescape
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        text = text.encode("utf-8", "replace").decode("utf-8")
    text = " ".join(text.split())
    return text.lower() if lower_case else text


def _empty(model: models.BPE) -> Vocabulary:
    vocabulary = Vocabulary(model)
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return vocabulary


def _byte_order() -> list[str]:
    """The 256 signs that stand for bytes, in the order of GPT-2's table: printable bytes first, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + position) for position in range(others)]


def _read(source: Path | str | bytes, name: str) -> bytes:
    try:
        return source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as problem:
        raise ModelFolderError(f"{name}: {os_reason(problem)}") from None


@lru_cache(maxsize=2)
def _shared(data: bytes, own_normalizer: bool) -> tuple[Vocabulary, normalizers.Normalizer | None]:
    """The vocabulary in a `tokenizer.json` and the normalizer that it came with, which stays in it if wanted.

    Reading CLIP's 49,408 entries takes 50 ms, and a model's file is read several times while the model is converted,
    saved and opened: all that read the same contents share one vocabulary, which nobody may change.
    """
    vocabulary = Vocabulary.from_buffer(data)
    vocabulary.no_padding()
    vocabulary.no_truncation()
    normalizer = vocabulary.normalizer
    if not own_normalizer:
        # `clean` has done that already, and once more is not always the same: lower case can undo NFC.
        vocabulary.normalizer = None
    return vocabulary, normalizer


_shared_highest_id = lru_cache(maxsize=2)(highest_id)
