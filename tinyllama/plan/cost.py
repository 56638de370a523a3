"""What a run costs: time, GPU-hours, money, energy, disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tinyllama.config.schema import RunConfig
from tinyllama.plan.count import FlopsPerToken, count_parameters

MFU_CONVENTION = "6N, no input embedding, causal attention"
"""What every MFU of this program counts: `FlopsPerToken.causal`."""
_OF_A_BILLION = 500_000_000
"""Parameters above which a model is about as large as those that the hardware's MFU was reached with."""


def mfu(tokens_per_s: float, *, flops_per_token: int, peak_flops: float) -> float:
    """The model's FLOPs a second over what the devices could do. Both rates are of the same GPUs."""
    return tokens_per_s * flops_per_token / peak_flops


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast one GPU is taken to train."""

    tokens_per_s: float
    mfu: float | None
    """By MFU_CONVENTION; None where the GPU's peak is not known."""
    source: str
    """Where that comes from."""


class OtherModel(NamedTuple):
    """A model that was measured in place of another."""

    parameters: int
    flops_per_token: int
    """`FlopsPerToken.causal`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a finished run reached on one rank."""

    tokens_per_s: float
    run: str
    """Its folder."""
    mfu: float | None
    """Of the peak that the run knew, or measured itself."""
    other: OtherModel | None = None
    """Its model, where that is another than the one that is planned."""


def expected_rate(config: RunConfig, flops: FlopsPerToken, *, measured: Measured | None) -> Rate | None:
    """What plan.mfu says, else what a run of this model on this hardware measured, else what the hardware is known for,
    else the FLOPs a second that a run of another model reached; None where none of them is there.

    The hardware is known for what GPUs do in bf16, and its peak is theirs; jobs that share a GPU share it.
    """
    hardware, known = config.hardware, config.parallelism.device == "cuda" and config.train.precision == "bf16"
    parameters = count_parameters(config.model).total
    peak = hardware.peak_tflops and hardware.peak_tflops * 1e12
    share, source = config.plan.mfu if peak else None, "plan.mfu"
    if share is None and measured and measured.other is None:
        return _measured_rate(measured, flops, tokens_per_s=measured.tokens_per_s, peak=peak)
    if share is None and known and hardware.mfu is not None:
        share, source = hardware.mfu / config.study.per_gpu, hardware.mfu_source or "hardware.mfu"
        if parameters < _OF_A_BILLION:
            source += "; models as small as this reach less"
    if peak is not None and share is not None:
        return Rate(tokens_per_s=share * peak / flops.causal, mfu=share, source=f"assumed: {source}")
    if measured and measured.other:
        tokens_per_s = measured.tokens_per_s * measured.other.flops_per_token / flops.causal
        return _measured_rate(measured, flops, tokens_per_s=tokens_per_s, peak=peak, parameters=parameters)
    return None


def _measured_rate(
    measured: Measured, flops: FlopsPerToken, *, tokens_per_s: float, peak: float | None, parameters: int = 0
) -> Rate:
    source = f"measured in {measured.run}"
    if measured.other:
        times = measured.other.parameters / parameters
        size = f"{times:,.3g} times larger" if times > 1 else f"{1 / times:,.3g} times smaller"
        size = "of the same size" if 0.995 < times < 1.005 else size
        source = f"assumed: the FLOPs a second of a model {size}, {source}"
    share = mfu(tokens_per_s, flops_per_token=flops.causal, peak_flops=peak) if peak else measured.mfu
    return Rate(tokens_per_s=tokens_per_s, mfu=share, source=source)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a whole run, evaluations and stops aside."""

    hours: float
    gpu_hours: float
    """A job's part of them, where jobs share a GPU."""
    dollars: float | None
    """At hardware.price_per_hour."""
    kwh: float | None
    """At hardware.watts: the GPUs' own, hosts and cooling not counted."""


def cost(config: RunConfig, *, tokens: int, rate: Rate) -> Cost:
    """What so many tokens cost at a rate."""
    rank_hours = tokens / rate.tokens_per_s / 3600
    gpu_hours = rank_hours / config.study.per_gpu
    price, watts = config.hardware.price_per_hour, config.hardware.watts
    return Cost(
        hours=rank_hours / config.parallelism.world_size,
        gpu_hours=gpu_hours,
        dollars=None if price is None else gpu_hours * price,
        kwh=None if watts is None else gpu_hours * watts / 1000,
    )


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run leaves behind, or needs."""

    checkpoint: int
    """One: fp32 weights and two moments."""
    checkpoints: int
    """All that are kept at the end, and the one that is being written."""
    data: int | None
    """Token shards of all sources; None where a size is not known."""


def disk(config: RunConfig, *, parameters: int, steps: int, source_tokens: Mapping[str, int | None]) -> Disk:
    """What a run of so many steps needs."""
    kept, each = config.checkpoint, 12 * parameters
    forever = (steps // kept.keep_every if kept.keep_every else 0) + (config.schedule.name == "wsd")
    made = math.ceil(steps / kept.every) + (config.schedule.name == "wsd")  # the last step is always saved
    sizes = list(source_tokens.values())
    itemsize = 2 if config.data.tokenizer.vocab_size <= 2**16 else 4
    known = [size for size in sizes if size is not None]
    return Disk(
        checkpoint=each,
        checkpoints=each * min(made, kept.keep + 1 + forever),
        data=itemsize * sum(known) if len(known) == len(sizes) else None,
    )
