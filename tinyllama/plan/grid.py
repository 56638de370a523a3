"""The plans of several runs as one table, and what they take together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.table import Table

from tinyllama.plan.memory import gigabytes
from tinyllama.plan.plan import Plan
from tinyllama.plan.render import NOT_KNOWN, counted, hours, number_table, shown_loss


class Point(NamedTuple):
    """One of several runs."""

    label: str
    """What tells it from the others."""
    plan: Plan
    done: bool
    """Whether it has been trained already."""
    shared_tokens: int
    """Those that it need not train, as it shares a trunk with a shorter one."""
    left_tokens: int
    """Those that are still to train: neither shared nor behind it."""


def render_grid(points: Sequence[Point], *, runs: int, at_a_time: int) -> Iterator[Table | str]:
    """A line for each point, and what they take together, so many at a time, where they are as many runs."""
    plans = [point.plan for point in points]
    law = _law_of(plans)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("point", overflow="fold")
    timed, begun = any(plan.cost for plan in plans), any(point.done for point in points)
    columns = ["size", "tokens", "per\nparam", "memory", *["GPU-\nhours"] * timed, "loss", *["done"] * begun]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, plan, done, *_ in points:
        cost = [_amount(plan.cost.gpu_hours) if plan.cost else "?"] if timed else []
        table.add_row(
            label,
            counted(plan.parameters.total),
            counted(plan.tokens),
            f"{plan.tokens_per_param:,.1f}",
            gigabytes(plan.fit.needed.peak) + ("" if plan.fit.fits is not False else "\ntoo much"),
            *cost,
            shown_loss(plan, plan.forecasts[law].loss),
            *["yes" if done else ""] * begun,
        )
    yield table
    for label, plan, *_ in points:
        if plan.fit.fits is False:
            yield f"{label} does not fit: {f'set {plan.fit.remedy}' if plan.fit.remedy else 'no layout would do'}"
    yield from _law_told(plans, law)
    yield from _rates_told(plans)
    if warned := sum(bool(plan.warnings) for plan in plans):
        yield f"warnings: of {warned}; task=plan of such a point alone tells them"
    if runs < len(points):
        yield "points are the same run on other hardware or laid out otherwise: no totals"
        return
    alone = [plan.tokens for plan in plans]
    shared = [point.plan.tokens - point.shared_tokens for point in points]
    left = [point.left_tokens for point in points]
    sums = {"each alone" if shared != alone else "all": alone}
    sums |= {"trunks shared": shared} if shared != alone else {}
    sums |= {"still to do": left} if left != shared else {}
    how = "in turn" if at_a_time == 1 else f"{at_a_time} at a time"
    columns = ["runs", "tokens", "FLOPs (6N)", *["GPU-hours", how] * timed]
    priced = any(plan.cost and plan.cost.dollars is not None for plan in plans)
    table = number_table("", *columns, *["US dollars"] * priced)
    for which, tokens in sums.items():
        table.add_row(which, *[*_together(plans, tokens, at_a_time=at_a_time)][: len(table.columns) - 1])
    yield table


def _law_of(plans: Sequence[Plan]) -> int:
    """Which forecast to show of all: that of the law of repeats, the last, where a source of any repeats."""
    repeats = any(source.epochs and source.epochs > 1 for plan in plans for source in plan.sources.values())
    return 2 if repeats and all(len(plan.forecasts) == 3 for plan in plans) else 0


def _law_told(plans: Sequence[Plan], law: int) -> Iterator[str]:
    told = [plan.forecasts[law] for plan in plans]
    size, tokens = max(one.parameters_beyond for one in told), max(one.tokens_beyond for one in told)
    far = [f"{name} {times:,.3g} times" for name, times in (("size", size), ("tokens", tokens)) if times > 1]
    beyond = f"; beyond what it was fitted on: {', '.join(far)} at most" if far else ""
    yield f"loss: by {told[0].law}, on their own corpus and tokenizer{beyond}"
    if any(plan.forecasts[law].loss >= plan.chance_loss for plan in plans):
        yield "loss -: worse than chance, as far beyond its range as a law says nothing"


def _rates_told(plans: Sequence[Plan]) -> Iterator[str]:
    unknown = f"{NOT_KNOWN} until a run has been measured here, or plan.mfu and hardware are set"
    sources = Counter(plan.rate.source if plan.rate else unknown for plan in plans)
    for source, times in sources.items():
        yield f"rate{f' of {times}' if times < len(plans) else ''}: {source}"


def _together(plans: Sequence[Plan], tokens: Sequence[int], *, at_a_time: int) -> Iterator[str]:
    """What so many of the tokens of each run take."""
    parts = [(plan, count) for plan, count in zip(plans, tokens, strict=True) if count]
    yield f"{len(parts):,}"
    yield counted(sum(tokens))
    yield f"{sum(plan.flops_per_token.six_n * count for plan, count in parts):.3g}"
    costs = [(plan.cost, count / plan.tokens) for plan, count in parts if plan.cost]
    dollars = [share * cost.dollars for cost, share in costs if cost.dollars is not None]
    all_known = len(costs) == len(parts)
    yield _amount(sum(share * cost.gpu_hours for cost, share in costs)) if all_known else "?"
    each = [share * cost.hours for cost, share in costs]
    yield hours(max(sum(each) / at_a_time, max(each, default=0))) if all_known else "?"
    yield _amount(sum(dollars)) if len(dollars) == len(parts) else "?"


def _amount(number: float) -> str:
    return f"{number:,.2f}" if number >= 1 or not number else f"{number:.2g}"
