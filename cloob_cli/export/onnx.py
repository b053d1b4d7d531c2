"""ONNX files of both towers: `image.onnx` and `text.onnx`, with any batch size."""

from __future__ import annotations

import logging
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from cloob_cli.atomic_files import replacing_folder
from cloob_cli.checkpoint.folder import README_FILE, TOKENIZER_FILE, open_model, write_config
from cloob_cli.core.model import CloobModel
from cloob_cli.errors import MissingExtraError
from cloob_cli.export.parts import tokenizer_of

_OPSET = 18
_LARGEST_BATCH = 1 << 30  # torch 2.7 cannot show that a batch without a bound is shorter than a slice's open end
_LARGEST_FILE = 1_900_000_000  # a protobuf message holds at most 2 GiB; larger weights go beside it


class ImageEncoder(nn.Module):
    """float32 pixels [B, 3, H, W] -> embeddings of unit norm [B, D]."""

    def __init__(self, model: CloobModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


class TextEncoder(nn.Module):
    """int64 token ids [B, context] -> embeddings of unit norm [B, D]."""

    def __init__(self, model: CloobModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)


def export_onnx(folder: Path, output: Path) -> None:
    """Write `image.onnx`, `text.onnx` and what their inputs are made with (`config.json`, `tokenizer.json`).

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtraError.of("onnx", package)
    model = open_model(folder, "cpu", torch.float32)
    size, context = model.config.vision.image_size, model.config.text.context_length
    tokens = torch.zeros(2, context, dtype=torch.int64)
    tokens[:, 1] = model.config.text.vocab_size - 1
    with replacing_folder(output) as temporary:
        _export(ImageEncoder(model), "pixels", torch.zeros(2, 3, size, size), temporary / "image.onnx")
        _export(TextEncoder(model), "tokens", tokens, temporary / "text.onnx")
        write_config(temporary, model.config)
        tokenizer_of(model).save(temporary / TOKENIZER_FILE)
        if (folder / README_FILE).is_file():
            shutil.copyfile(folder / README_FILE, temporary / README_FILE)


def _export(encoder: nn.Module, name: str, example: Tensor, path: Path) -> None:
    bytes_of_weights = sum(parameter.numel() * 4 for parameter in encoder.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every operator library that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notices about itself
        torch.onnx.export(
            encoder.eval(),
            (example,),
            path,
            input_names=[name],
            output_names=["embeddings"],
            dynamic_shapes={name: {0: torch.export.Dim("batch", max=_LARGEST_BATCH)}},
            opset_version=_OPSET,
            dynamo=True,
            external_data=bytes_of_weights > _LARGEST_FILE,
            verbose=False,
        )
