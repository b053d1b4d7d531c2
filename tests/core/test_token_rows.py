"""Cut token rows against the full context: the same embeddings, the same gradients."""

from __future__ import annotations

import pytest
import torch
from margins import EPS, close
from pair_files import captions_of, write_parquet

from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.core.token_rows import cut_to_longest, end_of_longest
from cloob_cli.core.zero_shot import class_embeddings
from cloob_cli.data.loader import PairLoader
from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.tokenizer import train_bpe
from cloob_cli.recipe import AugmentSection, DataSection

END = 599


def model_with(**text: object) -> CloobModel:
    vision = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
    tower = {"context_length": 20, "vocab_size": END + 1, "width": 48, "layers": 3, "heads": 3} | text
    model = build(ModelConfig.model_validate({"embed_dim": 32, "vision": vision, "text": tower}), seed=0)
    model.cuts_tokens = False  # all of the context, as on a GPU
    return model


def rows(*lengths: int, context: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, END, (length - 1,), generator=generator)
        row[length - 1] = END
    return tokens


@pytest.mark.numeric
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("lengths", [(2, 3), (4, 9, 7, 2), (12, 5)])
def test_cut_rows_give_the_embeddings_and_gradients_of_the_full_context(
    lengths: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    model, tokens = model_with().to(dtype), rows(*lengths)
    cut = cut_to_longest(tokens, model.config.text)
    assert cut.shape[1] < 20
    target = torch.randn(len(lengths), 32, generator=torch.Generator().manual_seed(3), dtype=dtype)
    found = []
    for given in (tokens, cut):
        model.zero_grad()
        embeddings = model.encode_text(given)
        (embeddings * target).mean().backward()
        found.append((embeddings.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (full, full_gradients), (short, short_gradients) = found
    close(short, full, "a unit row through a few layers", atol=bound)
    for one, other in zip(full_gradients, short_gradients, strict=True):
        close(other, one, "gradients of the size of a unit row", atol=bound)


def test_lengths_are_few_and_never_too_short() -> None:
    text = model_with(context_length=77).config.text
    lengths = set()
    for length in range(2, 78):
        cut = cut_to_longest(rows(length, 2, context=77), text)
        assert end_of_longest(cut) == length
        assert cut.shape[1] >= length
        lengths.add(cut.shape[1])
    assert len(lengths) <= 8
    assert max(lengths) == 77


@pytest.mark.parametrize("text", [{"causal": False}, {"causal": False, "padding": "keys"}, {"pooling": "first"}])
def test_other_towers_keep_all_columns(text: dict) -> None:
    tokens = rows(3, 4)
    assert cut_to_longest(tokens, model_with(**text).config.text) is tokens


def test_several_captions_and_no_rows_at_all() -> None:
    text = model_with().config.text
    assert cut_to_longest(rows(3, 8, 2, 5).view(2, 2, 20), text).shape == (2, 2, 9)
    assert cut_to_longest(torch.zeros(0, 2, 20, dtype=torch.int64), text).shape == (0, 2, 20)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_loader_cuts_padding_and_nothing_else(tmp_path, in_memory: bool) -> None:
    tokenizer = train_bpe([text for number in range(30) for text in captions_of(number)], 560, context_length=40)
    source = open_pairs(DataSection(train=str(write_parquet(tmp_path / "t.parquet", range(30)))))
    options: dict = {"batch_size": 10, "seed": 0, "workers": 0, "in_memory": in_memory}
    whole, cut = (
        PairLoader(source, None, tokenizer, Preprocess(16), AugmentSection(), text=text, **options)
        for text in (None, model_with(context_length=40).config.text)
    )
    for one, other in zip(whole.batches(0), cut.batches(0), strict=True):
        length = other.tokens.shape[-1]
        assert length < 40
        assert torch.equal(one.tokens[..., :length], other.tokens)
        assert not one.tokens[..., length:].any()
        assert torch.equal(one.caption_ids, other.caption_ids)


@pytest.mark.numeric
def test_prompts_of_labels_are_cut_and_give_the_same_classes() -> None:
    model = model_with()
    lengths = {"a": 3, "b": 6, "c": 4}
    seen = []

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return model.encode_text(tokens)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return rows(*[lengths[text] for text in texts])

    full = class_embeddings(encode, tokenize, [["a"], ["b", "c"]], ["{c}"])
    short = class_embeddings(encode, tokenize, [["a"], ["b", "c"]], ["{c}"], text=model.config.text)
    assert seen == [20, 6]
    close(short, full, "unit rows through a few layers in float32", atol=16 * EPS)
