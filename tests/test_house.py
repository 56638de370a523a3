"""The project's own papers: the README's commands work, the environment and the lock say what pyproject says."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from packaging.requirements import Requirement

from tinyllama.config.load import load
from tinyllama.plan.plan import make_plan

ROOT = Path(__file__).parents[1]
PAPERS = ["README.md", "sweeps/README.md", *(str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("docs/*.md")))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(paper: str) -> list[str]:
    """The command lines in a paper's code, inline and fenced, without comments and prompts."""
    text = (ROOT / paper).read_text()
    fenced = re.findall(r"^```(?:bash|console|sh)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in fenced for line in block.splitlines()]
    lines += re.findall(r"`(python main\.py[^`\n]*|make [a-z]+)`", text)
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


MAINS = sorted({(paper, line) for paper in PAPERS for line in commands(paper) if line.startswith("python main.py")})
FLAGS = {"-m", "--cfg", "job", "--info", "defaults-tree", "--help", "-sc", "install=bash"}


def test_there_are_commands_to_check() -> None:
    assert len(MAINS) > 5


@pytest.mark.parametrize(("paper", "line"), MAINS, ids=[f"{paper}: {line}" for paper, line in MAINS])
def test_a_command_composes_and_passes_the_gate(composed: Callable[..., DictConfig], paper: str, line: str) -> None:
    words = shlex.split(line)[2:]
    overrides = [word for word in words if word not in FLAGS]
    assert all("=" in word for word in overrides), "an override is key=value"
    sweep = "-m" in words
    # a grid's points differ in values only: the first stands for all
    point = [re.sub(r",.*", "", word) if sweep else word for word in overrides]
    make_plan(load(composed(*point)))


@pytest.mark.parametrize("paper", PAPERS)
def test_the_targets_it_names_exist(paper: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {line.split()[1] for line in commands(paper) if line.startswith("make ")}
    assert named <= targets


@pytest.mark.parametrize("paper", [*PAPERS, "CHANGELOG.md"])
def test_its_links_lead_somewhere(paper: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / paper).read_text()):
        if "://" not in target:
            assert ((ROOT / paper).parent / target).exists(), target


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {
        re.split(r"[<>=;\[ ]", line)[0].lower().replace("_", "-"): line for line in lines if line[:1] not in ("", "#")
    }


def test_the_lock_holds_every_dependency_within_its_range() -> None:
    pins = locked()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for text in wanted:
        requirement = Requirement(text)
        pin = pins[requirement.name]
        if requirement.name in ("torch", "triton"):
            assert Requirement(pin) == requirement, "a GPU machine keeps its build"
        else:
            assert requirement.specifier.contains(pin.partition("==")[2]), pin


def test_the_conda_environment_is_this_package_and_its_lock() -> None:
    import yaml

    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [python] = [one for one in environment["dependencies"] if isinstance(one, str) and one.startswith("python ")]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert python.removeprefix("python ").startswith(f">={lowest}")
    [pip] = [one["pip"] for one in environment["dependencies"] if isinstance(one, dict)]
    assert pip == ["-r requirements.lock", "-e ."]


def test_every_study_is_described() -> None:
    described = (ROOT / "sweeps" / "README.md").read_text()
    for study in sorted((ROOT / "sweeps").glob("*.yaml")):
        assert f"| `{study.stem}` |" in described
