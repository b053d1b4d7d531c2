"""Draw what `cloob classify examples/pictures` shows on a terminal: docs/classify.svg, the README's image.

python scripts/draw_terminal.py

The command runs in a pseudo-terminal of its own, so that the drawing shows what a person sees, with the model that is
shipped. Run it again when that model or the output changes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "classify.svg"
ARGUMENTS = ["classify", "examples/pictures", "--labels", "examples/labels.txt"]
COLUMNS = 92


def shown_on_terminal(arguments: list[str], columns: int) -> str:
    """Everything that cloob writes to a terminal of that width, with its escape sequences."""
    import fcntl
    import pty
    import struct
    import termios

    keeper, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    settings = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "CLOOB_MODEL")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cloob_cli", *arguments],
        cwd=ROOT,
        env=settings | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    pieces = []
    while True:
        try:
            piece = os.read(keeper, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    if process.wait(60):
        raise SystemExit(f"cloob left with {process.returncode}")
    return b"".join(pieces).decode("utf-8")


def final_lines(shown: str) -> list[str]:
    """The lines that stand on the screen in the end, with their colors.

    What Rich's bars use is understood: a line is erased and written again, and the cursor goes up by some lines.
    """
    lines = [""]
    row = 0
    for piece in re.split(r"(\r\n|\r|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[hl])", shown):
        up = re.fullmatch(r"\x1b\[(\d*)A", piece)
        if piece == "\r\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif up:
            row = max(0, row - int(up[1] or 1))
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece != "\r" and not piece.startswith("\x1b[?25"):
            lines[row] += piece
    return [line for line in lines if line]


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(f"\x1b[32m$ \x1b[0mcloob {' '.join(ARGUMENTS)}"))
    shown_on_terminal(ARGUMENTS, COLUMNS)  # the first run on a machine introduces the model in a long line
    for line in final_lines(shown_on_terminal(ARGUMENTS, COLUMNS)):
        console.print(Text.from_ansi(line), soft_wrap=True)
    # Without the fonts that Rich's form would have a browser fetch: every reader has one with fixed width.
    form = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="cloob", theme=MONOKAI, code_format=form, unique_id="cloob")
    OUTPUT.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    main()
