"""What came of a run: the contents of result.json, its picture, and what a person is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.data.manifest import Manifest
from tinyllama.evaluate.loss import SourceLoss
from tinyllama.evaluate.results import render_tasks
from tinyllama.plan.cost import MFU_CONVENTION
from tinyllama.plan.memory import gigabytes
from tinyllama.plan.plan import Plan
from tinyllama.tracking.folder import CURVE
from tinyllama.tracking.journal import JOURNAL, read
from tinyllama.tracking.record import environment
from tinyllama.train.meter import MemoryMeter, Meter


def began(config: RunConfig, *, digest: str, plan: Plan, start: int) -> dict[str, Any]:
    """What is known of a run before its first step."""
    return {
        "status": "running",
        "name": config.name,
        "digest": digest,
        "parameters": plan.as_dict()["parameters"],
        "steps": plan.steps,
        "tokens": plan.tokens,
        "batch_tokens": plan.batch_tokens,
        "learning_rate": plan.learning_rate,
        "resumed_at": start or None,
        "environment": environment(),
        "config": as_dict(config),
    }


def speed(meter: Meter, *, memory: MemoryMeter) -> dict[str, Any]:
    """How fast a run's steps were and how much memory they took."""
    rates = meter.overall()
    return {
        "tokens_per_s": rates.tokens_per_s if rates else None,
        "mfu": rates.mfu if rates else None,
        "mfu_convention": MFU_CONVENTION,
        "speed_reason": None if rates else "the run had no step left to take when it was resumed",
        "memory_bytes": memory.most,
    }


def finished(
    begun: Mapping[str, Any],
    *,
    manifest: Manifest,
    measured: Mapping[str, SourceLoss],
    plan: Plan,
    speed: Mapping[str, Any],
    sample: str,
) -> dict[str, Any]:
    """The same with what was learnt, how fast, and a sample of text."""
    held_out = {
        name: {**asdict(loss), "gzip_bits_per_byte": manifest.sources[name].held_out.gzip_bits_per_byte}
        for name, loss in measured.items()
    }
    loss = plan.mixed({name: source.loss for name, source in measured.items()})
    return {**begun, "status": "finished", "loss": loss, "held_out": held_out, **speed, "sample": sample}


def stopped(begun: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a run that was asked to stop and has saved what it had."""
    return {**begun, "status": "stopped", "reason": "it was asked to stop; the same command goes on from there"}


def failed(begun: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """The same with why it has no numbers."""
    return {**begun, "status": "failed", "reason": f"{type(error).__name__}: {error}"}


def draw(run_dir: Path, result: Mapping[str, Any]) -> None:
    """The loss curve of a run folder's journal, gzip's bits per byte beside it."""
    from tinyllama.tracking.curve import draw_curve  # a second of imports, which no run needs before its end

    references = {name: source["gzip_bits_per_byte"] for name, source in result["held_out"].items()}
    tokens = f"{result['parameters']['total']:,} parameters, {result['tokens']:,} tokens"
    draw_curve(read(run_dir / JOURNAL), run_dir / CURVE, title=f"{result['name']}: {tokens}", references=references)


def render(result: Mapping[str, Any], *, planned: Plan) -> Iterator[Table | str]:
    """A finished run's losses, its speed and memory beside what was planned, and its sample, for a terminal."""
    table = Table(box=None)
    for column in ("held out", "loss (nats)", "bits per byte", "gzip -9", "tokens"):
        table.add_column(column, justify="left" if column == "held out" else "right")
    for name, source in result["held_out"].items():
        numbers = (source[key] for key in ("loss", "bits_per_byte", "gzip_bits_per_byte"))
        table.add_row(name, *(f"{number:.3f}" for number in numbers), f"{source['tokens']:,}")
    yield table
    if result.get("tasks"):
        yield from render_tasks(result["tasks"])
    yield _beside_the_plan(result, planned)
    yield "a sample:"
    yield "\n".join(f"    {line}" for line in result["sample"].splitlines())


def _beside_the_plan(result: Mapping[str, Any], planned: Plan) -> Table:
    table = Table(box=None)
    for column in ("", "measured", "planned", ""):
        table.add_column(column, justify="left" if not column else "right")
    rate = planned.rate
    if result["tokens_per_s"]:
        expected = f"{rate.tokens_per_s * planned.world_size:,.0f}" if rate else "not known"
        table.add_row("tokens/s", f"{result['tokens_per_s']:,.0f}", expected, rate.source if rate else "")
        expected = f"{rate.mfu:.1%}" if rate and rate.mfu else "not known"
        table.add_row("MFU", f"{result['mfu']:.1%}", expected, result["mfu_convention"])
    is_gpu = result["config"]["parallelism"]["device"] == "cuda"
    remark = "tensors of the first rank" if is_gpu else "of the first rank, with what libraries took meanwhile"
    table.add_row("memory", gigabytes(result["memory_bytes"]), gigabytes(planned.fit.needed.peak), remark)
    return table
