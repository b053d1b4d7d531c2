"""The towers against the reference programs' numbers, torch's own layers, and themselves computed another way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from margins import EPS, close, within
from safetensors.torch import load_file
from torch import Tensor, nn

from cloob_cli.convert import convert_checkpoint
from cloob_cli.core.model import CloobModel, build, tokens_to_end, unit_norm, with_weights
from cloob_cli.core.model_config import ARCHITECTURES, ModelConfig
from cloob_cli.core.resnet import frozen_statistics
from cloob_cli.errors import ModelFolderError

pytestmark = pytest.mark.numeric

FLOAT64 = "float64: a few hundred operations of 1e-16 on numbers of up to 10"
GOLDEN = Path(__file__).parent.parent / "golden"
VIT = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "heads": 3}
RESNET = {"kind": "resnet", "image_size": 64, "width": 16, "layers": [1, 2, 1, 1]}
TEXT = {"context_length": 12, "vocab_size": 60, "width": 32, "layers": 2, "heads": 2}
CROWSONKB = {"causal": False, "pooling": "first", "padding": "queries", "norm_final": False, "projection_bias": True}
ROBERTA = {
    "causal": False, "pooling": "first", "padding": "keys", "pad_id": 0,
    "post_norm": True, "norm_embedding": True, "norm_final": False,
}  # fmt: skip
TEXTS = {"clip": {}, "crowsonkb": CROWSONKB, "roberta": ROBERTA}


def config(vision: dict | None = None, **text: object) -> ModelConfig:
    return ModelConfig.model_validate({"embed_dim": 20, "vision": vision or VIT, "text": TEXT | text})


def a_batch(size: int = 6, image_size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, image_size, image_size, generator=generator)
    tokens = torch.randint(1, 58, (size, 12), generator=generator)
    for row in range(size):
        end = 2 + row % 9
        tokens[row, end] = 59
        tokens[row, end + 1 :] = 0
    return pixels, tokens


@pytest.mark.parametrize("name", ["mljku_rn", "mljku_vit"])
def test_the_paper_program_s_raw_features(name: str) -> None:
    converted = convert_checkpoint(GOLDEN / name)
    expected = load_file(GOLDEN / name / "expected.safetensors")
    with torch.no_grad():
        images = converted.model.image_features(expected["images"])
        texts = converted.model.text_features(expected["tokens"])
    for ours, theirs in ((images, expected["image_features"]), (texts, expected["text_features"])):
        within((ours - theirs).abs().max() / theirs.abs().max(), 1e-5, "float32 through a dozen layers: 80 EPS")
    close(converted.model.inv_tau.reshape(1), expected["inv_tau"], "one exponential in float32", rtol=4 * EPS)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_crowsonkb_s_features_with_either_gelu(activation: str) -> None:
    converted = convert_checkpoint(GOLDEN / "crowsonkb")
    assert converted.config.vision.activation == converted.config.text.activation == "gelu_tanh"
    described = converted.config.model_dump()
    described["vision"]["activation"] = described["text"]["activation"] = activation
    model = with_weights(ModelConfig.model_validate(described), converted.model.state_dict()).eval()
    expected = load_file(GOLDEN / "crowsonkb/expected.safetensors")
    suffix = {"gelu": "gelu_erf", "gelu_tanh": "gelu_tanh"}[activation]
    with torch.no_grad():
        images, texts = model(expected["images"], expected["tokens"])
    for ours, key in ((images, f"image_features.{suffix}"), (texts, f"text_features.{suffix}")):
        close(ours, unit_norm(expected[key]), "unit rows in float32 through a dozen layers: 10 EPS", atol=10 * EPS)


@pytest.mark.parametrize("name", ["RN50", "RN50x4", "ViT-B-16", "ViT-B-32"])
def test_names_shapes_and_counts_of_the_paper_s_architectures(name: str) -> None:
    golden = json.loads((GOLDEN / f"shapes/{name}.json").read_text(encoding="utf-8"))
    described = ModelConfig.model_validate(ARCHITECTURES[f"{name}-quickgelu"])
    with torch.device("meta"):
        model = CloobModel(described)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    theirs = {}
    for key, shape in golden["shapes"].items():  # ml-jku's names differ from open_clip's in the text tower
        key = "logit_scale" if key == "logit_inv_tau" else key
        if key.startswith("transformer.") and not key.startswith("transformer.resblocks."):
            key = key.removeprefix("transformer.")
        theirs[key] = shape
    assert ours == theirs
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["parameters"]


def test_a_vit_block_equals_torch_s_transformer_layer() -> None:
    model = build(config(), seed=1).double()
    block = model.visual.transformer.blocks[0]
    theirs = nn.TransformerEncoderLayer(48, 3, 192, 0.0, "gelu", norm_first=True, batch_first=True).double().eval()
    theirs.load_state_dict(
        {
            name.replace("ln_1", "norm1").replace("ln_2", "norm2").replace("attn.", "self_attn.")
            .replace("mlp.c_fc", "linear1").replace("mlp.c_proj", "linear2"): tensor
            for name, tensor in block.state_dict().items()
        }
    )  # fmt: skip
    x = torch.randn(2, 7, 48, dtype=torch.float64)
    close(block(x), theirs(x), FLOAT64, atol=1e-12)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    close(block(x, causal=True), theirs(x, src_mask=mask, is_causal=True), FLOAT64, atol=1e-12)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("mode", ["plain", "causal", "valid_queries", "valid_keys"])
def test_one_token_equals_that_token_of_the_whole_block(mode: str, post_norm: bool) -> None:
    transformer = build(config(post_norm=post_norm), seed=2).double().transformer
    x = torch.randn(4, 9, 32, dtype=torch.float64)
    index = torch.tensor([0, 3, 8, 5])
    valid = torch.arange(9) <= index[:, None]
    masks = {mode: valid} if mode.startswith("valid") else {}
    whole = x
    for block in transformer.blocks:
        whole = block(whole, mode == "causal", masks.get("valid_queries"), masks.get("valid_keys"))
    ours = transformer(x, index, causal=mode == "causal", **masks)
    close(ours, whole[torch.arange(4), index], FLOAT64, atol=1e-12)


def test_padded_queries_attend_uniformly_in_every_dtype() -> None:
    """crowsonkb writes -1e30 over a padded query's scores: all equal, so its weights are 1/N. float16 has no -1e30."""
    attention = build(config(**CROWSONKB), seed=3).double().transformer.blocks[0].attn
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    valid = torch.tensor([[True, True, False, False, False], [True] * 5])
    out = attention(x, causal=False, valid_queries=valid, valid_keys=None)
    value = (x @ attention.in_proj_weight[64:].T + attention.in_proj_bias[64:]).mean(1)
    close(out[0, 2:], attention.out_proj(value)[:1].expand(3, -1), FLOAT64, atol=1e-12)
    half = attention.half()(x.half(), causal=False, valid_queries=valid, valid_keys=None)
    close(half.double(), out, "float16: five units of 2^-10 for numbers of about 1", atol=5e-3)


def test_tokens_to_end() -> None:
    tokens = torch.tensor([[9, 4, 59, 0, 0], [9, 59, 3, 59, 0], [9, 1, 2, 3, 4]])
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert tokens_to_end(tokens, 59).long().tolist() == expected


@pytest.mark.parametrize("kind", TEXTS)
def test_what_stands_after_the_end_does_not_matter_where_it_is_masked(kind: str) -> None:
    model = build(config(**TEXTS[kind]), seed=4).double()
    _, tokens = a_batch()
    one_by_one = torch.cat([model.encode_text(row[None]) for row in tokens])
    close(model.encode_text(tokens), one_by_one, FLOAT64, atol=1e-12)
    if kind == "crowsonkb":
        return  # its valid queries attend to padding
    other = tokens.clone()
    if kind == "clip":
        other[(~tokens_to_end(tokens, 59))] = 7
    else:
        model.token_embedding.weight.data[0] = 5.0
    close(model.encode_text(other), one_by_one, FLOAT64, atol=1e-12)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_gives_unit_float32(vision: dict, kind: str, dtype: torch.dtype) -> None:
    model = build(config(vision, **TEXTS[kind]), seed=5).eval()
    pixels, tokens = a_batch(image_size=vision["image_size"])
    with torch.no_grad():
        expected = model(pixels, tokens)
        found = model.to(dtype)(pixels, tokens)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(ours.norm(dim=-1).float(), torch.ones(6), "a row divided by its length in float32", atol=4 * EPS)
        cosine = (ours.float() * exact).sum(-1).min()
        within(1 - cosine, 1e-3, "bfloat16: (2^-8)^2 for each of some sixty roundings")


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_autocast_trains_every_weight(vision: dict) -> None:
    model = build(config(vision), seed=6)
    pixels, tokens = a_batch(image_size=vision["image_size"])
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = model(pixels, tokens)
    assert images.dtype == texts.dtype == torch.float32
    (images * texts * torch.randn(20)).sum().mul(model.inv_tau).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_checkpointing_changes_neither_gradients_nor_statistics(vision: dict) -> None:
    pixels, tokens = a_batch(image_size=vision["image_size"])
    weight = torch.randn(20, dtype=torch.float64)
    results = []
    for on in (False, True):
        model = build(config(vision), seed=7).double().train()
        model.checkpoint_activations(on)
        images, texts = model(pixels.double(), tokens)
        (images * texts * weight).sum().backward()
        results.append(({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    (gradients, buffers), (gradients_again, buffers_again) = results
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        if gradient is not None:
            close(gradients_again[name], gradient, FLOAT64, atol=1e-12)
    for name, buffer in buffers.items():
        assert torch.equal(buffers_again[name], buffer), name


def test_checkpointing_keeps_less() -> None:
    def kept(on: bool) -> int:
        model = build(config(VIT | {"layers": 6}), seed=8).train()
        model.checkpoint_activations(on)
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.encode_image(a_batch(32)[0])
        return total

    assert kept(True) < kept(False) / 4


def test_frozen_statistics() -> None:
    norm = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    expected = nn.BatchNorm2d(3)(x)
    with frozen_statistics(norm):
        close(norm(x), expected, "the same statistics of 16 numbers in float32", atol=8 * EPS)
    assert norm.running_mean.tolist() == [0.0] * 3
    assert int(norm.num_batches_tracked) == 0
    norm(x)
    assert int(norm.num_batches_tracked) == 1


def test_the_seed_decides_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, third = build(config(), seed=1), build(config(), seed=1), build(config(), seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.token_embedding.weight, third.token_embedding.weight)


def test_initialization_is_clip_s() -> None:
    described = ARCHITECTURES["ViT-B-32"] | {"vision": ARCHITECTURES["ViT-B-32"]["vision"] | {"layers": 2}}
    model = build(ModelConfig.model_validate(described), seed=0)
    block, width, layers = model.transformer.blocks[5], 512, 12
    expected = {  # openai/CLIP, CLIP.initialize_parameters
        "token embedding": (model.token_embedding.weight, 0.02),
        "position": (model.positional_embedding, 0.01),
        "in": (block.attn.in_proj_weight, width**-0.5),
        "out": (block.attn.out_proj.weight, width**-0.5 * (2 * layers) ** -0.5),
        "fc": (block.mlp.c_fc.weight, (2 * width) ** -0.5),
        "proj": (block.mlp.c_proj.weight, width**-0.5 * (2 * layers) ** -0.5),
        "text projection": (model.text_projection, width**-0.5),
        "class": (model.visual.class_embedding, 768**-0.5),
        "image projection": (model.visual.proj, 768**-0.5),
        "vision in": (model.visual.transformer.blocks[0].attn.in_proj_weight, (2 / (4 * 768)) ** 0.5),
    }
    for tensor, deviation in expected.values():
        # An estimate from n numbers is off by 1 / sqrt(2 n): five times that.
        close(tensor.std().item(), deviation, "deviation of a sample", rtol=5 / math.sqrt(2 * tensor.numel()))
    close(model.inv_tau.item(), 30.0, "log and exponential in float32: 3.4 EPS", rtol=8 * EPS)


def test_a_new_resnet_s_blocks_are_their_shortcuts() -> None:
    model = build(config(RESNET), seed=0).eval()
    block = model.visual.layer2[1]
    x = torch.rand(2, 128, 4, 4)
    assert torch.equal(block(x), x)


def test_initialization_leaves_no_weight_unset() -> None:
    for vision in (VIT, VIT | {"projection_bias": True, "patch_bias": True, "norm_pre": False}, RESNET):
        for text in TEXTS.values():
            model = CloobModel(config(vision, **text))
            for parameter in [p for n, p in model.named_parameters() if _set_by_hand(n)]:
                parameter.data.fill_(math.nan)
            model.initialize()
            assert all(parameter.isfinite().all() for parameter in model.parameters())


def _set_by_hand(name: str) -> bool:
    # What is allocated without torch's own initialization.
    last = name.rsplit(".", 1)[-1]
    return last in {"in_proj_weight", "in_proj_bias", "class_embedding", "positional_embedding", "proj"} or name in {
        "text_projection",
        "logit_scale",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ln_final.bias"), "lack the tensor 'ln_final.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "hold the tensor 'extra'"),
        (lambda w: w.update(text_projection=torch.zeros(32, 21)), r"\[32, 21\] instead of \[32, 20\]"),
    ],
)
def test_weights_that_do_not_belong(change, message: str) -> None:
    weights = dict(build(config(), seed=0).state_dict())
    change(weights)
    with pytest.raises(ModelFolderError, match=message):
        with_weights(config(), weights)


def test_with_weights_takes_them_as_they_are() -> None:
    model = build(config(), seed=0)
    again = with_weights(config(), model.state_dict())
    assert again.text_projection.data_ptr() == model.text_projection.data_ptr()
    pixels, tokens = a_batch()
    for ours, theirs in zip(again(pixels, tokens), model(pixels, tokens), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.filterwarnings("default")
def test_compiled_training_gives_the_same_gradients(vision: dict) -> None:
    pixels, tokens = a_batch(image_size=vision["image_size"])
    results = []
    for compiled in (False, True):
        model = build(config(vision), seed=9)
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        images, texts = run(pixels, tokens)
        (images * texts).sum().backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        close(results[1][name], gradient, "float32, operations in another order", rtol=1e-3, atol=1e-4)
