"""The plan of a run: what it will take, worked out from its configuration with no data, no GPU and no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tinyllama.config.load import ConfigError, Problem
from tinyllama.config.schema import RunConfig
from tinyllama.plan.cost import Cost, Disk, Measured, Rate, cost, disk, expected_rate
from tinyllama.plan.count import FlopsPerToken, Parameters, count_flops, count_parameters
from tinyllama.plan.fit import Fit, divisors, fit
from tinyllama.plan.forecast import Forecast, Lifetime, forecasts, lifetime
from tinyllama.plan.horizon import (
    CHINCHILLA_TOKENS_PER_PARAM,
    StagePlan,
    batch_problems,
    budget_tokens,
    decay_start,
    schedule_problems,
    sequences_by_source,
    stage_plans,
    weights_of,
)
from tinyllama.plan.hyperparameters import RULES_RANGE, batch_tokens, peak_rate, rules_compute
from tinyllama.plan.sources import SourcePlan, drawn_once, repeated_too_often, source_plan, too_little_taken, too_small

FREE_EPOCHS = 4
"""Repeats up to here cost little (Muennighoff et al. 2023, arXiv 2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take."""

    parameters: Parameters
    flops_per_token: FlopsPerToken
    context: int
    world_size: int
    batch_tokens: int
    """Of a step whose stage has no batch of its own."""
    batch_beyond: float | None
    """Times that the compute is beyond what the rule for an automatic batch was fitted on; None for a set one."""
    learning_rate: float
    """The peak of the schedule."""
    learning_rate_beyond: float | None
    """The same as batch_beyond, of an automatic rate."""
    steps: int
    tokens: int
    branch_step: int | None
    """The first step of the decay, before which runs of other budgets are the same; None for a schedule without a
    plateau."""
    stages: tuple[StagePlan, ...]
    """Stretches of the steps; most runs have one."""
    tokens_per_param: float
    chinchilla_multiple: float
    sources: dict[str, SourcePlan]
    unique_tokens: int | None
    """Distinct ones that it sees; None where a source's size is not known."""
    fit: Fit
    rate: Rate | None
    """None where neither the hardware's peak nor an earlier run says."""
    cost: Cost | None
    disk: Disk
    forecasts: tuple[Forecast, ...]
    chance_loss: float
    """Of a model that knows nothing, ln(vocab_size) nats: a forecast above it says nothing."""
    lifetime: Lifetime | None
    """Where plan.inference_tokens are given."""
    warnings: tuple[str, ...]

    @property
    def micro_batch(self) -> int:
        """Sequences a rank takes through the model at once."""
        return self.fit.micro_batch

    @property
    def half_micro_batch(self) -> int | None:
        """The largest that divides every batch and is at most half of it; None below 1."""
        common = math.gcd(*(stage.sequences_per_step for stage in self.stages)) // self.world_size
        return max((size for size in divisors(common) if 2 * size <= self.micro_batch), default=None)

    def accumulation(self, stage: StagePlan) -> int:
        """Micro-batches that each rank takes in a step of a stage."""
        return stage.sequences_per_step // (self.micro_batch * self.world_size)

    def stage_at(self, step: int) -> StagePlan:
        """The stage that a step, counted from 0, belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)

    def sequences_of(self, step: int) -> range:
        """Which sequences of the run a step takes."""
        stage = self.stage_at(step)
        first = stage.first_sequence + (step - stage.first_step) * stage.sequences_per_step
        return range(first, first + stage.sequences_per_step)

    def changes_mixture(self, first: int, stop: int) -> bool:
        """Whether a stage begins, all at once, among these sequences, taken or left out."""
        return any(first <= stage.first_sequence < stop and not stage.ramp for stage in self.stages)

    def tokens_by(self, step: int) -> int:
        """Tokens that the run has seen after so many steps."""
        return self.sequences_of(step - 1).stop * self.context if step else 0

    def mixed(self, losses: Mapping[str, float]) -> float:
        """One loss for all sources, by their shares of the training tokens."""
        return math.fsum(self.sources[name].share * loss for name, loss in losses.items())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for plan.json, derived counts included."""
        derived = {
            name: getattr(self.parameters, name) for name in ("total", "without_input_embedding", "without_embeddings")
        }
        return {
            **asdict(self),
            "parameters": {**asdict(self.parameters), **derived},
            "flops_per_token": self.flops_per_token.conventions,
            "training_flops": {name: n * self.tokens for name, n in self.flops_per_token.conventions.items()},
        }


def make_plan(
    config: RunConfig,
    *,
    measured_tokens: Mapping[str, int] | None = None,
    measured_rate: Measured | None = None,
) -> Plan:
    """Work a run out.

    measured_tokens holds each source's training tokens where the data is prepared; otherwise what the configuration
    declares stands in. measured_rate is what an earlier run reached. Raises ConfigError, with everything in it that is
    wrong, where the run cannot be done.
    """
    model, data = config.model, config.data
    sizes = {
        name: source.tokens if measured_tokens is None else measured_tokens[name]
        for name, source in data.sources.items()
    }
    own_batch = config.train.batch_tokens
    problems = [] if own_batch == "auto" else [*batch_problems(config, batch_tokens=own_batch)]
    if too_little := [*too_little_taken(config, measured_tokens)]:
        raise ConfigError([*problems, *too_little])  # nothing else can be worked out
    problems += too_small(config, sizes)
    unique = sizes | {name: tokens // model.context * model.context for name, tokens in data.unique_tokens.items()}
    try:
        wanted = budget_tokens(config.budget, model=model, unique_tokens=unique)
        compute = rules_compute(config, tokens=wanted)
        batch = batch_tokens(config, compute=compute)
        problems += batch_problems(config, batch_tokens=batch) if own_batch == "auto" else ()
        weights = weights_of(data, unique_tokens=unique)
        stages = stage_plans(config, tokens=wanted, batch_tokens=batch, weights=weights)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if wanted < batch:
        says = f"{float(wanted):,.0f} tokens are less than one step of {batch:,}: raise it or lower train.batch_tokens"
        problems.append(Problem("budget", says))
    steps = sum(stage.steps for stage in stages)
    problems += schedule_problems(config.schedule, steps=steps, batch_tokens=batch)
    tokens = sum(stage.sequences for stage in stages) * model.context
    parameters, flops = count_parameters(model), count_flops(model)
    sources = {
        name: source_plan(
            float(sequences * model.context),
            tokens,
            unique[name],
            measured=measured_tokens is not None or name in data.unique_tokens,
        )
        for name, sequences in sequences_by_source(stages).items()
    }
    problems += repeated_too_often(config, sources)
    fitted = fit(config, batches=[stage.sequences_per_step for stage in stages])
    if config.parallelism.micro_batch == "auto" and fitted.usable is None:
        says = "auto needs to know the GPU: choose hardware=a100 or the like, or set hardware.memory_gb"
        problems.append(Problem("parallelism.micro_batch", says))
    if config.task == "train" and config.plan.strict and fitted.problem:
        problems.append(Problem("parallelism.micro_batch", f"{fitted.problem}, or plan.strict=false to try"))
    if problems:
        raise ConfigError(problems)
    per_param, beyond = tokens / parameters.total, RULES_RANGE.outside(compute)
    unique_seen = drawn_once(sources)
    rate = expected_rate(config, flops, measured=measured_rate)
    return Plan(
        parameters=parameters,
        flops_per_token=flops,
        context=model.context,
        world_size=config.parallelism.world_size,
        batch_tokens=batch,
        batch_beyond=beyond if config.train.batch_tokens == "auto" else None,
        learning_rate=peak_rate(config, compute=compute),
        learning_rate_beyond=beyond if config.optimizer.lr == "auto" else None,
        steps=steps,
        tokens=tokens,
        branch_step=decay_start(config.schedule, steps=steps) if config.schedule.name == "wsd" else None,
        stages=stages,
        tokens_per_param=per_param,
        chinchilla_multiple=per_param / CHINCHILLA_TOKENS_PER_PARAM,
        sources=sources,
        unique_tokens=unique_seen,
        fit=fitted,
        rate=rate,
        cost=cost(config, tokens=tokens, rate=rate) if rate else None,
        disk=disk(config, parameters=parameters.total, steps=steps, source_tokens=sizes),
        forecasts=forecasts(
            parameters.total,
            tokens=tokens,
            unique_tokens=unique_seen,
            effective_tokens=sum(source.effective_tokens or 0 for source in sources.values()),
        ),
        chance_loss=math.log(model.vocab_size),
        lifetime=lifetime(parameters.total, tokens=tokens, inference_tokens=config.plan.inference_tokens),
        warnings=tuple(_warnings(config, per_param, sources)),
    )


def settled(config: RunConfig, micro_batch: int) -> RunConfig:
    """A run with a micro-batch in place of auto."""
    return replace(config, parallelism=replace(config.parallelism, micro_batch=micro_batch))


def _warnings(config: RunConfig, tokens_per_param: float, sources: Mapping[str, SourcePlan]) -> Iterator[str]:
    hardware = config.hardware
    if config.parallelism.device == "cpu" and {hardware.mfu, hardware.watts, hardware.price_per_hour} != {None}:
        yield f"hardware={hardware.name} is a GPU, and parallelism.device=cpu trains on the processor"
    if config.plan.mfu is not None and hardware.peak_tflops is None:
        yield f"plan.mfu={config.plan.mfu:g} is of a peak that is not known: set hardware.peak_tflops for it to count"
    if tokens_per_param < CHINCHILLA_TOKENS_PER_PARAM / 100:
        yield (
            f"{tokens_per_param:.2g} tokens for each parameter: far too few to learn from "
            "(budget=chinchilla gives 20, budget=three_epochs what the paper had)"
        )
    for name, source in sources.items():
        if source.epochs is not None and source.epochs > FREE_EPOCHS:
            yield f"{name} is repeated {source.epochs:.1f} times: past {FREE_EPOCHS} epochs repeats teach less and less"
