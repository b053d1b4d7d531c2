"""Comparisons with a tolerance, each with its reason, and a record of how much of the tolerance was used.

Rounding differs from processor to processor, so a tolerance that was only just kept on one is broken on the next.
`python scripts/margins.py` runs every test with the marker `numeric` and shows what part of each tolerance was used.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch

RECORD = "CLOOB_MARGINS"  # environment: the file that records are added to, one JSON object a line
EPS = torch.finfo(torch.float32).eps

marked_numeric = False  # whether the test that runs has the marker; set by conftest.py


def within(measured: Any, limit: Any, reason: str) -> None:
    """Fail unless `measured`, an error or a distance, is at most `limit`; `reason` says where the limit comes from."""
    measured, limit = float(measured), float(limit)
    assert marked_numeric, "give this test the marker `numeric`, or scripts/margins.py does not see its limits"
    if path := os.environ.get(RECORD):
        test = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "measured": measured, "limit": limit, "reason": reason}) + "\n")
    assert measured <= limit, f"{measured:.3g} is above {limit:.3g} ({reason})"  # fails for NaN too


def close(found: Any, expected: Any, reason: str, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Fail unless each element of `found` is within atol + rtol |expected| of that of `expected` (numbers, arrays or
    tensors, of one shape; tensors also of one dtype).
    """
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
    found, expected = _float64(found), _float64(expected)
    assert found.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(found[~finite], expected[~finite]), "infinite elements differ, or are not numbers"
    if not finite.any():
        return
    error, allowed = (found - expected).abs()[finite], (atol + rtol * expected.abs())[finite]
    used = (error / allowed.clamp(min=torch.finfo(torch.float64).tiny)).nan_to_num(nan=torch.inf)
    worst = int(used.argmax())
    within(error[worst], allowed[worst], reason)


def _float64(values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double()
    return torch.from_numpy(np.array(values, dtype=float))  # torch itself makes float32 of Python's numbers
