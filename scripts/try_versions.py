"""Run the test suite with the lowest and with the newest releases that pyproject.toml allows.

    python scripts/try_versions.py lowest
    python scripts/try_versions.py newest --python python3.13
    python scripts/try_versions.py lowest -- tests/core -k loss     # what follows goes to pytest

Needs the program `uv` (`pip install uv`) and several GB of disk: each set is an environment of its own under
.versions/, which is kept for the next time. DeprecationWarnings are no errors here: old releases warn of each other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
QUIET = ("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def environment(kind: str, python: str) -> Path:
    """Make or bring up to date `.versions/KIND`; the path of its Python."""
    folder = ROOT / ".versions" / kind
    if not folder.exists():
        subprocess.run(["uv", "venv", "--python", python, folder], check=True)
    own = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install: list[str | Path] = [
        "uv",
        "pip",
        "install",
        "--python",
        own,
        "--resolution",
        RESOLUTIONS[kind],
        "--upgrade",
    ]
    subprocess.run([*install, "--editable", ".[dev]"], cwd=ROOT, check=True)
    return own


def show_versions(python: Path) -> None:
    """Print what the direct dependencies are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = sorted({requirement.partition(">")[0].partition("[")[0] for requirement in wanted})
    code = (
        "import sys, importlib.metadata as m; print(sys.version.split()[0], "
        "*(f'{name} {m.version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    subprocess.run([python, "-c", code, *names], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=RESOLUTIONS)
    parser.add_argument("--python", default=sys.executable, help="the interpreter, or its name")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    chosen = parser.parse_args(sys.argv[1:end])
    python = environment(chosen.kind, chosen.python)
    show_versions(python)
    filters = [word for each in QUIET for word in ("-W", each)]
    settings = os.environ | {"PYTHONWARNINGS": ",".join(("default", *QUIET)), "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, "-m", "pytest", *filters, *sys.argv[end + 1 :]], cwd=ROOT, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main())
