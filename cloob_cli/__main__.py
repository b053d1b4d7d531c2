"""The entry point of `cloob`, and of `python -m cloob_cli` (so that `accelerate launch -m cloob_cli train` works).

It imports little, so that Ctrl-C is handled while everything else is imported.
"""

import sys
from typing import NoReturn

from cloob_cli import signals


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    signals.leave_at_once()
    from cloob_cli import main

    try:
        main.run()
    except KeyboardInterrupt:  # a further one, while the first was being answered
        sys.exit(signals.EXIT_CODE)
    finally:
        signals.leave_at_once()  # while the interpreter ends


if __name__ == "__main__":
    run()
