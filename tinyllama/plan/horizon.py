"""From a budget to steps: the one place that decides how long a run is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from tinyllama.config.schema import Budget, Model, Schedule
from tinyllama.plan.count import count_parameters

CHINCHILLA_TOKENS_PER_PARAM = 20
"""The rule of thumb of arXiv 2203.15556."""


def budget_tokens(budget: Budget, *, model: Model, unique_tokens: Mapping[str, int | None]) -> Fraction:
    """The training tokens that a budget asks for, before they are rounded up to whole steps.

    unique_tokens holds each source's, None where nobody knows yet. Raises ValueError where the budget is in epochs and
    a size is not known.
    """
    parameters = count_parameters(model).total
    if budget.tokens is not None:
        return Fraction(budget.tokens)
    if budget.tokens_per_param is not None:
        return Fraction(str(budget.tokens_per_param)) * parameters
    if budget.flops is not None:
        return Fraction(budget.flops, 6 * parameters)
    assert budget.epochs is not None
    unknown = [name for name, tokens in unique_tokens.items() if tokens is None]
    if unknown:
        raise ValueError(
            f"budget.epochs: {budget.epochs:g} needs the size of every source, and that of {', '.join(unknown)} is not "
            f"known: prepare the data (task=prepare) or declare data.sources.{unknown[0]}.tokens"
        )
    return Fraction(str(budget.epochs)) * sum(tokens for tokens in unique_tokens.values() if tokens is not None)


def steps_for(tokens: Fraction, *, batch_tokens: int) -> int:
    """Optimizer steps that see at least so many tokens: rounded up, so that no budget is undershot."""
    return math.ceil(tokens / batch_tokens)


def decay_start(schedule: Schedule, *, steps: int) -> int:
    """The first step of the final decay; for cosine that is the end of the warmup."""
    if schedule.decay_fraction is None:
        return schedule.warmup_steps
    return steps - round(schedule.decay_fraction * steps)
