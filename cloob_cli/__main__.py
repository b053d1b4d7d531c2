"""The entry point of `cloob`, and of `python -m cloob_cli` (so that `accelerate launch -m cloob_cli train` works).

It imports little, so that Ctrl-C is handled while everything else is imported.
"""

import os
import sys
from typing import NoReturn

from cloob_cli import garbage, signals

# What tells an OpenMP library how its threads wait for work.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    signals.leave_at_once()
    let_waiting_threads_sleep()
    from cloob_cli import main

    try:
        main.run()
    except KeyboardInterrupt:  # a further one, while the first was being answered
        sys.exit(signals.EXIT_CODE)
    finally:
        signals.leave_at_once()  # while the interpreter ends
        garbage.no_more()


def let_waiting_threads_sleep() -> None:
    """Make torch's threads sleep while they have no work, unless the environment says otherwise.

    By default they run in circles for some milliseconds, on the cores that threads which decode images need: half of
    `cloob embed`'s processor time, and more beside other programs. OpenMP reads this once, when torch is imported.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


if __name__ == "__main__":
    run()
