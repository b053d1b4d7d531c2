"""`cloob` in two processes, as a launcher starts them."""

from __future__ import annotations

import sys

TWO_PROCESSES = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "cloob_cli",
]  # fmt: skip
