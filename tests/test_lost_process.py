"""A process of a run that is lost shows in the others as one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

from cloob_cli import main
from cloob_cli.errors import CloobError
from cloob_cli.inference.processes import joined

# Two processes; the second ends in the middle of what they do together.
PAIR = """
import os, sys
import torch
import torch.distributed as distributed
from torch.multiprocessing import start_processes

def work(rank, meeting):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    distributed.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(0)
    from cloob_cli import main
    main.app = lambda standalone_mode: distributed.all_reduce(torch.ones(1))
    try:
        main.run()
    except SystemExit as end:
        print(end.code, flush=True)
    os._exit(0)

start_processes(work, sys.argv[1:], nprocs=2, start_method="fork")
"""
LINES = [
    "error: another process of this run was lost",
    "hint: its own message says why; a training run goes on with --resume",
]


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
def test_a_lost_process_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAIR, str(tmp_path / "meeting")],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert done.stderr.splitlines() == LINES


def test_a_lost_process_of_an_embed_run_has_a_hint_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    lost = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
    with pytest.raises(CloobError) as raised, joined():
        raise lost
    assert str(raised.value) == "another process of this run was lost, so nothing was written"
    assert raised.value.hint == "batches that are finished are kept: the same command goes on from there"
    with pytest.raises(RuntimeError, match="shapes do not fit"), joined():
        raise RuntimeError("shapes do not fit")


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class DistBackendError(RuntimeError):  # as NCCL's errors are called
        pass

    for count, known in ((2, True), (1, False)):
        for name, value in (("RANK", "0"), ("WORLD_SIZE", str(count))):
            monkeypatch.setenv(name, value)
        assert (main._expected(DistBackendError("NCCL error")) is not None) == known
        assert main._expected(RuntimeError("shapes do not fit")) is None
