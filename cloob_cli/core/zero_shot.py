"""Zero-shot classification: class names become embeddings, cosines become probabilities.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4
(prompt ensembling in embedding space).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cloob_cli.core.model_config import TextConfig
from cloob_cli.core.token_rows import cut_to_longest

DEFAULT_TEMPLATES = (
    "{c}",
    "a photo of a {c}.",
    "a photo of the {c}.",
    "a picture of {c}.",
    "an image of {c}.",
)  # for models and data sets that bring none of their own


def fill_template(template: str, name: str) -> str:
    """`template` with every `{c}` and `{}` replaced by `name`; other braces stay as they are."""
    # str.format would read braces of the name and of the rest of the template as code.
    return name.join(part for piece in template.split("{c}") for part in piece.split("{}"))


def class_embeddings(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    classes: Sequence[Sequence[str]],
    templates: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str | None = None,
    text: TextConfig | None = None,
) -> Tensor:
    """One embedding a class: the mean of the unit embeddings of all its names in all templates, renormalized.

    Args:
        encode_text: int64 tokens [B, context] -> unit-norm float32 [B, D].
        tokenize: a list of B texts -> int64 [B, context].
        classes: for each of C classes its names; at least one each.
        templates: texts with `{c}` or `{}` where the name goes; at least one.
        batch_size: texts in one pass.
        device: where the tokens go before `encode_text`; None leaves them where `tokenize` made them.
        text: the tower behind `encode_text`; each batch of prompts is cut to what it reads. None: not cut.

    Returns:
        Unit-norm float32 [C, D], on the device of the embeddings, without gradient.

    Raises:
        ValueError: no class, a class without a name, or no template.
    """
    if not classes or not templates or not all(classes):
        raise ValueError("class_embeddings needs at least one class, one name for each and one template")
    prompts = [
        (index, fill_template(template, name))
        for index, names in enumerate(classes)
        for name in names
        for template in templates
    ]
    sums = torch.zeros(0)
    with torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            owners, texts = zip(*prompts[start : start + batch_size], strict=True)
            tokens = tokenize(list(texts))
            if text is not None:
                tokens = cut_to_longest(tokens, text)
            embeddings = encode_text(tokens if device is None else tokens.to(device)).float()
            if not len(sums):
                sums = torch.zeros(len(classes), embeddings.shape[1])
            # Summed on the CPU: the same order, and so the same bits, every time.
            sums.index_add_(0, torch.tensor(owners), embeddings.cpu())
        # The sum has the direction of the mean, also where classes have different numbers of names.
        return torch.nn.functional.normalize(sums, dim=1).to(embeddings.device)


def probabilities(cosine: Tensor, inv_tau: float) -> Tensor:
    """softmax(inv_tau · cosine) over the last dimension: cosines [..., C] -> float32 [..., C] that sum to 1."""
    return torch.softmax(float(inv_tau) * cosine.float(), dim=-1)
