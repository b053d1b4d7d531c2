"""Cached gradients against the gradient of the whole batch, on one process and under DDP."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from margins import EPS, close, within
from torch import nn

from cloob_cli.core.loss import contrastive_loss
from cloob_cli.core.model import CloobModel, build
from cloob_cli.core.model_config import ModelConfig
from cloob_cli.training.gradient_cache import cached_gradient_step, find_micro_batch_size

pytestmark = pytest.mark.numeric


def small_vit() -> CloobModel:
    vision = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 48, "layers": 2, "heads": 3}
    text = {"context_length": 8, "vocab_size": 600, "width": 32, "layers": 2, "heads": 2}
    return build(ModelConfig.model_validate({"embed_dim": 32, "vision": vision, "text": text}), seed=0)


def pictogram_vit() -> CloobModel:
    vision = {"kind": "vit", "image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "heads": 3}
    text = {"context_length": 20, "vocab_size": 8192, "width": 128, "layers": 3, "heads": 2}
    return build(ModelConfig.model_validate({"embed_dim": 256, "vision": vision, "text": text}), seed=0)


def pairs(model: CloobModel, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size, text = model.config.vision.image_size, model.config.text
    pixels = torch.randn(count, 3, size, size, generator=generator)
    tokens = torch.randint(1, text.vocab_size - 1, (count, text.context_length), generator=generator)
    tokens[:, -1] = text.vocab_size - 1
    return pixels, tokens


def loss_function(images: torch.Tensor, texts: torch.Tensor, inv_tau: torch.Tensor) -> torch.Tensor:
    return contrastive_loss(images, texts, inv_tau=inv_tau)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def embed_checkpointed(model: CloobModel, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One graph of the whole batch; activations are made again, 256 pairs at a time, so that it fits into memory."""
    slices = zip(pixels.split(256), tokens.split(256), strict=True)
    embedded = [torch.utils.checkpoint.checkpoint(model, *piece, use_reentrant=False) for piece in slices]
    return tuple(torch.cat(parts) for parts in zip(*embedded, strict=True))


def check_against_whole_batch(model: CloobModel, batch: int, micro_batch: int) -> None:
    pixels, tokens = pairs(model, batch)
    # One backward pass through the whole batch, without a line of the code under test.
    embed = model if batch <= 256 else partial(embed_checkpointed, model)
    whole_loss = loss_function(*embed(pixels, tokens), model.inv_tau)
    whole_loss.backward()
    whole = gradients(model)
    slices = list(zip(pixels.split(micro_batch), tokens.split(micro_batch), strict=True))
    loss = cached_gradient_step(
        lambda piece: model(*piece), slices, loss_function, model=model, loss_tensors=[model.inv_tau]
    )
    close(loss.item(), whole_loss.item(), "float32: logits of 30, rounded a few times", atol=4 * 30 * EPS)
    for name, gradient in gradients(model).items():
        error = torch.linalg.vector_norm(gradient - whole[name])
        # 1e-7 is for the bias of keys, whose gradient is zero but for rounding. That of the temperature is a mean of
        # differences of logits of up to 30, whose rounding is what it is however much of them cancels.
        absolute = 4 * 30 * EPS if name == "logit_scale" else 1e-7
        limit = 1e-5 * torch.linalg.vector_norm(whole[name]) + absolute
        within(error, limit, "docs/loss.md: 1e-5 in float32; logits of 30, rounded a few times")


@pytest.mark.parametrize("micro_batch", [16, 24, 64])
def test_slices_give_the_gradient_of_the_whole_batch(micro_batch):
    check_against_whole_batch(small_vit(), 64, micro_batch)


@pytest.mark.slow
def test_the_pictogram_recipes_model_at_4096_in_slices_of_256():
    check_against_whole_batch(pictogram_vit(), 4096, 256)


class Towers(nn.Module):
    """Linear towers with drop-out and BatchNorm between."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.text = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return nn.functional.normalize(self.image(pixels)), nn.functional.normalize(self.text(tokens))


def test_a_tensor_that_the_loss_does_not_use_gets_no_gradient():
    model = small_vit()
    unused = torch.ones((), requires_grad=True)
    pixels, tokens = pairs(model, 8)
    cached_gradient_step(
        lambda piece: model(*piece),
        list(zip(pixels.split(4), tokens.split(4), strict=True)),
        lambda images, texts, _: contrastive_loss(images, texts),
        model=model,
        loss_tensors=[unused * 2],
    )
    assert unused.grad is None


def test_both_passes_draw_the_same_random_numbers():
    torch.manual_seed(0)
    model = Towers()
    slices = [tuple(torch.randn(2, 5, 6)) for _ in range(3)]
    seen = []

    def embed(piece):
        result = model(*piece)
        seen.append([rows.detach().clone() for rows in result])
        return result

    def plain_loss(images, texts):
        return contrastive_loss(images, texts)

    cached_gradient_step(embed, slices, plain_loss, model=model)
    for first, second in zip(seen[:3], seen[3:], strict=True):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(model.image(slices[0][0]), model.image(slices[0][0])), "drop-out is on"


def test_running_statistics_move_once_a_step():
    torch.manual_seed(0)
    model, once = Towers(), Towers()
    once.load_state_dict(model.state_dict())
    slices = [tuple(torch.randn(2, 5, 6)) for _ in range(3)]
    cached_gradient_step(lambda piece: model(*piece), slices, contrastive_loss, model=model)
    for piece in slices:
        once(*piece)
    assert torch.equal(model.text[1].running_mean, once.text[1].running_mean)
    assert model.text[1].num_batches_tracked == 3


def test_backward_of_a_scaler_is_taken():
    torch.manual_seed(0)
    model = Towers().eval()
    slices = [tuple(torch.randn(2, 5, 6)) for _ in range(2)]
    cached_gradient_step(lambda piece: model(*piece), slices, contrastive_loss, model=model)
    plain = gradients(model)
    cached_gradient_step(
        lambda piece: model(*piece),
        slices,
        contrastive_loss,
        model=model,
        backward=lambda loss: (loss * 1024).backward(),
    )
    for name, gradient in gradients(model).items():
        close(
            gradient,
            plain[name] * 1024,
            "float32: but for rounding a power of two",
            rtol=1e-5,
            atol=1e-7,
        )


def test_micro_batch_is_halved_until_it_fits():
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    assert find_micro_batch_size(attempt, 250) == 62
    assert tried == [250, 125, 62]


def test_other_errors_of_an_attempt_are_not_memory():
    def attempt(size: int) -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        find_micro_batch_size(attempt, 8)


def test_nothing_fits():
    def attempt(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    with pytest.raises(RuntimeError, match="zero"):
        find_micro_batch_size(attempt, 2)
