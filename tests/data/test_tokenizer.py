"""Token ids against the reference tokenizer's; vocabularies trained on captions; wild texts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cloob_cli.core.model_config import TokenizerConfig
from cloob_cli.data.tokenizer import Tokenizer, clean, clip_tokenizer, train_bpe
from cloob_cli.errors import InputError, ModelFolderError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text(encoding="utf-8"))
ROWS = GOLDEN["rows"]
CAPTIONS = ["a red bicycle", "two cats on a roof", "the sea at night", "a bicycle under the roof", "don't look"] * 3


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return clip_tokenizer()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe(CAPTIONS, 545, context_length=16)


def test_vocabulary_of_clip(clip: Tokenizer) -> None:
    assert clip.vocab_size == GOLDEN["vocab_size"]
    assert len(ROWS) >= 100
    assert clip("")[0, :3].tolist() == [GOLDEN["start"], GOLDEN["end"], 0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row["text"][:20]))
def test_ids_equal_the_reference(clip: Tokenizer, row: dict) -> None:
    assert clip.encode(row["text"]) == row["encode"]
    assert clip(row["text"])[0].tolist() == row["truncated_with_end"]


def test_a_mark_whose_capital_is_a_letter_is_left_out(clip: Tokenizer) -> None:
    # CLIP's SimpleTokenizer ignores case, and the regex library then finds U+0345 in none of the pattern's classes.
    assert clip.encode("a\u0345b \u0345!") == clip.encode("a b !")


def test_reference_truncation_by_name(clip: Tokenizer) -> None:
    mljku = Tokenizer(clip.to_json().encode(), TokenizerConfig(truncation="mljku"))
    tokens = mljku([row["text"] for row in ROWS])
    np.testing.assert_array_equal(tokens.numpy(), [row["mljku_tokenize"] for row in ROWS])
    assert any(row["mljku_tokenize"] != row["truncated_with_end"] for row in ROWS)


def test_the_file_alone_gives_the_same_ids(clip: Tokenizer, tmp_path: Path) -> None:
    """Other programs read tokenizer.json; only texts that need repair or unescaping come out differently there."""
    clip.save(tmp_path / "tokenizer.json")
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain = [row for row in ROWS if row["text"].isascii() and "&" not in row["text"]]
    assert len(plain) > 80
    for row in plain:
        assert alone.encode(row["text"]).ids == row["truncated_with_end"]


def test_save_and_open_again(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer.json")
    again = Tokenizer(tmp_path / "tokenizer.json", trained.config, 16)
    assert again.to_json() == trained.to_json()
    sent = pickle.loads(pickle.dumps(trained))
    assert sent("a red roof").tolist() == again("a red roof").tolist() == trained("a red roof").tolist()


def test_trained_vocabulary(trained: Tokenizer) -> None:
    assert trained.vocab_size == 545
    rows = trained(["a red bicycle", "two cats " * 40])
    assert rows.shape == (2, 16)
    assert rows.max() == 544  # the end token has the highest id
    assert rows.argmax(dim=1).tolist()[1] == 15
    assert len(trained.encode("bicycle")) == 1
    assert len(trained.encode("zyx")) == 3  # never seen together: bytes


def test_training_a_vocabulary_does_not_depend_on_chance() -> None:
    captions = [f"{a} {b}" for a in ("red", "blue", "old") for b in ("cat", "dog", "ship")]
    files = {train_bpe(iter(captions), 600).to_json() for _ in range(5)}
    assert len(files) == 1


def test_a_trained_vocabulary_loses_nothing(trained: Tokenizer) -> None:
    alone = tokenizers.Tokenizer.from_str(trained.to_json())
    pieces = {number: piece for piece, number in alone.get_vocab().items()}
    for text in ("日本", "crème", "\x07 bell", "🙂"):
        shown = "".join(pieces[number] for number in trained.encode(text))
        bytes_shown = shown.replace("</w>", "")
        assert len(bytes_shown) == len(clean(text).replace(" ", "").encode())


def test_few_captions_give_a_smaller_vocabulary() -> None:
    assert train_bpe(["ab"], 1000).vocab_size == 515


@pytest.mark.parametrize(("captions", "size"), [(["", "  "], 600), ([], 600), (["a"], 513)])
def test_what_no_vocabulary_can_be_trained_on(captions: list[str], size: int) -> None:
    with pytest.raises(InputError):
        train_bpe(captions, size)


WILD = st.text(st.characters(), max_size=80) | st.sampled_from(
    [
        "\0",
        "\ud800",
        "a\udfffb",
        "👩‍👩‍👧‍👦 🏳️‍🌈",
        "&#xD800;&lt;",
        "x" * 30_000,
        "<end_of_text>" * 90,
        "\u202e\u200b",
        "&amp;amp;amp;",
    ]
)


@settings(max_examples=300)
@given(WILD)
def test_no_text_is_refused(text: str) -> None:
    for tokenizer in (_CLIP, _CLIP_WITHOUT_END):
        row = tokenizer(text)
        assert row.shape == (1, 77)
        assert row[0, 0] == GOLDEN["start"]
        assert 0 <= int(row.min()) <= int(row.max()) < GOLDEN["vocab_size"]
    ids = _CLIP(text)[0].tolist()
    assert GOLDEN["end"] in ids


_CLIP = clip_tokenizer()
_CLIP_WITHOUT_END = Tokenizer(_CLIP.to_json().encode(), TokenizerConfig(truncation="mljku"))


@settings(max_examples=200)
@given(st.text(st.characters(), max_size=60))
def test_cleaning_is_what_the_reference_does(text: str) -> None:
    """The short way for plain text must not differ from the whole pipeline."""
    import html

    import ftfy

    whole = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
    assert clean(text) == whole.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    "text",
    [
        "I'M &quot;here&quot;",
        "a\tb\x0bc",
        "<b>x</b>",
        "<b>&amp;lt;b&amp;gt;",
        "\x1b[31mred",
        "tab\x00nul",
        "~ plain #1",
    ],
)
def test_cleaning_of_ascii(text: str) -> None:
    test_cleaning_is_what_the_reference_does.hypothesis.inner_test(text)  # type: ignore[attr-defined]


def test_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no such file"):
        Tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelFolderError, match="not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ModelFolderError, match="<s>"):
        Tokenizer(_CLIP.to_json().encode(), TokenizerConfig(start_token="<s>"))


def test_roberta_kind_uses_the_file_s_own_pipeline() -> None:
    vocabulary = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<pad>": 3, "<s>": 1, "</s>": 2, "neko": 4, "Neko": 5, "<unk>": 0}, "<unk>")
    )
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vocabulary.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    config = TokenizerConfig(kind="roberta", pad_id=3, lower_case=False)
    tokenizer = Tokenizer(vocabulary.to_str().encode(), config, 6)
    assert tokenizer(["neko Neko \ud800", "neko " * 9]).tolist() == [[1, 4, 5, 0, 2, 3], [1, 4, 4, 4, 4, 2]]
    assert tokenizer.encode("Neko") == [5]
