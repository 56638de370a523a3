"""A plan as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from tinyllama.plan.cost import MFU_CONVENTION
from tinyllama.plan.fit import Choice
from tinyllama.plan.memory import Memory, gigabytes
from tinyllama.plan.plan import Plan

NOT_KNOWN = "not known"


def render(plan: Plan, *, title: str) -> Iterator[Table | str]:
    """All of it."""
    yield _counts(plan, title)
    yield _compute(plan)
    yield _mixture(plan)
    if len(plan.stages) > 1:
        yield from render_stages(plan)
    yield from _losses(plan)
    yield from _memory(plan)
    yield from _costs(plan)
    for warning in plan.warnings:
        yield f"warning: {warning}"


def short(plan: Plan) -> Iterator[str]:
    """What to know before a run begins."""
    fit = plan.fit
    yield (
        f"{plan.parameters.total:,} parameters, {plan.tokens:,} tokens in {plan.steps:,} steps: "
        f"{plan.tokens_per_param:,.1f} a parameter, {plan.chinchilla_multiple:,.2f} x Chinchilla"
    )
    memory = f"planned: {gigabytes(fit.needed.peak)} on {_ranks(plan, each=True)}"
    memory += f" of {gigabytes(fit.usable)}" if fit.usable else ""
    if plan.cost and plan.rate:
        rate = plan.rate
        memory += f"; {hours(plan.cost.hours)} at {_per_second(rate.tokens_per_s)} tokens/s a rank ({rate.source})"
    yield memory
    yield f"MFU counts {MFU_CONVENTION}"
    if fit.problem:
        yield f"warning: parallelism.micro_batch: {fit.problem}"


def _counts(plan: Plan, title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    groups = ("embedding", "attention", "mlp", "norms", "head")
    for group in groups:
        table.add_row(f"  {group}", f"{getattr(plan.parameters, group):>17,}", "")
    table.add_row("parameters", f"{plan.parameters.total:>17,}", "")
    table.add_row("  no input embedding", f"{plan.parameters.without_input_embedding:>17,}", "")
    table.add_row("  no embeddings", f"{plan.parameters.without_embeddings:>17,}", "in the blocks and the last norm")
    first = plan.stages[0]
    rule = _by_rule(plan.batch_beyond)
    table.add_row("batch", f"{first.sequences_per_step * plan.context:>17,}", f"tokens a step{rule and f', {rule}'}")
    sequences = f"{plan.micro_batch} x {plan.accumulation(first)} accumulated on {_ranks(plan, each=True)}"
    table.add_row("  sequences", f"{first.sequences_per_step:>17,}", sequences)
    rate = _by_rule(plan.learning_rate_beyond) or "as optimizer.lr says"
    table.add_row("peak learning rate", f"{plan.learning_rate:>17.3g}", rate)
    table.add_row("steps", f"{plan.steps:>17,}", "")
    multiple = f"{plan.tokens_per_param:,.1f} a parameter, {plan.chinchilla_multiple:,.2f} x Chinchilla"
    table.add_row("tokens", f"{plan.tokens:>17,}", multiple)
    return table


def _by_rule(beyond: float | None) -> str:
    """Where an automatic value comes from; empty for a set one."""
    if beyond is None:
        return ""
    return "by the rule of arXiv 2401.02954" + (f", {beyond:,.3g} times beyond its range" if beyond > 1 else "")


def _compute(plan: Plan) -> Table:
    compute = number_table("FLOPs counted as", "a token", "in all")
    for convention, flops in plan.flops_per_token.conventions.items():
        compute.add_row(convention, f"{flops:,}", f"{flops * plan.tokens:.3e}")
    return compute


def _mixture(plan: Plan) -> Table:
    mixture = number_table("source", "share", "tokens", "unique tokens", "epochs", "worth unseen")
    for name, source in plan.sources.items():
        unique = NOT_KNOWN if source.unique_tokens is None else f"{source.unique_tokens:,}"
        mixture.add_row(
            name,
            f"{source.share:.1%}",
            f"{source.tokens:,}",
            unique if source.measured or source.unique_tokens is None else f"about {unique}",
            NOT_KNOWN if source.epochs is None else f"{source.epochs:.3f}",
            NOT_KNOWN if source.effective_tokens is None else f"{source.effective_tokens:.3g}",
        )
    return mixture


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


def shown_loss(plan: Plan, foretold: float) -> str:
    """A dash where it is worse than chance."""
    return f"{foretold:.3f}" if foretold < plan.chance_loss else "-"


def _losses(plan: Plan) -> Iterator[Table | str]:
    table = number_table("loss foretold by", "nats a token")
    table.add_column("beyond what it was fitted on")
    for told in plan.forecasts:
        beyond = {"size": told.parameters_beyond, "tokens": told.tokens_beyond}
        far = ", ".join(f"{name} {times:,.3g} times" for name, times in beyond.items() if times > 1)
        table.add_row(told.law, shown_loss(plan, told.loss), far or "within")
    yield table
    if any(told.loss >= plan.chance_loss for told in plan.forecasts):
        yield f" - : worse than chance, {plan.chance_loss:.3f} nats: so far beyond its range a law says nothing"
    if plan.lifetime:
        life = plan.lifetime
        far = f", {life.beyond:,.3g} times beyond what it was fitted on" if life.beyond > 1 else ""
        yield (
            f"with {life.inference_tokens:.3g} tokens of inference, {life.best.parameters:.3g} parameters trained on "
            f"{life.best.tokens:.3g} tokens take {life.best_flops:.3g} FLOPs over their life for the same loss, "
            f"{life.saved:.1%} less than this run's {life.flops:.3g} (Hoffmann's law{far})"
        )


def _memory(plan: Plan) -> Iterator[Table | str]:
    """A column for each stage of ZeRO and what recomputation changes, the run's own with stars; whether it fits."""
    fit = plan.fit
    own = next(choice for choice in fit.choices if choice.own)
    kept, again = ([choice for choice in fit.choices if choice.recompute is recompute] for recompute in (False, True))
    stages = (f"ZeRO {choice.zero_stage}{' *' if choice.zero_stage == own.zero_stage else '  '}" for choice in kept)
    table = number_table(f"memory of a rank, micro-batch {plan.micro_batch}", *stages)

    def add(label: str, size: Callable[[Memory], int], choices: Sequence[Choice] = kept) -> None:
        if any(sizes := [size(choice.needed) for choice in choices]):
            table.add_row(f"  {label}", *(f"{gigabytes(n_bytes)}  " for n_bytes in sizes))

    def add_both(label: str, told: Callable[[Choice], str]) -> None:
        for name, choices in ((label, kept), ("  recomputed", again)):
            own_row = choices[0].recompute is own.recompute
            table.add_row(name + " *" * own_row, *(f"{told(choice)}  " for choice in choices))

    add("weights", lambda needed: needed.weights)
    add("gradients", lambda needed: needed.gradients)
    add("fp32 weights and two moments", lambda needed: needed.optimizer)
    add("activations", lambda needed: needed.activations)
    add("  recomputed", lambda needed: needed.activations + needed.recomputed, again)
    add("logits, the loss, their gradients", lambda needed: needed.logits)
    add("buffers to reduce and to gather", lambda needed: needed.buffers)
    add_both("at its most: not all at one time", lambda choice: gigabytes(choice.needed.peak))
    if fit.usable is not None:
        add_both("largest micro-batch", lambda choice: f"{choice.largest_micro_batch:,}")
    add("of the machine's memory", lambda needed: needed.machine)
    yield table
    if fit.usable is None:
        yield f"usable: {NOT_KNOWN}; choose hardware=a100 or the like to see whether it fits"
    else:
        verdict = "it fits" if fit.fits else f"it does not fit: {fit.remedy or 'no layout would do'}"
        yield f"usable: {gigabytes(fit.usable)}; {verdict}"
    if fit.machine:
        yield f"a machine's own memory: {gigabytes(fit.machine)} for fp32 weights, gradients and moments of its ranks"


def _costs(plan: Plan) -> Iterator[Table | str]:
    table = _facts()
    if plan.rate and plan.cost:
        rate, cost = plan.rate, plan.cost
        table.add_row("tokens/s of a rank", _per_second(rate.tokens_per_s), rate.source)
        if rate.mfu is not None:
            table.add_row("MFU", f"{rate.mfu:.1%}", MFU_CONVENTION)
        table.add_row("time", hours(cost.hours), f"on {_ranks(plan)}")
        table.add_row("GPU-hours", f"{cost.gpu_hours:,.1f}", "")
        if cost.dollars is not None:
            table.add_row("US dollars", f"{cost.dollars:,.0f}", "")
        if cost.kwh is not None:
            table.add_row("kWh", f"{cost.kwh:,.0f}", "of the GPUs alone")
    else:
        table.add_row("time", NOT_KNOWN, "until a run has been measured here, or plan.mfu and hardware are set")
    disk = plan.disk
    table.add_row("checkpoints", gigabytes(disk.checkpoints), f"{gigabytes(disk.checkpoint)} each")
    table.add_row("token shards", NOT_KNOWN if disk.data is None else gigabytes(disk.data), "of all sources")
    yield table


def number_table(*columns: str) -> Table:
    """For numbers on the right of what they are of."""
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table


def _facts() -> Table:
    """A name, a figure and a remark in each line."""
    table = Table(box=None, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    return table


def _ranks(plan: Plan, *, each: bool = False) -> str:
    return "one rank" if plan.world_size == 1 else f"{'each of ' * each}{plan.world_size} ranks"


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def counted(n: float) -> str:
    """A count of parameters or tokens in three digits, as in 1.1B."""
    if n >= 1e15:
        return f"{n:.3g}"
    for letter, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= 0.9995 * unit:
            return f"{n / unit:.3g}{letter}"
    return f"{n:.0f}"


def hours(count: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, length in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if count >= 2 * length:
            return f"{count / length:,.1f} {unit}"
    return f"{count * 3600:,.0f} seconds"
