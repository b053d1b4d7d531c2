"""Measures of embeddings on the sphere against brute force and cases with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from margins import close, within

from cloob_cli.core import geometry
from cloob_cli.core.geometry import (
    ajne,
    alignment,
    covariance_rank,
    covariance_spectrum,
    directions_for,
    effective_rank,
    modality_gap,
    uniformity,
)

FLOAT64 = "sums of some thousand float64 terms"


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


@pytest.mark.numeric
def test_measures_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_ROWS", 7)
    images, texts = unit(40, 6, 0), unit(40, 6, 1)
    x, y = images.double().numpy(), texts.double().numpy()
    close(alignment(images, texts), np.mean(np.sum((x - y) ** 2, axis=1)), FLOAT64, atol=1e-9)
    pairs = [(i, j) for i in range(40) for j in range(40) if i < j]
    expected = math.log(np.mean([math.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs]))
    # float32 rows have a norm of 1 to 1e-7, which the distance by the cosine takes for 1.
    close(uniformity(images), expected, "norms rounded to float32", atol=1e-6)
    angles = sum(math.acos(max(-1.0, min(1.0, x[i] @ x[j]))) for i, j in pairs)
    close(ajne(images), 40 / 4 - angles / (math.pi * 40), FLOAT64, atol=1e-9)
    close(modality_gap(images, texts), np.linalg.norm(x.mean(0) - y.mean(0)), FLOAT64, atol=1e-12)
    spectrum = covariance_spectrum(images)
    close(spectrum, np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1].copy(), FLOAT64, atol=1e-12)


@pytest.mark.numeric
def test_known_values() -> None:
    same = unit(1, 8, 0).expand(50, 8)
    close(ajne(same), 50 / 4, "angles of equal rows: acos(1 - 1e-8) is 1e-4, times N / 2 pi", atol=2e-3)
    close(uniformity(same), 0.0, "norms rounded to float32", atol=1e-6)
    corners = torch.cat([torch.eye(4), -torch.eye(4)])  # 4 opposite pairs at pi, the other 24 at pi / 2: every
    close(ajne(corners), 8 / 4 - (4 + 24 / 2) / 8, FLOAT64, atol=1e-9)  # hemisphere holds half of them
    spread = ajne(unit(3000, 64, 1))
    # Uniform on the sphere: the mean is 1/4; 200 draws of this size lay within 0.02 of it.
    within(abs(spread - 0.25), 0.05, "2.5 times the spread of 200 uniform draws")
    assert directions_for(torch.tensor([98.0, 1.5, 0.5], dtype=torch.float64)) == 2
    close(effective_rank(torch.ones(5, dtype=torch.float64)), 5.0, FLOAT64, atol=1e-9)
    close(effective_rank(torch.tensor([1.0, 0.0], dtype=torch.float64)), 1.0, FLOAT64, atol=1e-9)


def test_covariance_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(500, 3, generator=generator) @ torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:3]
    assert covariance_rank(low + 5.0) == 3  # the mean does not count
    assert covariance_rank(torch.randn(5000, 16, generator=generator)) == 16
    eigenvalues = torch.tensor([90.0, 8.0, 1.5, 0.5]).sqrt()
    assert covariance_rank(torch.cat([torch.diag(eigenvalues), -torch.diag(eigenvalues)])) == 3


def test_covariance_rank_equals_numpy() -> None:
    data = unit(300, 20, 5) * torch.linspace(0.05, 1, 20)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(data.double().numpy().T)))[::-1]
    expected = int(np.searchsorted(np.cumsum(eigenvalues) / eigenvalues.sum(), 0.99)) + 1
    assert covariance_rank(data) == expected
