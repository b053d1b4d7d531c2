"""Checkpoints in the true layout and at full size, and one that goes all the way through; a process each.

`python full_size.py write NAME FOLDER` writes FOLDER/checkpoint.{pt,pkl}, and what it computes (expected.safetensors).
`python full_size.py convert NAME FOLDER` converts, saves, loads and encodes it; prints errors, seconds and memory.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

SMALL = {
    "RN50": {
        "embed_dim": 24,
        "vision": {"kind": "resnet", "image_size": 64, "width": 8, "layers": [1, 2, 1, 1]},
        "text": {"vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    },
    "ViT-B-16": {
        "embed_dim": 24,
        "vision": {"kind": "vit", "image_size": 32, "patch_size": 16, "width": 64, "layers": 2},
        "text": {"vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    },
}
TEXTS = ["a red bicycle", "two cats on a roof"]


def configuration(name: str) -> Any:
    """ "RN50", "ViT-B-16", "crowsonkb": the released models; with "small-" before them a tenth of the layers."""
    from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig

    bare = name.removeprefix("small-")
    clip = "ViT-B-16" if bare == "crowsonkb" else bare
    described = SMALL[clip] if name.startswith("small-") else ARCHITECTURES[f"{clip}-quickgelu"]
    own = {"activation": "gelu_tanh"} if bare == "crowsonkb" else {"activation": "quick_gelu"}
    image, text = dict(own), dict(own)
    if bare == "crowsonkb":
        image |= {"norm_pre": False, "norm_post": False, "projection_bias": True}
        text |= {
            "causal": False,
            "pooling": "first",
            "padding": "queries",
            "norm_final": False,
            "projection_bias": True,
        }
    described = described | {"vision": described["vision"] | image, "text": described["text"] | text}
    return ModelConfig.model_validate(described | {"inv_tau": 30.0})


def write(name: str, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from cloob_cli.core.model import build
    from cloob_cli.data.tokenizer import clip_tokenizer

    config = configuration(name)
    model = build(config, seed=0).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases that are not zero or one
            parameter += 0.1 * torch.randn_like(parameter)
    pixels, tokens = torch.randn(1, 3, config.vision.image_size, config.vision.image_size), clip_tokenizer()(TEXTS)
    expected = {"pixels": pixels, "images": model.encode_image(pixels), "texts": model.encode_text(tokens)}
    save_file({key: tensor.contiguous() for key, tensor in expected.items()}, folder / "expected.safetensors")
    state = model.state_dict()
    if name.endswith("crowsonkb"):
        (folder / "checkpoint.pkl").write_bytes(pickle.dumps({"params": haiku(state), "epoch": 16}, protocol=4))
        return
    names = {key: f"module.{ml_jku(key)}" for key in state}
    moments = {
        number: {"exp_avg": tensor, "exp_avg_sq": tensor.clone()} for number, tensor in enumerate(state.values())
    }
    torch.save(
        {
            "epoch": 28,
            "name": name,
            "state_dict": {names[key]: tensor for key, tensor in state.items()}
            | {"module.logit_scale_hopfield": torch.tensor(8.0).log()},
            "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]},
            "scheduler": {"last_epoch": 28},
        },
        folder / "checkpoint.pt",
    )


def ml_jku(name: str) -> str:
    if name == "logit_scale":
        return "logit_inv_tau"
    return name if name.startswith("visual.") else f"transformer.{name}"


def haiku(state: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """crowsonkb's two trees of parameters; weights of linear layers lie the other way round there."""
    image: dict[str, dict[str, Any]] = {"vi_t_image_encoder": {"class_embed": array(state["visual.class_embedding"])}}
    image["vi_t_image_encoder/embed"] = {"w": array(state["visual.conv1.weight"].permute(2, 3, 1, 0))}
    image["vi_t_image_encoder/pos_embed"] = {"w": array(state["visual.positional_embedding"])}
    text: dict[str, dict[str, Any]] = {"text_encoder/embed": {"embeddings": array(state["token_embedding.weight"])}}
    text["text_encoder/pos_embed"] = {"w": array(state["positional_embedding"])}
    for tree, base, projection, blocks in (
        (image, "vi_t_image_encoder", "visual.proj", "visual.transformer.resblocks"),
        (text, "text_encoder", "text_projection", "transformer.resblocks"),
    ):
        tree[f"{base}/proj"] = linear(state, projection)
        layers = {int(name.removeprefix(f"{blocks}.").split(".")[0]) for name in state if name.startswith(f"{blocks}.")}
        for layer in layers:
            ours, theirs = f"{blocks}.{layer}", f"{base}/layer_{layer}"
            heads = f"{theirs}/self_attention/multi_head_attention"
            weights, biases = (state[f"{ours}.attn.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
            for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
                tree[f"{heads}/{part}"] = {"w": array(weight.T), "b": array(bias)}
            tree[f"{heads}/linear"] = linear(state, f"{ours}.attn.out_proj")
            tree[f"{theirs}/feed_forward/linear_0"] = linear(state, f"{ours}.mlp.c_fc")
            tree[f"{theirs}/feed_forward/linear_1"] = linear(state, f"{ours}.mlp.c_proj")
            for norm, part in (("ln_1", "self_attention"), ("ln_2", "feed_forward")):
                scale, offset = array(state[f"{ours}.{norm}.weight"]), array(state[f"{ours}.{norm}.bias"])
                tree[f"{theirs}/{part}/layer_norm"] = {"scale": scale, "offset": offset}
    return image, text


def linear(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {"w": array(state[f"{name}.weight"].T), "b": array(state[f"{name}.bias"])}


def array(tensor: Any) -> Any:
    return tensor.contiguous().numpy()


def convert(name: str, folder: Path) -> None:
    started = time.perf_counter()
    import resource

    from safetensors.torch import load_file

    import cloob_cli
    from cloob_cli.checkpoint.folder import save_model
    from cloob_cli.convert import convert_checkpoint

    checkpoint = next(path for path in folder.glob("checkpoint.*"))
    architecture = {"architecture": name} if checkpoint.suffix == ".pt" and not name.startswith("small-") else None
    converted = convert_checkpoint(checkpoint, config=architecture, name=name.lower())
    save_model(folder / "model", converted.model, converted.tokenizer, card_text="")
    source, ignored = converted.format, converted.ignored
    del converted
    model = cloob_cli.load(str(folder / "model"), device="cpu")
    expected = load_file(folder / "expected.safetensors")
    images, texts = model.encode_image(expected["pixels"]), model.encode_text(model.tokenize(TEXTS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = {
        "format": source,
        "ignored": ignored,
        "image_error": float((images - expected["images"]).abs().max()),
        "text_error": float((texts - expected["texts"]).abs().max()),
        "seconds": round(time.perf_counter() - started, 1),
        "gigabytes": round(peak / 1e9, 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    {"write": write, "convert": convert}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
