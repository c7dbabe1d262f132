"""The import rule: a room imports only from rooms before it. Read from the source, so that lazy imports count too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "effarch"

ROOMS = (
    {"typing"},
    {"config", "registry"},
    {"axes"},
    {"ops"},
    {"kernels"},
    {"nn"},
    {"mixers"},
    {"models"},
    {"parallel"},
    {"training"},
    {"data"},
    {"hub"},
    {"distill"},  # eval shares its distances with the losses
    {"eval"},
    {"experiment"},  # what a run is, for train/ and for plans
    {"bench"},
    {"plan"},
    {"cli"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
NOT_IN_OPS = {"flax", "pydantic", "effarch.config", "effarch.registry"}
OUTSIDE = {"train", "tests"}
HEAVY = {
    "orbax",
    "datasets",
    "matplotlib",
    "rich",
    "transformers",
    "tokenizers",
}  # only inside the verb that needs them
LIGHT = {"__init__", "cli"}


def violations(package: Path) -> list[str]:
    """Every import that breaks a rule, as ``file:line: reason``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if room != "__init__" and room not in RANK:
            found.append(f"{path.name}:1: {room} is not in the list of rooms")
            continue
        for line, module in _imports(tree, ("effarch", *parts)):
            if reason := _reason(room, module):
                found.append(f"{path.name}:{line}: {reason}")
        if room in LIGHT:
            early = [(n, m) for n, m in _imports(_module_level(tree), ("effarch", *parts)) if m.split(".")[0] in HEAVY]
            found += [f"{path.name}:{line}: {module} at module level" for line, module in early]
    return found


def _reason(room: str, module: str) -> str | None:
    top, _, rest = module.partition(".")
    if top in OUTSIDE:
        return f"effarch imports {top}"
    if room == "ops" and any(module == name or module.startswith(name + ".") for name in NOT_IN_OPS):
        return f"ops imports {module}"
    target = rest.split(".")[0]
    if top != "effarch" or room == "__init__" or target not in RANK or RANK[target] <= RANK[room]:
        return None
    return f"{room} imports {target}, which comes after it"


def _imports(tree: ast.AST, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; ``from effarch import ops`` is ``effarch.ops``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # a package's __init__ stands one level deeper than its name: module ends with "__init__", as a file's does
            base = ".".join(module[: -node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def _module_level(tree: ast.Module) -> ast.Module:
    """The statements that run on import: no bodies of functions, nothing under TYPE_CHECKING."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Prune().visit(ast.parse(ast.unparse(tree)))


def test_rooms_import_only_from_rooms_before_them():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    "file, source, reason",
    [
        ("ops/a.py", "from effarch.models.lm import LM", "ops imports models, which comes after it"),
        ("ops/a.py", "def f():\n    import effarch.kernels", "ops imports kernels, which comes after it"),
        ("ops/deep/a.py", "from ...nn import norm", "ops imports nn, which comes after it"),
        ("ops/__init__.py", "from ..nn import norm", "ops imports nn, which comes after it"),
        ("axes.py", "from . import ops", "axes imports ops, which comes after it"),
        ("config/load.py", "from effarch import axes", "config imports axes, which comes after it"),
        ("ops/a.py", "from flax import nnx", "ops imports flax.nnx"),
        ("ops/a.py", "import pydantic.fields", "ops imports pydantic.fields"),
        ("ops/a.py", "from effarch.config import Config", "ops imports effarch.config.Config"),
        ("models/a.py", "def f():\n    from train.distill import main", "effarch imports train"),
        ("models/a.py", "import tests.tolerances", "effarch imports tests"),
        ("utils.py", "", "utils is not in the list of rooms"),
        ("cli.py", "import rich.table", "rich.table at module level"),
        ("cli.py", "try:\n    from orbax import checkpoint\nexcept ImportError:\n    pass", "at module level"),
        ("__init__.py", "class A:\n    import datasets", "datasets at module level"),
    ],
)
def test_checker_finds_a_planted_violation(tmp_path, file, source, reason):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1 and reason in found[0]


@pytest.mark.parametrize(
    "file, source",
    [
        ("models/a.py", "from effarch.ops import scan\nfrom . import b\nimport flax, pydantic, trainer"),
        ("ops/deep/a.py", "from ..segments import compact\nfrom effarch import axes, typing"),
        ("registry.py", "from effarch.config import Config"),
        ("cli.py", "import richer\ndef verb():\n    import rich\n    from effarch import bench"),
        ("cli.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import datasets"),
    ],
)
def test_checker_accepts_what_is_allowed(tmp_path, file, source):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("module", ["effarch", "effarch.cli"])
def test_importing_is_light(module):
    assert not loaded(module) & HEAVY


@pytest.mark.parametrize("module", ["effarch.models.lm", "train.distill"])
def test_what_takes_long_is_imported_where_it_is_used(module):
    """Beyond what jax and flax bring themselves."""
    assert not (loaded(module) - loaded("jax, flax.nnx")) & (HEAVY | {"grain", "pyarrow", "tensorstore", "torch"})


@cache
def loaded(modules: str) -> set[str]:
    """What a fresh process has imported after ``import modules``."""
    out = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.returncode == 0, out.stderr
    return set(out.stdout.split())
