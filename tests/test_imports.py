"""Imports that are allowed between packages, and those that a quick command must not make."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment
from script_module import script_module
from tiny_model import save_images, save_tiny_model

PACKAGE = Path(__file__).resolve().parents[1] / "cloob_cli"

# What the modules of a folder may import from the package, anywhere in the file. The top level is ".".
BASE = {
    "errors",
    "strict_model",
    "atomic_files",
    "joint_rename",
    "file_locks",
    "assets",
    "parallel",
    "text_format",
    "path_text",
    "version",
    "launch",
    "process_exchange",
}
ALLOWED = {
    "core": BASE | {"core"},
    "recipe": BASE | {"core", "recipe"},
    "data": BASE | {"core", "data", "recipe"},
    "convert": BASE | {"core", "data", "convert"},
    "checkpoint": BASE | {"core", "data", "convert", "checkpoint"},
    "export": BASE | {"core", "data", "convert", "checkpoint", "export"},
    "registry": BASE | {"core", "data", "checkpoint", "convert", "registry"},
    "training": BASE | {"core", "data", "checkpoint", "evaluation", "training", "recipe"},
    "inference": BASE | {"core", "data", "checkpoint", "filing", "inference", "recipe"},
    "evaluation": BASE | {"core", "data", "checkpoint", "evaluation", "recipe"},
    "report": BASE | {"data", "report"},
    "filing": BASE | {"data", "filing"},
    "commands": BASE
    | {"console", "signals", "recipe", "commands", "training", "inference", "registry", "core", "data", "diagnosis"}
    | {"evaluation", "filing", "report", "convert", "export", "checkpoint"},
    "console": {"console", "errors", "text_format"},
}
# Modules that quick commands load: nothing heavy at their top level.
QUICK = ["paths", "entries", "inventory", "resolve", "hub", "bundle", "http", "storage"]
LIGHT = [
    "__init__",
    "__main__",
    "main",
    "signals",
    "garbage",
    "errors",
    "assets",
    "strict_model",
    "atomic_files",
    "joint_rename",
    "file_locks",
    "launch",
    "process_exchange",
    "parallel",
    "text_format",
    "path_text",
]
RECIPE = ["recipe/__init__", "recipe/model", "recipe/data", "recipe/training", "recipe/recipe", "recipe/reading"]
HEAVY = {
    "torch",
    "accelerate",
    "numpy",
    "pyarrow",
    "PIL",
    "huggingface_hub",
    "transformers",
    "safetensors",
    "tokenizers",
}


def modules(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    assert modules(folder)
    for path in modules(folder):
        for name in imports(path):
            if name.split(".")[0] != "cloob_cli":
                continue
            inner = name.removeprefix("cloob_cli.")
            allowed = any(inner == piece or inner.startswith(f"{piece}.") for piece in ALLOWED[folder])
            assert allowed, f"{path.relative_to(PACKAGE)} imports {name}"


def test_no_module_and_no_room_imports_itself_by_any_path() -> None:
    script = script_module("import_graph")
    graph = script.import_graph(PACKAGE)
    assert len(graph) > 50
    assert script.cycle(graph) is None
    assert script.cycle(script.rooms(graph)) is None


def test_a_circle_through_an_import_inside_a_function_is_found(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "low").mkdir(parents=True)
    (package / "high").mkdir()
    (package / "low" / "a.py").write_text("def f():\n    from package.high import b\n    return b\n")
    (package / "high" / "b.py").write_text("from package.low import c\n")
    (package / "low" / "c.py").write_text("")
    script = script_module("import_graph")
    graph = script.import_graph(package)
    assert script.cycle(graph) is None
    assert script.cycle(script.rooms(graph)) is not None
    (package / "low" / "c.py").write_text("from package.low.a import f\n")
    found = script.cycle(script.import_graph(package))
    assert sorted(found[1:]) == ["package.high.b", "package.low.a", "package.low.c"]


def test_only_assets_looks_for_shipped_files() -> None:
    finders = re.compile(r"(?<!\.)\b__file__|importlib.resources|from importlib import resources|pkgutil")
    found = {path.name for path in PACKAGE.rglob("*.py") if finders.search(path.read_text("utf-8"))}
    assert found == {"assets.py"}


def test_only_the_console_draws() -> None:
    users = {p.parent.name for p in PACKAGE.rglob("*.py") if any(n.split(".")[0] == "rich" for n in imports(p))}
    assert users == {"console"}


@pytest.mark.parametrize("module", [*LIGHT, "version", *(f"registry/{name}" for name in QUICK), *RECIPE])
def test_light_modules_import_nothing_heavy_at_their_top(module: str) -> None:
    names = imports(PACKAGE / f"{module}.py", top_level_only=True)
    assert not {name.split(".")[0] for name in names} & HEAVY


def test_commands_import_nothing_heavy_at_their_top() -> None:
    for path in [*modules("commands"), *modules("console")]:
        assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY, path


# What a page of help does without. (Typer itself may load pydantic, to check a command's options.)
SLOW = {"rich", "markdown_it", "asyncio", "cloob_cli.recipe", "cloob_cli.strict_model"}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY | SLOW | {"pydantic"}),
        (["--version"], HEAVY | SLOW),
        (["classify", "--help"], HEAVY | SLOW),
        (["train", "-h"], HEAVY | SLOW),
        (["zoo", "list"], HEAVY),
        (["zoo", "show", "cloob-rn50-yfcc"], HEAVY),
    ],
)
def test_quick_commands_load_nothing_heavy(arguments: list[str], unwanted: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cloob_cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(CLOOB_HOME=str(tmp_path)), check=True, timeout=60
    )
    loaded = set(re.findall(r"\|\s+([\w.]+)\s*$", done.stderr, re.MULTILINE))
    assert "cloob_cli" in loaded
    if tuple(map(int, importlib.metadata.version("typer").split(".")[:2])) < (0, 22):
        unwanted = unwanted - {"rich", "markdown_it"}  # typer itself loads them there, whatever rich_markup_mode says
    assert not loaded & unwanted


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, cloob_cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# Runs commands in one process and prints the modules that it then has.
MODULES = """
import sys
from cloob_cli import main
for arguments in sys.argv[1:]:
    main.app(arguments.split(), standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""
# What neither labels in words nor a query in words for JPEG files needs.
UNUSED = {
    "accelerate",
    "huggingface_hub",
    "httpx2",
    "lancedb",
    "pillow_heif",
    "PIL.TiffImagePlugin",  # one of the plugins that Pillow loads when it is asked for all
    "xml.dom.minidom",
    "cloob_cli.filing.filing",
    "cloob_cli.inference.reference_patterns",
    "cloob_cli.registry.bundle",
    "cloob_cli.registry.http",
    "cloob_cli.registry.hub",
    "cloob_cli.report.gallery",
    "cloob_cli.training",
}


def test_classify_and_search_load_no_more_than_they_need(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", context_length=40)
    save_images(tmp_path / "images", 2, suffix=".jpg")
    commands = [
        "classify images --label cat --label dog --model model --device cpu --quiet",
        "search images cat --model model --device cpu --quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *commands],
        capture_output=True,
        text=True,
        env=environment(CLOOB_HOME=str(tmp_path / "home")),
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    loaded = set(done.stderr.split())
    assert {"torch", "PIL.JpegImagePlugin"} <= loaded
    assert not loaded & UNUSED
