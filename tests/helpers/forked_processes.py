"""cloob in several processes that work together: `python forked_processes.py FOLDER PROCESSES ARGUMENTS...`.

They are forked after torch and accelerate are imported, which takes seconds for each process of a launcher. FOLDER
is where they meet.
"""

from __future__ import annotations

import os
import sys


def work(rank: int, folder: str, processes: int, arguments: list[str]) -> None:
    import torch.distributed as distributed

    from cloob_cli.main import run

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    sys.argv = ["cloob", *arguments]
    run()


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401  (DDP needs it)
    from torch.multiprocessing import start_processes

    import cloob_cli.training.loop  # noqa: F401

    place, number, *words = sys.argv[1:]
    start_processes(work, (place, int(number), words), nprocs=int(number), start_method="fork")
