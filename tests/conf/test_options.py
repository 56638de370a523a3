"""Every shipped option composes, passes the gate and plans, beside every option of every other group."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama.config.schema import RunConfig
from tinyllama.plan.count import count_parameters
from tinyllama.plan.plan import make_plan

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "sweeps"  # a study is many runs: it is tested as such
}
RECIPES = {"experiment": GROUPS.pop("experiment")}
FOR_SIXTEEN = ["train.batch_tokens=262_144", "schedule.warmup_steps=1"]
"""What makes the laptop's defaults large enough for the paper's sixteen GPUs."""
FOR_WSD = ["schedule.warmup_steps=1"]
"""Its automatic batch is that of a whole run of the model, of which the laptop's budget is a few steps."""

Option = tuple[str, str]
Pair = tuple[Option, Option]

# the first stage of the other recipe alone is 1.5T tokens
TOO_SHORT = {
    "chinchilla": 22_000_967_680,
    "epochs": 1_005_000_000_000,
    "flops": 151_508_488,
    "tokens": 1_500_000,
    "tokens_per_param": 110_004_838_400,
}

# the recipe's batch of 2M tokens and warmup of 2,000 steps want a long run, and these two are the short ones
REFUSED: dict[Pair, str] = {
    (("budget", name), ("experiment", "tinyllama_v1")): (
        f"schedule.warmup_steps: 2000 must be fewer than the run's steps, {steps}: "
        "lower it, raise the budget or lower train.batch_tokens=2097152"
    )
    for name, steps in {"flops": 73}.items()
} | {
    (("budget", "tokens"), ("experiment", "tinyllama_v1")): (
        "budget: 1,500,000 tokens are less than one step of 2,097,152: raise it or lower train.batch_tokens\n"
        "schedule.warmup_steps: 2000 must be fewer than the run's steps, 1: "
        "lower it, raise the budget or lower train.batch_tokens=2097152"
    )
} | {
    (("budget", name), ("experiment", "tinyllama_v1_1")): (
        f"stages.1: the budget of {tokens:,} tokens ends before this stage begins, after 1,500,001,599,488: "
        "raise the budget or leave the stage out"
    )
    for name, tokens in TOO_SHORT.items()
} | {
    (("data", "stdlib"), ("experiment", "tinyllama_v1_1")): (
        "stages.0.weights.slimpajama: no such source; there is: text, code"
    )
}  # fmt: skip


def pairs_of(line: dict[str, str]) -> set[Pair]:
    return set(itertools.combinations(sorted(line.items()), 2))


def all_pairs(groups: dict[str, list[str]]) -> set[Pair]:
    """Every two options of different groups."""
    options = [(group, option) for group in sorted(groups) for option in groups[group]]
    return {(one, other) for one, other in itertools.combinations(options, 2) if one[0] != other[0]}


def cover(groups: dict[str, list[str]]) -> list[dict[str, str]]:
    """Few choices of one option per group that hold every pair."""
    left = all_pairs(groups)
    lines = []
    while left:
        line = dict(min(left))
        for group in sorted(groups, key=lambda group: -len(groups[group])):
            if group not in line:
                tried = [{**line, group: option} for option in groups[group]]
                line = max(tried, key=lambda one: len(pairs_of(one) & left))
        left -= pairs_of(line)
        lines.append(line)
    return lines


# a recipe sets values in many groups, so it is paired with one option at a time
WITH_RECIPE = [
    {group: option, "experiment": recipe}
    for recipe in RECIPES["experiment"]
    for group, options in GROUPS.items()
    for option in options
    if ((group, option), ("experiment", recipe)) not in REFUSED
]
LINES = cover(GROUPS) + WITH_RECIPE


def overrides(line: dict[str, str]) -> list[str]:
    sixteen = FOR_SIXTEEN if line.get("parallelism") == "4x4" and "experiment" not in line else []
    few = FOR_WSD if line.get("schedule") == "wsd" and "experiment" not in line else []
    return ["task=plan", *(f"{group}={option}" for group, option in line.items()), *sixteen, *few]


def test_every_pair_is_composed_or_refused() -> None:
    told = set(REFUSED).union(*map(pairs_of, LINES))
    everything = GROUPS | RECIPES
    assert told == all_pairs(everything)
    sizes = [len(options) for options in everything.values()]
    assert len(told) == (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.values()))
def test_options_plan_together(config: Callable[..., RunConfig], line: dict[str, str]) -> None:
    run = config(*overrides(line))
    for group, option in line.items():
        if group not in ("experiment", "kernels"):
            assert getattr(run, group).name == option
        if group == "kernels":
            assert run.kernels.backend == option
    plan = make_plan(run)
    assert plan.steps > run.schedule.warmup_steps
    once = plan.world_size * plan.micro_batch * run.model.context
    for planned, asked in zip(plan.stages, run.stages or (None,), strict=True):
        wanted = (asked and asked.batch_tokens) or run.train.batch_tokens
        assert plan.accumulation(planned) * once == planned.sequences_per_step * run.model.context
        assert wanted in ("auto", plan.accumulation(planned) * once)
    assert all(source.epochs is not None for source in plan.sources.values())


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: f"{pair[0][1]} {pair[1][1]}")
def test_what_does_not_suit_a_recipe_is_refused(config: Callable[..., RunConfig], pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"^(budget|schedule\.warmup_steps|stages)") as refusal:
        make_plan(config(*overrides(dict(pair))))
    assert str(refusal.value) == REFUSED[pair]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_a_file_says_what_it_is_and_names_no_python(file: Path) -> None:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    assert re.match(r"# [A-Z0-9].{5,}", lines[0])
    assert not [line for line in lines if re.search(r"_(target|partial|recursive|convert|args)_", line)]


@pytest.mark.parametrize("name", [name for name in GROUPS["model"] if name != "nano"])
def test_a_model_is_as_large_as_its_name(config: Callable[..., RunConfig], name: str) -> None:
    total = count_parameters(config(f"model={name}", "data=slimpajama_starcoder").model).total
    said = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    assert abs(total - said) <= 0.03 * said
    assert f"{total:,} parameters" in (CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]


def test_the_defaults_list_names_every_option() -> None:
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    for group, options in (GROUPS | RECIPES).items():
        [comment] = re.findall(rf"^  - {group}: \w+ +# (.+)$", text, flags=re.MULTILINE)
        if len(options) > 1:
            assert set(comment.rpartition(": ")[2].split()) == set(options), group
