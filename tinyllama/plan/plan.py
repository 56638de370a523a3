"""The plan of a run: what it will take, worked out from its configuration with no data, no GPU and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from tinyllama.config.schema import RunConfig
from tinyllama.plan.count import FlopsPerToken, Parameters, count_flops, count_parameters
from tinyllama.plan.horizon import (
    CHINCHILLA_TOKENS_PER_PARAM,
    StagePlan,
    budget_tokens,
    decay_start,
    sequences_by_source,
    stage_plans,
    weights_of,
)

FREE_EPOCHS = 4
"""Repeats up to here cost little (Muennighoff et al. 2023, arXiv 2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One source's part in a run."""

    share: float
    """Of the training tokens."""
    tokens: int
    """Training tokens drawn from it."""
    unique_tokens: int | None
    """Training tokens it holds; None where it is neither prepared nor declared."""
    measured: bool
    """Whether unique_tokens was counted when the source was prepared, or is only declared."""
    epochs: float | None
    """Times it is seen."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take."""

    parameters: Parameters
    flops_per_token: FlopsPerToken
    context: int
    world_size: int
    steps: int
    tokens: int
    stages: tuple[StagePlan, ...]
    """Stretches of the steps; most runs have one."""
    tokens_per_param: float
    chinchilla_multiple: float
    sources: dict[str, SourcePlan]
    warnings: tuple[str, ...]

    def stage_at(self, step: int) -> StagePlan:
        """The stage that a step, counted from 0, belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)

    def sequences_of(self, step: int) -> range:
        """Which sequences of the run a step takes."""
        stage = self.stage_at(step)
        first = stage.first_sequence + (step - stage.first_step) * stage.sequences_per_step
        return range(first, first + stage.sequences_per_step)

    def changes_mixture(self, first: int, stop: int) -> bool:
        """Whether a stage begins, all at once, among these sequences."""
        return any(first <= stage.first_sequence < stop and not stage.ramp for stage in self.stages)

    def tokens_by(self, step: int) -> int:
        """Tokens that the run has seen after so many steps."""
        return self.sequences_of(step - 1).stop * self.context if step else 0

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


def make_plan(config: RunConfig, *, measured_tokens: Mapping[str, int] | None = None) -> Plan:
    """Work a run out.

    measured_tokens holds each source's training tokens where the data is prepared; otherwise what the configuration
    declares stands in. Raises ValueError where the budget cannot be met: value, rule and remedy.
    """
    model, data = config.model, config.data
    unique = {
        name: source.tokens if measured_tokens is None else measured_tokens[name]
        for name, source in data.sources.items()
    }
    wanted = budget_tokens(config.budget, model=model, unique_tokens=unique)
    stages = stage_plans(config, tokens=wanted, weights=weights_of(data, unique_tokens=unique))
    steps = sum(stage.steps for stage in stages)
    if steps <= config.schedule.warmup_steps:
        raise ValueError(
            f"schedule.warmup_steps: {config.schedule.warmup_steps} must be fewer than the run's steps, {steps}: "
            f"lower it, raise the budget or lower train.batch_tokens={config.train.batch_tokens}"
        )
    if config.schedule.name == "wsd" and decay_start(config.schedule, steps=steps) < config.schedule.warmup_steps:
        raise ValueError(
            f"schedule.decay_fraction: {config.schedule.decay_fraction:g} of {steps} steps begins before the warmup of "
            f"{config.schedule.warmup_steps} ends: lower either of them"
        )
    tokens = sum(stage.sequences for stage in stages) * model.context
    parameters = count_parameters(model)
    sources = {}
    for name, sequences in sequences_by_source(stages).items():
        source, size, given = data.sources[name], unique[name], float(sequences * model.context)
        epochs = given / size if size else None
        if epochs is not None and source.max_epochs is not None and epochs > source.max_epochs:
            raise ValueError(
                f"data.sources.{name}.max_epochs: the run would repeat it {epochs:.2f} times, more than "
                f"{source.max_epochs:g}: lower the budget or its weight, or raise the limit"
            )
        sources[name] = SourcePlan(
            share=given / tokens,
            tokens=round(given),
            unique_tokens=size,
            measured=measured_tokens is not None,
            epochs=epochs,
        )
    per_param = tokens / parameters.total
    return Plan(
        parameters=parameters,
        flops_per_token=count_flops(model),
        context=model.context,
        world_size=config.parallelism.world_size,
        steps=steps,
        tokens=tokens,
        stages=stages,
        tokens_per_param=per_param,
        chinchilla_multiple=per_param / CHINCHILLA_TOKENS_PER_PARAM,
        sources=sources,
        warnings=tuple(_warnings(per_param, sources)),
    )


def _warnings(tokens_per_param: float, sources: Mapping[str, SourcePlan]) -> Iterator[str]:
    if tokens_per_param < CHINCHILLA_TOKENS_PER_PARAM / 100:
        yield (
            f"{tokens_per_param:.2g} tokens for each parameter: far too few to learn from "
            "(budget=chinchilla gives 20, budget=three_epochs what the paper had)"
        )
    for name, source in sources.items():
        if source.epochs is not None and source.epochs > FREE_EPOCHS:
            yield f"{name} is repeated {source.epochs:.1f} times: past {FREE_EPOCHS} epochs repeats teach less and less"


def render(plan: Plan, *, title: str) -> Iterator[Table | str]:
    """The plan as tables and lines for a terminal."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    groups = ("embedding", "attention", "mlp", "norms", "head")
    for group in groups:
        table.add_row(f"  {group}", f"{getattr(plan.parameters, group):>17,}", "")
    table.add_row("parameters", f"{plan.parameters.total:>17,}", "")
    table.add_row("  no input embedding", f"{plan.parameters.without_input_embedding:>17,}", "")
    table.add_row("  no embeddings", f"{plan.parameters.without_embeddings:>17,}", "in the blocks and the last norm")
    first = plan.stages[0]
    table.add_row("batch", f"{first.sequences_per_step * plan.context:>17,}", "tokens a step")
    sequences = f"{first.accumulation} accumulated x {plan.world_size} ranks"
    table.add_row("  sequences", f"{first.sequences_per_step:>17,}", sequences)
    table.add_row("steps", f"{plan.steps:>17,}", "")
    multiple = f"{plan.tokens_per_param:,.1f} a parameter, {plan.chinchilla_multiple:,.2f} x Chinchilla"
    table.add_row("tokens", f"{plan.tokens:>17,}", multiple)
    yield table
    compute = Table(box=None)
    for column in ("FLOPs counted as", "a token", "in all"):
        compute.add_column(column, justify="left" if column == "FLOPs counted as" else "right")
    for convention, flops in plan.flops_per_token.conventions.items():
        compute.add_row(convention, f"{flops:,}", f"{flops * plan.tokens:.3e}")
    yield compute
    mixture = Table(box=None)
    for column in ("source", "share", "tokens", "unique tokens", "epochs"):
        mixture.add_column(column, justify="left" if column == "source" else "right")
    for name, source in plan.sources.items():
        unique = "not known" if source.unique_tokens is None else f"{source.unique_tokens:,}"
        mixture.add_row(
            name,
            f"{source.share:.1%}",
            f"{source.tokens:,}",
            unique if source.measured or source.unique_tokens is None else f"about {unique}",
            "not known" if source.epochs is None else f"{source.epochs:.3f}",
        )
    yield mixture
    if len(plan.stages) > 1:
        yield from render_stages(plan)
    for warning in plan.warnings:
        yield f"warning: {warning}"


def render_stages(plan: Plan) -> Iterator[str]:
    """A line for each stage: what it takes, and how."""
    for number, stage in enumerate(plan.stages, start=1):
        total = sum(stage.weights.values())
        shares = (f"{name} {weight / total:.1%}" for name, weight in stage.weights.items() if weight)
        ramp = f", after a ramp of {stage.ramp * plan.context:,} tokens" if stage.ramp else ""
        yield (
            f"stage {number}: {stage.steps:,} steps of {stage.sequences_per_step * plan.context:,} tokens, "
            f"{stage.sequences * plan.context:,} in all: {', '.join(shares)}{ramp}"
        )
