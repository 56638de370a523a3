"""What the layout promises: the direction of imports, one door to each engine, nothing heavy where it is not needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinyllama"
SOURCES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "main.py"]

LAYERS = [
    {"config", "kernels"},
    {"plan", "model", "data", "engine", "tracking"},
    {"exchange"},
    {"evaluate"},
    {"train", "scaling", "launch"},
    {"tasks", "status"},
    {"fits", "jobs", "models"},
    {"study", "transfers", "preload"},
    {"main"},
]
"""From the bottom up: a package imports from layers below its own, and within its layer only as WITHIN says."""

WITHIN = {("engine", "model")}
"""The engine takes the model it is to train."""

DOORS = {
    "deepspeed": "engine/zero.py",
    "mlflow": "tracking/mlflow.py",
    "hydra": "main.py",
    "submitit": "launch/slurm.py",
    "lm_eval": "evaluate/harness.py",
    "gguf": "exchange/gguf.py",
}
"""The one file that may import each."""

LIGHT = ("config", "plan", "scaling")
"""Packages that answer without torch."""


def layer(package: str) -> int:
    return next(index for index, packages in enumerate(LAYERS) if package in packages)


def home(file: Path) -> str:
    """The package a file belongs to; a file beside the packages is one of its own."""
    inside = file.relative_to(PACKAGE if file.is_relative_to(PACKAGE) else ROOT)
    return inside.parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def wrong_direction(file: Path, imported: set[str]) -> list[str]:
    """The packages of ours that a file must not import from."""
    here = home(file)
    packages = {name.split(".")[1] for name in imported if name.startswith("tinyllama.")}
    wrong = []
    for package in packages - {here, "__version__"}:
        beside = layer(package) == layer(here) and (here, package) not in WITHIN and here != "launch"
        if layer(package) > layer(here) or beside:
            wrong.append(package)
    return wrong


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    if file != PACKAGE / "__init__.py":
        assert not wrong_direction(file, imports(file))


def test_a_wrong_direction_would_show() -> None:
    assert wrong_direction(PACKAGE / "config" / "load.py", {"tinyllama.plan.plan"}) == ["plan"]
    assert wrong_direction(PACKAGE / "data" / "loader.py", {"tinyllama.engine.zero"}) == ["engine"]
    assert wrong_direction(PACKAGE / "model" / "llama.py", {"tinyllama.engine"}) == ["engine"]


@pytest.mark.parametrize("library", DOORS)
def test_each_engine_has_one_door(library: str) -> None:
    users = [file for file in SOURCES if any(name.split(".")[0] == library for name in imports(file))]
    assert [str(file.relative_to(ROOT)).removeprefix("tinyllama/") for file in users] == [DOORS[library]]


def test_rank_variables_have_one_reader() -> None:
    readers = [file.name for file in SOURCES if '"LOCAL_RANK"' in file.read_text()]
    assert readers == ["distributed.py"]


def test_light_packages_answer_without_torch() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for package in LIGHT
        for file in sorted((PACKAGE / package).glob("*.py"))
    ]
    assert len(modules) > 8
    code = f"import sys\nfor name in {modules}: __import__(name)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_one_room(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 300
    assert len(file.relative_to(ROOT).parts) <= 3, "folders are one deep"
    assert file.stem not in {"utils", "common", "helpers", "base", "misc"}
