"""Write the diagram of imports and the tree of files in docs/architecture.md.

python scripts/import_graph.py            writes both
python scripts/import_graph.py --check    exit code 1 where the page is out of date
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cloob_cli"
PAGE = ROOT / "docs" / "architecture.md"


def import_graph(package: Path) -> dict[str, set[str]]:
    """Map each module of a package to those of it that it imports, imports inside functions included.

    Args:
        package: the package's folder.

    Returns:
        {module: modules}, dotted names such as `cloob_cli.core.model`; a package's own name stands for its __init__.
        Importing a submodule loads the __init__ of its packages too; those edges are left out.
    """
    files = {_module_name(package, path): path for path in sorted(package.rglob("*.py"))}
    return {name: _imported(path, files) - {name} for name, path in files.items()}


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One cycle of a graph as its list of nodes, first and last the same; None where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as problem:
        return list(reversed(problem.args[1]))
    return None


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between the parts of the package: its folders, and its single files at the top."""
    found: dict[str, set[str]] = {}
    for module, imported in graph.items():
        room = _room(module)
        found.setdefault(room, set()).update({_room(name) for name in imported} - {room})
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """A graph without cycles less its edges that a longer way replaces (its transitive reduction)."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph.get(node, ())
        return seen

    return {
        node: {target for target in targets if not any(target in reachable(other) for other in targets - {target})}
        for node, targets in graph.items()
    }


def diagram(graph: dict[str, set[str]]) -> str:
    """The rooms and their imports in Mermaid's notation, without edges that follow from others."""
    lines = ["graph TD"]
    for room, targets in sorted(reduced(rooms(graph)).items()):
        lines += [f"    {room} --> {target}" for target in sorted(targets)]
    return "\n".join(lines)


def tree(package: Path) -> str:
    """The package's files with the first line of what each says of itself."""
    lines = [f"{package.name}/"]

    def walk(folder: Path, depth: int) -> None:
        files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
        folders = sorted(path.parent for path in folder.glob("*/__init__.py"))
        for path in [*files, *folders]:
            name = f"{'  ' * depth}{path.name}{'/' if path.is_dir() else ''}"
            lines.append(f"{name:<38}{_first_line(path / '__init__.py' if path.is_dir() else path)}".rstrip())
            if path.is_dir():
                walk(path, depth + 1)

    walk(package, 1)
    return "\n".join(lines)


def page(text: str) -> str:
    """docs/architecture.md with its two made parts as they are now."""
    graph = import_graph(PACKAGE)
    for language, content in (("mermaid", diagram(graph)), ("text", tree(PACKAGE))):
        text = re.sub(
            rf"```{language}\n.*?```", lambda _, c=content, w=language: f"```{w}\n{c}\n```", text, flags=re.DOTALL
        )
    return text


def _module_name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, files: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in files}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a name is a module of its own, or something that the module holds
                inner = f"{node.module}.{alias.name}"
                found |= {name for name in (inner if inner in files else node.module,) if name in files}
    return found


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "top"


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    made = page(text)
    if "--check" in sys.argv[1:]:
        if made != text:
            print("docs/architecture.md is out of date: run python scripts/import_graph.py")
        return int(made != text)
    PAGE.write_text(made, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
