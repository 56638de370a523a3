"""What cannot run is refused before anything is loaded: here torch, if touched, would break the import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Here


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch fails."""
    (tmp_path / "torch.py").write_text('raise ImportError("torch was touched")\n')
    return {"PYTHONPATH": str(tmp_path)}


def test_missing_data_is_refused_with_the_command_that_prepares_it(here: Here, no_torch: dict[str, str]) -> None:
    out = here.run("model=1.1b", "data=slimpajama_starcoder", base=(), expect=2, **no_torch)
    assert "no shards of slimpajama, starcoder in datasets/slimpajama_starcoder-" in out
    assert "python main.py task=prepare model=1.1b data=slimpajama_starcoder data.sources.slimpajama.raw=" in out


def test_missing_gpus_are_told_beside_what_else_is_wrong(here: Here) -> None:
    line = ["parallelism=single", "hardware.memory_gb=1.01", "budget.tokens=1"]
    out = here.run(*line, base=(), expect=2, CUDA_VISIBLE_DEVICES="")
    told = [line.split(":")[0] for line in out.splitlines()]
    assert told == [
        *("refused budget", "refused schedule.warmup_steps"),
        *("refused parallelism.micro_batch", "refused parallelism.gpus"),
    ]


def test_the_plan_needs_neither_data_nor_torch(here: Here, no_torch: dict[str, str]) -> None:
    out = here.run("experiment=tinyllama_v1", "task=plan", "run_dir=runs/planned", base=(), **no_torch)
    plan = json.loads((here.folder / "runs/planned/plan.json").read_text())
    assert plan["parameters"]["total"] == 1_100_048_384
    assert plan["steps"] == 1_430_512
    assert "1,430,512" in out
    assert "1,100,048,384" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        ("model=nanoo", "Could not find 'model/nanoo'"),
        ("sweeps=token_budgets", "Could not find 'sweeps/token_budgets'"),
        ("kernels=triton", "kernels.backend: triton needs a GPU, and parallelism.device=cpu"),
        ("optimizer.lr=[1", "no viable alternative at input"),
        ("model=30", "Config group override must be a string or a list. Got int"),
    ],
)
def test_a_bad_line_is_refused(here: Here, no_torch: dict[str, str], line: str, says: str) -> None:
    out = here.run(line, expect=2, **no_torch)
    assert says in out
    assert "refused" in out
    assert "Traceback" not in out


def test_one_bad_point_refuses_the_line_before_any_is_run(here: Here, no_torch: dict[str, str]) -> None:
    out = here.run("-m", "budget.tokens=50K,4K", "name=early", expect=2, **no_torch)
    assert "schedule.warmup_steps: 20 must be fewer than the run's steps, 2" in out
    assert not list((here.folder / "runs").glob("early-*"))


def test_gpus_that_are_not_here_are_refused(here: Here) -> None:
    out = here.run("parallelism=zero1", "parallelism.micro_batch=1", expect=2, CUDA_VISIBLE_DEVICES="")
    assert "parallelism.gpus: 4 are asked for on each machine and 0 are here: choose parallelism=cpu" in out
