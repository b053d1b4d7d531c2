"""Change the program at one point at a time and see whether the tests notice: `python scripts/mutants.py [WORD...]`.

`mutations.toml` beside this file lists the changes with the tests that must fail. Each is found by its text wherever in
the package it stands (white space does not count), applied in a temporary copy of the tree, and the tests run there.
WORDs choose the changes whose names hold one of them; `--list` only looks whether all still apply.

Exit code 1: a change survived, no longer applies, or its tests do not pass without it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "cloob_cli"
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "dist", "build", "site")
_SLOW_IMPORTS = (
    "torch",
    "accelerate",
    "pyarrow.parquet",
    "huggingface_hub",
    "PIL.Image",
    "pydantic",
    "ftfy",
)
_TESTS_FAILED = 1  # pytest's exit code; others say that it could not run them


@dataclass(frozen=True)
class Mutation:
    """One change: `old`, which stands once in the package, becomes `new`.

    Attributes:
        tests: names of test functions, wherever they stand; one of them must fail.
        equivalent: why no test can notice, where none can.
    """

    name: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...] = ()
    equivalent: str = ""

    def places(self, root: Path) -> list[tuple[Path, re.Match[str]]]:
        """Every place of the old text: a file and a match in it."""
        pattern = re.compile(r"\s+".join(re.escape(word) for word in self.old.split()))
        files = sorted((root / PACKAGE).rglob("*.py"))
        return [(path, match) for path in files for match in pattern.finditer(path.read_text(encoding="utf-8"))]

    def obstacle(self, root: Path) -> str | None:
        """The reason why it no longer applies; None where it does."""
        count = len(self.places(root))
        if count != 1:
            return f"its text stands {count} times in {PACKAGE}/"
        try:
            self.chosen_tests(root)
        except LookupError as problem:
            return str(problem)
        return None

    def chosen_tests(self, root: Path) -> tuple[str, ...]:
        """The tests as pytest takes them: "FILE::NAME"; LookupError where there is none of a name."""
        texts = {path: path.read_text(encoding="utf-8") for path in sorted((root / "tests").rglob("test_*.py"))}
        found = []
        for name in self.tests:
            files = [path for path, text in texts.items() if re.search(rf"^def {name}\(", text, re.MULTILINE)]
            if not files:
                raise LookupError(f"there is no test {name}")
            found += [f"{path.relative_to(root)}::{name}" for path in files]
        return tuple(found)


def read_mutations(path: Path) -> list[Mutation]:
    """The list; a key that is unknown or missing is an error."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    mutations = [Mutation(**entry | {"tests": tuple(entry.get("tests", ()))}) for entry in entries]
    names = [mutation.name for mutation in mutations]
    twice = {name for name in names if names.count(name) > 1}
    unclear = [one.name for one in mutations if bool(one.tests) == bool(one.equivalent)]
    if twice or unclear:
        raise ValueError(f"named twice: {sorted(twice)}; neither or both of tests and equivalent: {unclear}")
    return mutations


@contextmanager
def changed(mutation: Mutation, root: Path) -> Iterator[str]:
    """The tree with the change, and the place of it as text; LookupError where it no longer applies."""
    if problem := mutation.obstacle(root):
        raise LookupError(problem)
    ((path, match),) = mutation.places(root)
    before = path.read_text(encoding="utf-8")
    path.write_text(before[: match.start()] + mutation.new + before[match.end() :], encoding="utf-8")
    try:
        yield f"{path.relative_to(root)}:{before.count(chr(10), 0, match.start()) + 1}"
    finally:
        path.write_text(before, encoding="utf-8")


def run_tests(root: Path, tests: tuple[str, ...], seconds: float) -> tuple[int, str] | None:
    """pytest up to the first failure: its exit code and what it said; None where it was still at it after `seconds`.

    It runs in a fork of this process, where what takes long to import is imported already.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                os.chdir(root)
                # Without compiled files: a change within a second, of equal length, would not be seen.
                os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
                sys.dont_write_bytecode = True
                sys.path.insert(0, str(root))
                options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-profile=first-failure"]
                code = int(pytest.main([*options, *tests]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        end = time.monotonic() + seconds
        while not (status := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            time.sleep(0.05)
        said.seek(0)
        return os.waitstatus_to_exitcode(status[1]), said.read()


def verdict(mutation: Mutation, root: Path) -> tuple[str, str]:
    """One of "killed", "SURVIVED", "equivalent", "no longer applies", and a remark."""
    try:
        with changed(mutation, root) as place:
            if mutation.equivalent:
                return "equivalent", f"{place}: {mutation.equivalent}"
            done = run_tests(root, mutation.chosen_tests(root), seconds=600)
    except LookupError as problem:
        return "no longer applies", str(problem)
    if done is None:
        return "killed", f"{place}: the tests do not end"
    code, said = done
    if code == _TESTS_FAILED:
        return "killed", f"{place}: {_first_failure(said)}"
    if code == 0:
        return "SURVIVED", f"{place}: {mutation.why}"
    return (
        "no longer applies",
        f"{place}: pytest could not run the tests, exit code {code} ({(said.splitlines() or [''])[-1]})",
    )


def _first_failure(output: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return found.group(1) if found else ""


@contextmanager
def copied() -> Iterator[Path]:
    """A temporary copy of the tree."""
    with tempfile.TemporaryDirectory(prefix="cloob-mutants-") as folder:
        yield Path(shutil.copytree(ROOT, Path(folder) / "tree", ignore=_LEFT_OUT, symlinks=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only changes with one of these in their names")
    parser.add_argument("--list", action="store_true", help="only look whether they still apply")
    parser.add_argument("--directly", action="store_true", help="do not run the tests without any change first")
    chosen = parser.parse_args()
    mutations = read_mutations(Path(__file__).with_name("mutations.toml"))
    if chosen.words:
        mutations = [one for one in mutations if any(word in one.name for word in chosen.words)]
    if chosen.list:
        stale = [f"no longer applies: {one.name} ({problem})" for one in mutations if (problem := one.obstacle(ROOT))]
        print(*stale, f"{len(mutations)} changes", sep="\n")
        return bool(stale)
    for name in _SLOW_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    counts: dict[str, int] = {}
    with copied() as root:
        sound = [one for one in mutations if not one.obstacle(root)]
        together = tuple(sorted({test for one in sound for test in one.chosen_tests(root)}))
        if together and not chosen.directly:
            unchanged = run_tests(root, together, seconds=3600)
            if unchanged is None or unchanged[0]:
                print(unchanged[1] if unchanged else "they do not end")
                print("the tests do not pass without any change")
                return 1
        for mutation in mutations:
            started = time.monotonic()
            outcome, remark = verdict(mutation, root)
            counts[outcome] = counts.get(outcome, 0) + 1
            print(f"{outcome:18} {mutation.name} ({time.monotonic() - started:.0f} s) {remark}", flush=True)
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())))
    return bool(counts.keys() - {"killed", "equivalent"})


if __name__ == "__main__":
    sys.exit(main())
