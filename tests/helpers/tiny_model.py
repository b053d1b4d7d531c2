"""Model folders so small that they are made in a second, and folders of images, good and hostile."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cloob_cli.checkpoint.folder import save_model
from cloob_cli.core.model import build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.data.tokenizer import train_bpe

CAPTIONS = ["a red bicycle", "two cats on a roof", "the sea at night", "a bicycle under the roof"]
VIT = {"kind": "vit", "image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "heads": 2}
RESNET = {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 2, 1, 1], "heads": 4}


def save_tiny_model(folder: Path, vision: dict[str, object] = VIT, context_length: int = 12, **changes: object) -> Path:
    """Write a model folder with random weights; returns it."""
    tokenizer = train_bpe(CAPTIONS, 540, context_length)
    text = {"vocab_size": tokenizer.vocab_size, "context_length": context_length, "width": 32, "layers": 1, "heads": 2}
    data = {"name": "tiny", "embed_dim": 16, "vision": vision, "text": text, "tokenizer": {"kind": "bpe"}}
    model = build(ModelConfig.model_validate(data | {"inv_tau": 30.0} | changes), seed=0).eval()
    save_model(folder, model, tokenizer, card_text="# tiny\n")
    return folder


def save_images(folder: Path, count: int, size: tuple[int, int] = (48, 40), suffix: str = ".png") -> list[Path]:
    """Random images 0000.png, 0001.png, ...: each is told from the others by its contents."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = folder / f"{number:04}{suffix}"
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def save_hostile_images(folder: Path) -> list[str]:
    """Files that are named like images and cannot be read; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    good = save_images(folder / "good", 1, suffix=".jpg")[0].read_bytes()
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").touch()
    (folder / "misnamed.png").write_text("this is no image\n")
    (folder / "bomb.png").write_bytes(_png_of_zeros(60_000, 60_000))
    (folder / "comma, and\nline break.jpg").write_bytes(b"\xff\xd8\xff")
    names = ["truncated.jpg", "empty.png", "misnamed.png", "bomb.png", "comma, and\nline break.jpg"]
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # to root every file is readable
        (folder / "secret.jpg").write_bytes(good)
        (folder / "secret.jpg").chmod(0)
        names.append("secret.jpg")
    return names


def _png_of_zeros(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
