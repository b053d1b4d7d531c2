"""Classification from a few examples beside the labels' texts: one step of modern Hopfield retrieval.

Examples and texts are stored patterns. An image x retrieves with weights proportional to exp(beta s_i·x), and a class
gets the weights of its patterns:

    n · mean_{j of class c} exp(beta e_j·x) + exp(beta (t_c·x + gap))

n is the number of examples of a usual class, so that the text fades as examples come. Images lie nearer to each other
than to texts, so both are taken from their own mean beforehand (`Centers`); what is left of that, `gap`, and beta are
chosen by leaving out one example at a time.

Sources: Ramsauer et al. 2021, "Hopfield Networks is All You Need" (the retrieval); Zhang et al. 2022, "Tip-Adapter:
Training-free Adaption of CLIP for Few-shot Classification" (examples as a cache of keys, here for comparison).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BETAS = (3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)
GAPS = (-math.inf, -0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Retrieval:
    """The inverse temperature of retrieval, and what is added to the cosine with a text (-inf: texts do not count)."""

    beta: float = 10.0
    gap: float = 0.0


@dataclass(frozen=True)
class Centers:
    """The means that images and texts are taken from before retrieval, [D] each."""

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, texts: Tensor, examples: Tensor) -> Centers:
        """The means of examples [M, D] and of texts [C, D]; zero where a single one would be taken from itself."""
        return cls(*(rows.float().mean(0) * (len(rows) > 1) for rows in (examples, texts)))

    def images(self, embeddings: Tensor) -> Tensor:
        """Images [B, D] less their mean, of unit norm."""
        return torch.nn.functional.normalize(embeddings.float() - self.image, dim=1)

    def texts(self, embeddings: Tensor) -> Tensor:
        """Texts [C, D] less their mean, of unit norm."""
        return torch.nn.functional.normalize(embeddings.float() - self.text, dim=1)


def retrieval_logits(
    queries: Tensor, texts: Tensor, examples: Tensor, labels: Tensor, choice: Retrieval, own: bool = False
) -> Tensor:
    """Logits of classes by retrieval from examples and texts; their softmax are the classes' shares of the weights.

    Args:
        queries: unit-norm [B, D].
        texts: unit-norm [C, D].
        examples: unit-norm [M, D].
        labels: int64 [M], the class of each example.
        choice: inverse temperature and gap.
        own: the queries are the examples, and none retrieves itself.

    Returns:
        float32 [B, C]. A class without text or example has -inf.
    """
    classes = len(texts)
    similar = choice.beta * queries.float() @ examples.float().T
    counts = torch.bincount(labels, minlength=classes).float()
    usual = counts[counts > 0].mean()
    # Sums of exponentials stay in range when the largest term of each query is taken out.
    textual = choice.beta * (queries.float() @ texts.float().T + choice.gap)
    if own:
        similar = similar.clone()
        similar.fill_diagonal_(-math.inf)
        counts = counts.expand(len(queries), classes) - torch.nn.functional.one_hot(labels, classes)
    largest = torch.maximum(similar.amax(1), textual.amax(1))[:, None]
    sums = torch.zeros(len(queries), classes, device=queries.device)
    sums.index_add_(1, labels, torch.exp(similar - largest))
    return torch.log(usual * sums / counts.clamp(min=1) + torch.exp(textual - largest)) + largest


def choose_retrieval(texts: Tensor, examples: Tensor, labels: Tensor) -> Retrieval:
    """The inverse temperature and gap of the least cross-entropy when each example is left out in turn.

    Only classes with three examples or more can tell: of two, the one that is left stands against pairs. Where there
    are none, the defaults are kept.

    Args:
        texts: unit-norm [C, D].
        examples: unit-norm [M, D].
        labels: int64 [M].
    """
    several = torch.bincount(labels, minlength=len(texts))[labels] > 2
    if not several.any():
        return Retrieval()
    best, least = Retrieval(), math.inf
    for beta in BETAS:
        for gap in GAPS:
            choice = Retrieval(beta, gap)
            logits = retrieval_logits(examples, texts, examples, labels, choice, own=True)[several]
            loss = torch.nn.functional.cross_entropy(logits, labels[several]).item()
            if loss < least:
                best, least = choice, loss
    return best


def tip_adapter_logits(
    queries: Tensor, texts: Tensor, examples: Tensor, labels: Tensor, inv_tau: float, alpha: float, sharpness: float
) -> Tensor:
    """Tip-Adapter's logits without training: alpha · sum_j exp(-sharpness (1 - e_j·x)) onehot_j + inv_tau · t_c·x.

    Args:
        queries: unit-norm [B, D].
        texts: unit-norm [C, D].
        examples: unit-norm [M, D].
        labels: int64 [M].

    Returns:
        float32 [B, C].
    """
    affinity = torch.exp(-sharpness * (1 - queries.float() @ examples.float().T))
    cache = torch.zeros(len(queries), len(texts), device=queries.device).index_add_(1, labels, affinity)
    return alpha * cache + inv_tau * queries.float() @ texts.float().T
