"""Several gloo processes: `python loss_process.py FOLDER PROCESSES`.

For each number of processes from 1 to PROCESSES, each objective and each implementation, each process computes the
loss of its part of FOLDER/batch.pt under DDP and saves loss, gradients and counted bytes as FOLDER/result-RANK.pt.
Then the same for cached gradients.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from cloob_cli.core import distributed as collectives
from cloob_cli.core.loss import contrastive_loss
from cloob_cli.core.loss.steps import TILE_SIZES, TileSizes
from cloob_cli.errors import LossInputError, NonFiniteEmbeddingsError
from cloob_cli.training.gradient_cache import cached_gradient_step


class Towers(nn.Module):
    """Two linear towers and a learnable temperature."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.image = nn.Parameter(weights["image"].clone())
        self.text = nn.Parameter(weights["text"].clone())
        self.logit_scale = nn.Parameter(weights["logit_scale"].clone())

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return normalize(pixels @ self.image, dim=1), normalize(tokens @ self.text, dim=1)


class Counted(TorchDispatchMode):
    """Counts the bytes that this process receives from others in collectives (but for the sums over processes of single
    numbers and vectors of the width D), and the elements of the largest tensor that is made.
    """

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.received = 0.0
        self.largest = 0
        self.share = (processes - 1) / processes

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result

    def __enter__(self) -> Counted:
        self.kept = [
            (collectives, "_all_gather", collectives._all_gather),
            (distributed, "all_to_all_single", distributed.all_to_all_single),
            (distributed, "batch_isend_irecv", distributed.batch_isend_irecv),
        ]
        for module, name, collective in self.kept:
            setattr(module, name, self._counting(collective))
        return super().__enter__()

    def __exit__(self, *problem: object) -> None:
        for module, name, collective in self.kept:
            setattr(module, name, collective)
        super().__exit__(*problem)

    def _counting(self, collective):
        def counted(output, *arguments, **options):
            if isinstance(output, list):  # operations between two processes
                self.received += sum(o.tensor.nbytes for o in output if o.op is distributed.irecv)
            else:
                self.received += output.nbytes * self.share
            return collective(output, *arguments, **options)

        return counted


OBJECTIVES = (("cloob", 8.0), ("cloob", 400.0), ("infoloob", 8.0), ("clip", 8.0), ("clip_hopfield", 8.0))


def run(batch: dict, rank: int, processes: int, group: distributed.ProcessGroup, folder: Path) -> dict:
    rows = batch["rows"][processes]
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    pixels, tokens, ids = (batch[name][own] for name in ("pixels", "tokens", "caption_ids"))
    results = {}
    for objective, scale_hopfield in OBJECTIVES:
        for implementation in ("definition", "tiled"):
            for masked in (False, True) if scale_hopfield == 8.0 else (False,):
                model = nn.parallel.DistributedDataParallel(Towers(batch), process_group=group)
                images, texts = model(pixels, tokens)
                with Counted(processes) as counted:
                    loss = contrastive_loss(
                        images,
                        texts,
                        objective,
                        model.module.logit_scale.exp(),
                        scale_hopfield,
                        caption_ids=ids if masked else None,
                        implementation=implementation,
                        process_group=group,
                    )
                loss.backward()
                gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
                key = (processes, objective, scale_hopfield, implementation, masked)
                results[key] = {
                    "loss": loss.detach(),
                    "gradients": gradients,
                    "received": counted.received,
                    "largest": counted.largest,
                }

    images, texts = (normalize(rows @ batch[name], dim=1) for rows, name in ((pixels, "image"), (tokens, "text")))
    if len(images):
        images, texts = images.requires_grad_(), texts.requires_grad_()
    else:  # nothing to learn from here, in whatever dtype
        images, texts = images.float(), texts.float()
    loss = contrastive_loss(images, texts, process_group=group)
    if len(images):
        loss.backward()
    results[(processes, "without rows")] = {"loss": loss.detach(), "gradient": images.grad}

    wide = pixels @ batch["image"][:, : 5 if rank == 0 else 6]
    try:
        contrastive_loss(wide, wide, process_group=group)
    except LossInputError as error:
        results[(processes, "widths")] = str(error)

    broken = normalize(pixels @ batch["image"], dim=1)
    if rank == processes - 1:
        broken[0, 0] = torch.nan
    try:
        contrastive_loss(broken, broken, process_group=group)
    except NonFiniteEmbeddingsError as error:
        results[(processes, "broken")] = str(error)

    model = nn.parallel.DistributedDataParallel(Towers(batch), process_group=group)
    loss = cached_gradient_step(
        lambda piece: model(*piece),
        list(zip(pixels.tensor_split(3), tokens.tensor_split(3), strict=True)),
        lambda images, texts, tau: contrastive_loss(images, texts, inv_tau=tau, process_group=group),
        model=model,
        loss_tensors=[model.module.logit_scale.exp()],
        no_sync=model.no_sync,
    )
    gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    results[(processes, "cached")] = {"loss": loss, "gradients": gradients}
    return results


def work(rank: int, folder: Path, most: int) -> None:
    torch.set_num_threads(1)
    # Tiles and chunks smaller than any process's part.
    TILE_SIZES["cpu"] = TileSizes(tile=(5, 7), chunk_elements=100)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=most)
    batch = torch.load(folder / "batch.pt", weights_only=True)
    results = {}
    for processes in range(1, most + 1):
        group = distributed.new_group(list(range(processes)))
        if rank < processes:
            results |= run(batch, rank, processes, group, folder)
    torch.save(results, folder / f"result-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    # Forked, and only now: importing torch and what DDP needs takes each of them seconds otherwise.
    import torch._dynamo
    from torch.multiprocessing import start_processes

    start_processes(work, (Path(sys.argv[1]), int(sys.argv[2])), nprocs=int(sys.argv[2]), start_method="fork")
