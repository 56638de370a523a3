"""Every point of every shipped study can be planned, without data, and its grid is the one that its question needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tinyllama.config.load import digest, load
from tinyllama.config.schema import RunConfig
from tinyllama.plan.laws import HOFFMANN
from tinyllama.plan.plan import Plan, make_plan
from tinyllama.study import labels_of

STUDIES = sorted(file.stem for file in (Path(__file__).parents[2] / "sweeps").glob("*.yaml"))

Points = list[tuple[RunConfig, Plan]]


@pytest.fixture(scope="module")
def points(composed: Callable[..., DictConfig]) -> Callable[[str], Points]:
    """The points of a study, each composed, through the gate and planned once."""
    planned: dict[str, Points] = {}
    base, parser = cache(composed), OverridesParser.create()  # composing takes far longer than setting a value

    def grid(study: str) -> Points:
        if study not in planned:
            whole = compose("config", overrides=[f"sweeps={study}", "task=plan"], return_hydra_config=True)
            assert whole.hydra.mode.name == "MULTIRUN"
            lines = [
                [f"{key}={value}" for value in str(values).split(",")]
                for key, values in whole.hydra.sweeper.params.items()
            ]
            planned[study] = []
            for line in itertools.product(*lines):
                groups = [one for one in line if "." not in one.partition("=")[0]]
                point = deepcopy(base(f"sweeps={study}", "task=plan", *groups))
                for value in map(parser.parse_override, set(line).difference(groups)):
                    OmegaConf.update(point, value.key_or_group, value.value())
                run = load(point)
                planned[study].append((run, make_plan(run)))
        return planned[study]

    return grid


def test_there_are_the_studies_that_were_promised() -> None:
    assert {"token_budget", "epochs", "mixture", "isoflop", "lr_batch", "smoke"} <= set(STUDIES)


@pytest.mark.parametrize("study", STUDIES)
def test_every_point_plans_and_is_a_run_of_its_own(points: Callable[[str], Points], study: str) -> None:
    assert len({digest(run) for run, _ in points(study)}) == len(points(study)) > 1


def test_points_are_told_apart_in_few_words(points: Callable[[str], Points]) -> None:
    for study in STUDIES:
        labels = labels_of([run for run, _ in points(study)])
        assert len(set(labels)) == len(labels)
        assert {label.count("=") for label in labels} == {1 if study == "mixture" else 3 if study == "epochs" else 2}
    assert labels_of([run for run, _ in points("smoke")])[:2] == ["d_model=16, tokens=64K", "d_model=16, tokens=160K"]
    assert labels_of([run for run, _ in points("token_budget")])[0].startswith("model=14m, tokens_per_param=")


@pytest.mark.parametrize(("study", "budgets"), [("token_budget", 9), ("epochs", 7), ("smoke", 3)])
def test_budgets_of_one_size_can_share_a_trunk(points: Callable[[str], Points], study: str, budgets: int) -> None:
    shared: dict[tuple[int, int], list[Plan]] = {}
    for run, plan in points(study):
        assert run.schedule.name == "wsd"
        shared.setdefault((plan.parameters.total, sum(run.data.unique_tokens.values())), []).append(plan)
    assert len(shared) >= 3
    for plans in shared.values():
        assert len({plan.tokens for plan in plans}) == len(plans) == budgets
        assert len({(plan.batch_tokens, plan.learning_rate) for plan in plans}) == 1


def test_the_budgets_go_from_half_of_chinchillas_to_tinyllamas(points: Callable[[str], Points]) -> None:
    multiples = [plan.chinchilla_multiple for _, plan in points("token_budget")]
    assert multiples == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 64, 136.35] * 5, rel=2e-3)


def test_each_amount_of_compute_has_its_best_size_inside_the_grid(points: Callable[[str], Points]) -> None:
    sizes: dict[int | None, list[int]] = {}
    for run, plan in points("isoflop"):
        sizes.setdefault(run.budget.flops, []).append(plan.parameters.total)
    for flops, of in sizes.items():
        assert flops is not None
        # by Hoffmann's law, and by 20 tokens a parameter
        for best in (HOFFMANN.optimum(flops).parameters, (flops / 120) ** 0.5):
            assert min(of) < best < max(of)


def test_the_rules_rate_and_batch_are_within_their_study(points: Callable[[str], Points]) -> None:
    run, _ = points("lr_batch")[0]
    rule = make_plan(
        replace(run, optimizer=replace(run.optimizer, lr="auto"), train=replace(run.train, batch_tokens="auto"))
    )
    rates = sorted({plan.learning_rate for _, plan in points("lr_batch")})
    batches = sorted({plan.batch_tokens for _, plan in points("lr_batch")})
    assert (len(rates), len(batches)) == (5, 4)
    assert rates[2] == pytest.approx(rule.learning_rate, rel=1e-3)
    assert rule.batch_tokens in batches[1:-1]


def test_repeats_and_unseen_tokens_vary_apart(points: Callable[[str], Points]) -> None:
    grid: dict[int, list[Plan]] = {}
    for run, plan in points("epochs"):
        [text, code] = run.data.unique_tokens.values()
        assert text == code
        grid.setdefault(text, []).append(plan)
    assert len(grid) == 3
    for unique, plans in grid.items():
        epochs = [plan.tokens / (2 * unique) for plan in plans]
        assert epochs == pytest.approx([1, 2, 4, 8, 16, 32, 64] * 3, rel=0.01)
        assert {plan.unique_tokens for plan in plans} == {2 * unique}


def test_shares_go_from_a_tenth_to_nine(points: Callable[[str], Points]) -> None:
    shares = [plan.sources["slimpajama"].share for _, plan in points("mixture")]
    assert shares == pytest.approx([tenth / 10 for tenth in range(1, 10)], abs=1e-3)
    assert len({plan.tokens for _, plan in points("mixture")}) == 1


def test_the_smoke_study_leaves_points_over_for_a_law_of_five_constants(points: Callable[[str], Points]) -> None:
    assert len(points("smoke")) >= 9
    assert sum(plan.steps for _, plan in points("smoke")) < 2000
