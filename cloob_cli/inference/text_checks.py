"""Check texts as tokens before the work: those that are cut, and labels that become equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloob_cli.core.model import CloobModel
from cloob_cli.core.zero_shot import fill_template
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.inference.labels import Label


@dataclass(frozen=True)
class LabelTokens:
    """Of `texts` prompts `cut` are longer than the model's context; each group of `alike` has equal tokens."""

    texts: int
    cut: int
    alike: list[list[str]]


def count_cut(model: CloobModel, texts: Sequence[str]) -> int:
    """Count the `texts` that are longer than the model's context, so that their ends are cut off."""
    tokenizer = model.tokenize
    assert isinstance(tokenizer, Tokenizer)
    return sum(length > tokenizer.context_length for length in tokenizer.lengths(list(texts)))


def label_tokens(model: CloobModel, labels: Sequence[Label], templates: Sequence[str]) -> LabelTokens:
    """Count cut prompts and group labels of equal tokens, which always get equal scores."""
    tokenizer = model.tokenize
    assert isinstance(tokenizer, Tokenizer)
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    texts = cut = 0
    for label in labels:
        prompts = [fill_template(template, name) for name in label.names for template in templates]
        texts += len(prompts)
        cut += count_cut(model, prompts)
        tokens = tuple(sorted(map(tuple, tokenizer.rows(prompts))))
        groups.setdefault(tokens, []).append(label.name)
    return LabelTokens(texts, cut, [names for names in groups.values() if len(names) > 1])
