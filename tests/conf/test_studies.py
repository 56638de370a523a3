"""Every point of every shipped study can be planned."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import DictConfig

from tinyllama.config.load import digest, load
from tinyllama.plan.plan import make_plan

STUDIES = sorted(file.stem for file in (Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_point_plans_and_is_a_run_of_its_own(composed: Callable[..., DictConfig], study: str) -> None:
    whole = compose("config", overrides=[f"sweeps={study}", "task=plan"], return_hydra_config=True)
    assert whole.hydra.mode.name == "MULTIRUN"
    grid = {key: str(values).split(",") for key, values in whole.hydra.sweeper.params.items()}
    points = [
        load(
            composed(
                f"sweeps={study}", "task=plan", *(f"{key}={value}" for key, value in zip(grid, point, strict=True))
            )
        )
        for point in itertools.product(*grid.values())
    ]
    for point in points:
        make_plan(point)
    assert len({digest(point) for point in points}) == len(points) > 1
