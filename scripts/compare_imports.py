"""Measure how far models of open_clip and transformers are from themselves here, at full size with random weights.

    python scripts/compare_imports.py open_clip RN50 RN101 ViT-B-32 ViT-B-16 ViT-L-14 RN50-quickgelu ViT-B-32-quickgelu
    python scripts/compare_imports.py transformers ViT-B-32

Each model is made by its program and written to disk; it is opened from there, exported again (a vision transformer to
both programs, a ResNet to open_clip), and what came out is opened by its program. Prints the largest difference of a
coordinate of a unit embedding, and whether the tokens are the same. The programs run in processes of their own;
open_clip's has stand-ins for those parts of torchvision that it imports (tests/helpers), as in the tests.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
Found = dict[str, Tensor]


def make(program: str, name: str, folder: Path) -> None:
    """Write a model with random weights: norms, biases and statistics too, and a temperature of its own."""
    torch.manual_seed(0)
    if program == "open_clip":
        import open_clip
        from open_clip.push_to_hf_hub import save_config_for_hf

        model: Any = open_clip.create_model(name)
        save_config_for_hf(model, folder / "open_clip_config.json", open_clip.get_model_config(name))
    else:
        import transformers

        assert name == "ViT-B-32", "CLIPConfig describes this one by itself"
        model = transformers.CLIPModel(transformers.CLIPConfig())
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (key.endswith(("bias", "running_mean", "norm.weight")) or "ln_" in key):
            tensor.add_(torch.randn_like(tensor) * 0.1)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    model.logit_scale.fill_(math.log(87.5))
    if program == "open_clip":
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    else:
        model.save_pretrained(folder)


def judge(program: str, folder: Path, given: Path, found: Path) -> None:
    """Write what a program makes of the pixels and tokens in `given`."""
    pixels, tokens = load_file(given)["pixels"], load_file(given)["tokens"]
    if program == "open_clip":
        import open_clip

        from cloob_cli.checkpoint.behavior_fingerprint import TEXTS

        model: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0].eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
    else:
        import transformers

        model = transformers.CLIPModel.from_pretrained(folder).eval()
        output = model(input_ids=tokens, pixel_values=pixels)
        images, texts = output.image_embeds, output.text_embeds
    result = {"tokens": tokens, "images": images, "texts": texts, "inv_tau": model.logit_scale.exp().reshape(1)}
    save_file({name: tensor.contiguous() for name, tensor in result.items()}, found)


def here(folder: Path, pixels: Tensor) -> Found:
    """The same in this program."""
    from cloob_cli.checkpoint.behavior_fingerprint import TEXTS
    from cloob_cli.checkpoint.folder import open_model

    model = open_model(folder, "cpu", torch.float32)
    assert model.tokenize is not None
    tokens = model.tokenize(TEXTS)
    images, texts = model.encode_image(pixels), model.encode_text(tokens)
    return {"tokens": tokens, "images": images, "texts": texts, "inv_tau": model.inv_tau.reshape(1)}


def in_another_process(task: str, program: str, *arguments: object) -> None:
    paths = [str(ROOT), *([str(ROOT / "tests/helpers/torchvision_stand_in")] if program == "open_clip" else [])]
    subprocess.run(
        [sys.executable, "-W", "ignore", __file__, task, program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL if not os.environ.get("CLOOB_DEBUG") else None,
        check=True,
    )


def report(what: str, found: Found, expected: Found) -> None:
    errors = {key: float((found[key] - expected[key]).abs().max()) for key in ("images", "texts", "inv_tau")}
    same = torch.equal(found["tokens"], expected["tokens"])
    shown = "\t".join(f"{key} {error:.1g}" for key, error in errors.items())
    print(f"{what}\t{shown}\ttokens {'the same' if same else 'OTHERS'}", flush=True)


def compare(program: str, name: str, folder: Path) -> None:
    from cloob_cli.export import export_model

    source, given, found = folder / "in", folder / "given.safetensors", folder / "found.safetensors"
    source.mkdir()
    in_another_process("make", program, name, source)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ours = here(source, pixels)
    save_file({"pixels": pixels, "tokens": ours["tokens"]}, given)
    in_another_process("judge", program, source, given, found)
    expected = load_file(found)
    report(f"{program} {name}\there", ours, expected)
    for target in ("open_clip",) if name.startswith("RN") else ("open_clip", "transformers"):
        export_model(source, target, folder / target)
        in_another_process("judge", target, folder / target, given, found)
        report(f"{program} {name}\tout to {target}", load_file(found), expected)
        shutil.rmtree(folder / target)


@torch.no_grad()
def main(task: str, *arguments: str) -> None:
    if task == "make":
        make(arguments[0], arguments[1], Path(arguments[2]))
    elif task == "judge":
        judge(arguments[0], *(Path(argument) for argument in arguments[1:]))
    else:
        for name in arguments:
            with tempfile.TemporaryDirectory() as temporary:
                compare(task, name, Path(temporary))


if __name__ == "__main__":
    main(*sys.argv[1:])
