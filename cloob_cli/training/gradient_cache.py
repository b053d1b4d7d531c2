"""The exact gradient of a contrastive batch that does not fit: embed in slices, twice (GradCache, Gao et al. 2021).

A contrastive loss needs all embeddings at once, but it needs nothing else of the towers. So the slices are embedded
without a graph; the loss of the whole batch gives the gradient of every embedding; and each slice is embedded again,
with a graph this time, to take its part of that gradient to the weights. This costs one more forward pass and keeps
the activations of one slice only.

What it cannot do: a layer that looks across the batch sees slices. BatchNorm in training mode normalizes over a slice,
so that the gradient is that of a model whose statistics are per slice (as with smaller batches on more processes). Its
running statistics move once with each slice, not a second time in the pass without a graph. Layers without such
statistics (all of a vision transformer) give the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

Slice = TypeVar("Slice")


def cached_gradient_step(
    embed: Callable[[Slice], tuple[Tensor, Tensor]],
    slices: Sequence[Slice],
    loss_function: Callable[..., Tensor],
    *,
    model: nn.Module,
    loss_tensors: Sequence[Tensor] = (),
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add to every parameter's `.grad` what `loss_function(*embed(whole batch)).backward()` would add.

    Args:
        embed: image and text embeddings [m, D] of a slice of m pairs; calls the towers, through DDP's wrapper if any.
            Both passes over a slice draw the same random numbers, so that drop-out is welcome.
        slices: the batch in pieces, in order. With several processes each must have the same number of them.
        loss_function: (images [n, D], texts [n, D], *loss_tensors) -> scalar, of this process's whole batch.
        model: what `embed` calls, to find its device and its running statistics.
        loss_tensors: what else the loss depends on, such as a learnable inv_tau, still attached to its parameters.
        backward: takes the loss back to the embeddings; a scaler's for float16 (`accelerator.backward`).
        no_sync: DDP's, or `lambda: accelerator.no_sync(model)`: entered for every slice but the last, so that
            processes exchange gradients once.

    Returns:
        The loss, detached.
    """
    device = next(model.parameters()).device
    states, embedded = [], []
    with torch.no_grad(), _running_statistics_kept(model):
        for piece in slices:
            states.append(_random_state(device))
            embedded.append(embed(piece))
    images, texts = (torch.cat(parts).requires_grad_() for parts in zip(*embedded, strict=True))
    sizes = [len(image_embeddings) for image_embeddings, _ in embedded]
    leaves = [tensor.detach().requires_grad_() for tensor in loss_tensors]
    loss = loss_function(images, texts, *leaves)
    backward(loss)
    assert images.grad is not None
    assert texts.grad is not None
    pulls = list(zip(images.grad.split(sizes), texts.grad.split(sizes), strict=True))

    for number, (piece, state) in enumerate(zip(slices, states, strict=True)):
        _restore_random_state(device, state)
        last = number == len(slices) - 1
        with nullcontext() if last else no_sync():
            # DDP counts every parameter's gradient once, in the last backward pass: the loss's own tensors go with it.
            # One that the loss did not use has no gradient to take on.
            extra = [
                (tensor, leaf.grad)
                for tensor, leaf in zip(loss_tensors, leaves, strict=True)
                if last and tensor.requires_grad and leaf.grad is not None
            ]
            embedded_again = zip(embed(piece), pulls[number], strict=True)
            # Embeddings of a frozen tower have no graph to go back through.
            known = [*((tensor, pull) for tensor, pull in embedded_again if tensor.requires_grad), *extra]
            torch.autograd.backward([tensor for tensor, _ in known], [gradient for _, gradient in known])
    return loss.detach()


def find_micro_batch_size(
    attempt: Callable[[int], object], pairs: int, process_group: torch.distributed.ProcessGroup | None = None
) -> int:
    """The largest of pairs, pairs/2, pairs/4, ... for which `attempt(size)` does not run out of memory.

    `attempt` embeds `size` pairs and goes back through the towers, on this process alone (without DDP: where one has to
    try again, the others would wait for it). The answer is the smallest over the processes of the group.

    Raises:
        RuntimeError: not even one pair fits.
    """
    from accelerate.utils import find_executable_batch_size

    def try_size(size: int) -> int:
        attempt(size)
        return size

    sizes = iter([pairs >> halvings for halvings in range(1, pairs.bit_length())] + [0])
    fitting: int = find_executable_batch_size(
        try_size, starting_batch_size=pairs, reduce_batch_size_fn=lambda: next(sizes)
    )()
    if process_group is None:
        return fitting
    smallest = torch.tensor(fitting, device=_device_of(process_group))
    torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN, group=process_group)
    return int(smallest)


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Undo what the first pass does to the running statistics: the second moves them, once with each slice."""
    moving = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for module in moving for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = None
    if device.type == "cuda":
        on_device = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        on_device = torch.mps.get_rng_state()
    return torch.get_rng_state(), on_device


def _restore_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is None:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(on_device, device)
    else:
        torch.mps.set_rng_state(on_device)


def _device_of(process_group: torch.distributed.ProcessGroup) -> torch.device:
    backend = torch.distributed.get_backend(process_group)
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
