"""Label texts' embeddings, kept on disk by the content of what they depend on: the same labels are encoded once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cloob_cli.atomic_files import replacing
from cloob_cli.checkpoint.safetensors_file import write_tensors
from cloob_cli.core.model import CloobModel
from cloob_cli.data.tokenizer import Tokenizer
from cloob_cli.inference.classify import OnTexts, encode_labels
from cloob_cli.inference.labels import Label
from cloob_cli.version import __version__

LEAST_TEXTS = 64  # fewer are encoded in a moment
MOST_BYTES = 256 << 20  # of all files; those that were used longest ago go first

_NAME, _CHECK = "embeddings", "blake2b"


def recall_labels(
    folder: Path,
    model: CloobModel,
    weights_sha256: str,
    labels: Sequence[Label],
    templates: Sequence[str],
    batch_size: int = 64,
    on_texts: OnTexts | None = None,
) -> Tensor:
    """Embed labels as `encode_labels` does, or read what an earlier run computed for the same model and texts.

    A file that is damaged is computed anew; a disk that has no room, or a folder that cannot be written, is no reason
    to fail.

    Args:
        folder: where embeddings are kept.
        weights_sha256: of the model's file.

    Returns:
        One embedding a label, unit-norm float32 [C, D] on the CPU, the same to the bit as without `folder`.
    """
    if sum(len(label.names) for label in labels) * len(templates) < LEAST_TEXTS:
        return encode_labels(model, labels, templates, batch_size, on_texts)
    path = folder / f"{_digest(model, weights_sha256, labels, templates, batch_size)}.safetensors"
    shape = (len(labels), model.config.embed_dim)
    if (kept := _read(path, shape)) is not None:
        return kept
    embeddings = encode_labels(model, labels, templates, batch_size, on_texts)
    _write(path, embeddings)
    return embeddings


def _digest(
    model: CloobModel, weights_sha256: str, labels: Sequence[Label], templates: Sequence[str], batch_size: int
) -> str:
    assert isinstance(model.tokenize, Tokenizer)
    key = {
        "version": __version__,
        "torch": torch.__version__,
        "weights": weights_sha256,
        "config": model.config.model_dump(mode="json"),
        "tokenizer": hashlib.sha256(model.tokenize.to_json().encode()).hexdigest(),
        "precision": str(model.logit_scale.dtype),
        "device": model.logit_scale.device.type,
        "batch_size": batch_size,  # matrix products add in an order that depends on their shape
        "labels": [list(label.names) for label in labels],
        "templates": list(templates),
    }
    text = json.dumps(key, sort_keys=True).encode("ascii")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            embeddings: Tensor = file.get_tensor(_NAME)
            check = (file.metadata() or {}).get(_CHECK)
        if embeddings.shape != shape or embeddings.dtype != torch.float32 or _check(embeddings) != check:
            return None
        os.utime(path)  # it was used
        return embeddings
    except (SafetensorError, OSError, ValueError):
        return None


def _write(path: Path, embeddings: Tensor) -> None:
    if embeddings.nbytes > MOST_BYTES:
        return
    embeddings = embeddings.contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write_tensors({_NAME: embeddings}, temporary, {_CHECK: _check(embeddings)})
        _make_room(path.parent)
    except OSError:
        pass


def _make_room(folder: Path) -> None:
    """Delete the files that were used longest ago, until the others take `MOST_BYTES` at most."""
    files = [(path.stat(), path) for path in folder.glob("*.safetensors")]
    total = 0
    for stat, path in sorted(files, key=lambda one: (-one[0].st_mtime_ns, one[1].name)):
        total += stat.st_size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)


def _check(embeddings: Tensor) -> str:
    return hashlib.blake2b(embeddings.numpy().tobytes(), digest_size=16).hexdigest()
