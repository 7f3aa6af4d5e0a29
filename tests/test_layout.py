"""What the layout promises: imports point at the core, data folders hold data, planning never loads torch."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    "cards commands errors hubs owner",
    "inert untrusted",
    "atomic behind device inputs interface keys leases memory neighbours paths stats",
    "declared engines progress regress_stats speed store turns",
    "data keeping",
    "data_files",
    "image_folders label_files prompt_files",
    "contents suite",
    "items models registry",
    "metrics",
    "backbones claims plan",
    "gates needs scoring states",
    "journal",
    "edits sample record",
    "consistency cost",
    "fits",
    "baseline evaluators merged tables testbed",
    "catalogue cite conformance doctor erase evidence fetch neighbourhood new_method page "
    "referenced regress verify worker",
    "archive compare prune regress_report rescore run suite_table",
    "completion frames perf recompute",
    "api cli",
    "torture",
)
"""Rooms of `benchmark/`, the core first: each imports from lines above its own only."""

TORCH_FREE = (
    "api archive atomic baseline cards catalogue cite claims cli commands compare completion consistency cost data "
    "data_files declared device engines erase errors evidence frames hubs image_folders inert inputs interface "
    "items keeping keys leases memory models new_method paths plan progress prompt_files prune record referenced "
    "registry regress regress_report regress_stats speed stats store suite turns untrusted verify"
).split()
"""Modules of `benchmark` that answer at once, on a machine without a GPU stack; all of `tables` does too."""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` from the root, as a user would who stands there."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(path: Path, *, inside: bool = True) -> set[str]:
    """Dotted names that the file imports, types apart; without `inside`, only those that load together with it."""
    found: set[str] = set()
    queue: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: import by full name; layers are read from it"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif is_type_checking(node) or (not inside and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        queue += ast.iter_child_nodes(node)
    return found


def inner(names: set[str]) -> set[str]:
    """`benchmark.plan.Cell` → `plan`, for the imports that stay inside `benchmark`."""
    return {name.split(".")[1] for name in names if name.startswith("benchmark.")}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def rooms() -> dict[str, list[Path]]:
    """Room of `benchmark/` → its files: `plan` → plan.py, `tables` → tables/*.py."""
    found: dict[str, list[Path]] = {}
    for path in sources("benchmark"):
        room = path.relative_to(ROOT / "benchmark").parts[0].removesuffix(".py")
        found.setdefault(room, []).append(path)
    found.pop("__init__")
    return found


@pytest.mark.parametrize("room", sorted(rooms()))
def test_imports_point_at_the_core(room: str):
    layer = {name: i for i, line in enumerate(LAYERS) for name in line.split()}
    assert room in layer, f"give benchmark/{room} its place in LAYERS"
    for path in rooms()[room]:
        for name in inner(imports(path)) - {room}:
            assert layer[name] < layer[room], f"{path.relative_to(ROOT)} imports {name}, which stands further out"


def test_only_the_registry_knows_methods():
    for path in sources("benchmark"):
        if path.name != "registry.py":
            foreign = {name for name in imports(path) if name.split(".")[0] == "methods"}
            assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}; ask benchmark.registry by name"


def test_methods_know_the_interface_and_backbones_only():
    allowed = {"interface", "backbones", "errors"}
    for path in sources("methods"):
        beyond = inner(imports(path)) - allowed
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}; methods may use {sorted(allowed)}"


def test_tables_read_records_only():
    for path in sources("benchmark/tables"):
        beyond = inner(imports(path)) & {"backbones", "edits", "plan", "registry", "sample", "store"}
        assert not beyond, (
            f"{path.relative_to(ROOT)} imports {sorted(beyond)}; all that a table shows is in the records"
        )


def test_planning_and_tables_load_no_torch():
    names = [f"benchmark.{m}" for m in TORCH_FREE] + [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources("benchmark/tables")
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'peft', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = python(code, PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


METHODS = [p for p in sources("methods") if not p.name.startswith(("_", "test_"))]


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_method_files_load_no_torch(path: Path):
    heavy = {
        name
        for name in imports(path, inside=False)
        if name.split(".")[0] in {"torch", "transformers", "diffusers", "peft"}
    }
    assert not heavy, f"{path.name} imports {sorted(heavy)} on top: planning reads every method file, without torch"


def test_data_folders_hold_data_only():
    paths = [path for folder in ("datasets", "suites") for path in (ROOT / folder).rglob("*")]
    code = [path for path in paths if path.suffix in {".py", ".pyc", ".so"}]
    assert not code, f"{code[0]} would make the folder a package that shadows Hugging Face's library"


def test_datasets_is_not_taken_for_the_library():
    code = (
        "import importlib.util, transformers\n"
        "found = importlib.util.find_spec('datasets')\n"
        "print(found and found.submodule_search_locations, transformers.utils.is_datasets_available())"
    )
    done = python(code, PYTHONSAFEPATH="1")  # as the Makefile exports it
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    if not any(d.metadata["Name"] == "datasets" for d in importlib.metadata.distributions()):
        assert done.stdout.strip() == "None False"


def test_the_unsafe_path_is_what_we_guard_against():
    """Without PYTHONSAFEPATH the folder is found as a namespace package: the guard above would see it."""
    done = python("import importlib.util; print(importlib.util.find_spec('datasets'))", PYTHONSAFEPATH="")
    assert str(ROOT / "datasets") in done.stdout


def test_the_package_list_is_the_folders():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in [*sources("benchmark"), *sources("methods")]}
    assert {name for name in listed if "._data" not in name} == found
    assert "datasets" not in listed


def test_configuration_names_no_registry(tracked: list[Path]):
    host = re.compile(r"--(extra-)?index|find-links|https?://[^\s\"']*(pypi|pythonhosted|npmjs|/simple\b|/whl)", re.I)
    names = {".npmrc", "Makefile", "constraints.txt", "package-lock.json", "package.json", "run"}
    for path in tracked:
        if path.name in names or path.suffix in {".cfg", ".ini", ".lock", ".toml"}:
            found = host.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)} names a registry: {found[0]}"


def test_the_tree_stays_small(tracked: list[Path]):
    size = sum(path.stat().st_size for path in tracked)
    assert size < 45 * 2**20, f"tracked files take {size / 2**20:.1f} MiB; at most 45"


def test_weights_are_safetensors(tracked: list[Path]):
    opaque = [p for p in tracked if p.suffix in {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}]
    assert not opaque, f"{opaque[0]} can run code when it is loaded; save it as safetensors"
