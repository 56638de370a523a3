"""From a budget to steps: the one place that decides how long a run is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from tinyllama.config.data import Data
from tinyllama.config.load import ConfigError, Problem
from tinyllama.config.schema import Budget, Model, RunConfig, Schedule
from tinyllama.plan.count import count_parameters

CHINCHILLA_TOKENS_PER_PARAM = 20
"""The rule of thumb of arXiv 2203.15556."""


def budget_tokens(budget: Budget, *, model: Model, unique_tokens: Mapping[str, int | None]) -> Fraction:
    """The training tokens that a budget asks for, before they are rounded up to whole steps.

    unique_tokens holds each source's, None where nobody knows yet. Raises ConfigError where the budget is in epochs and
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
        raise _refusal(
            "budget.epochs",
            f"{budget.epochs:g} needs the size of every source, and that of {', '.join(unknown)} is not "
            f"known: prepare the data (task=prepare) or declare data.sources.{unknown[0]}.tokens",
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


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stretch of the steps with one mixture, after its ramp, and one batch."""

    first_step: int
    steps: int
    first_sequence: int
    """Sequences that the run has seen before it."""
    sequences_per_step: int
    weights: dict[str, float]
    """Of each source; 0 gives nothing."""
    ramp: int
    """Sequences at its start in which the shares go linearly from the stage before's to its own."""

    @property
    def sequences(self) -> int:
        """All of its own."""
        return self.steps * self.sequences_per_step


def weights_of(data: Data, *, unique_tokens: Mapping[str, int | None]) -> dict[str, float]:
    """Each source's weight; a natural one is the tokens that it holds. ConfigError where nobody knows how many."""
    weights: dict[str, float] = {}
    for name, source in data.sources.items():
        size = source.weight if source.weight != "natural" else unique_tokens[name]
        if not size:
            raise _refusal(
                f"data.sources.{name}.weight",
                "natural needs the source's size, which is not known: prepare the data "
                f"(task=prepare) or declare data.sources.{name}.tokens",
            )
        weights[name] = size
    return weights


def batch_problems(config: RunConfig, *, batch_tokens: int) -> Iterator[Problem]:
    """What is wrong where an optimizer step is no whole number of micro-batches on every rank."""
    micro_batch, context, ranks = config.parallelism.micro_batch, config.model.context, config.parallelism.world_size
    once = context * ranks * (1 if micro_batch == "auto" else micro_batch)
    batches = {"train.batch_tokens": batch_tokens}
    own = {f"stages.{i}.batch_tokens": stage.batch_tokens for i, stage in enumerate(config.stages)}
    batches |= {key: tokens for key, tokens in own.items() if tokens}
    for key, tokens in batches.items():
        if tokens % once:
            near = max(1, round(tokens / once)) * once
            is_auto = key == "train.batch_tokens" and config.train.batch_tokens == "auto"
            says = f"{'auto makes it ' * is_auto}{tokens}{', which' * is_auto} is not a multiple of {once} = "
            says += f"model.context {context} x "
            says += "" if micro_batch == "auto" else f"parallelism.micro_batch {micro_batch} x "
            way_out = "" if tokens % (once // ranks) else ", or fewer ranks"
            way_out = way_out if tokens % (context * ranks) else ", or another micro-batch"
            yield Problem(key, f"{says}{ranks} ranks: use {near}{way_out}")


def schedule_problems(schedule: Schedule, *, steps: int, batch_tokens: int) -> Iterator[Problem]:
    """What is wrong where the parts of a schedule are longer than its run."""
    if steps <= schedule.warmup_steps:
        yield Problem(
            "schedule.warmup_steps",
            f"{schedule.warmup_steps} must be fewer than the run's steps, {steps}: "
            f"lower it, raise the budget or lower train.batch_tokens={batch_tokens}",
        )
    elif schedule.name == "wsd" and decay_start(schedule, steps=steps) < schedule.warmup_steps:
        yield Problem(
            "schedule.decay_fraction",
            f"{schedule.decay_fraction:g} of {steps} steps begins before the warmup of "
            f"{schedule.warmup_steps} ends: lower either of them",
        )


def stage_plans(
    config: RunConfig, *, tokens: Fraction, batch_tokens: int, weights: Mapping[str, float]
) -> tuple[StagePlan, ...]:
    """A run's stages, the last of which takes what is left of the tokens; one, where none are given.

    batch_tokens are those of a step whose stage has no batch of its own.

    Raises ConfigError where the budget ends before the last stage begins.
    """
    context = config.model.context
    stages: list[StagePlan] = []
    step = sequence = 0
    for index, stage in enumerate(config.stages or (None,)):
        batch = (stage and stage.batch_tokens) or batch_tokens
        left = tokens - sequence * context
        if left <= 0:
            raise _refusal(
                f"stages.{index}",
                f"the budget of {math.ceil(tokens):,} tokens ends before this stage begins, after "
                f"{sequence * context:,}: raise the budget or leave the stage out",
            )
        steps = steps_for(Fraction(stage.tokens) if stage and stage.tokens else left, batch_tokens=batch)
        if stage and stage.ramp and stage.ramp > steps * batch:
            raise _refusal(
                f"stages.{index}.ramp",
                f"{stage.ramp:,} tokens are more than the {steps * batch:,} of its stage: "
                "shorten the ramp or raise the budget",
            )
        own = stage.weights if stage and stage.weights else weights
        stages.append(
            StagePlan(
                first_step=step,
                steps=steps,
                first_sequence=sequence,
                sequences_per_step=batch // context,
                weights={name: own.get(name, 0) for name in weights},
                ramp=math.ceil(((stage and stage.ramp) or 0) / context),
            )
        )
        step, sequence = step + steps, sequence + steps * (batch // context)
    return tuple(stages)


def sequences_by_source(stages: tuple[StagePlan, ...]) -> dict[str, Fraction]:
    """The exact number of sequences that each source gives, before any of them are rounded."""
    given = dict.fromkeys(stages[0].weights, Fraction(0))
    before = None
    for stage in stages:
        exact = {name: Fraction(str(weight)) for name, weight in stage.weights.items()}
        shares = {name: weight / sum(exact.values()) for name, weight in exact.items()}
        for name, share in shares.items():
            # on the way up or down half of the difference is missing
            given[name] += share * stage.sequences + ((before[name] - share) * stage.ramp / 2 if before else 0)
        before = shares
    return given


def _refusal(key: str, says: str) -> ConfigError:
    return ConfigError([Problem(key, says)])
