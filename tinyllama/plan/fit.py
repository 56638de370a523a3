"""Whether a run fits into its GPUs' memory, the micro-batch to take, and what would make it fit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama.config.schema import RunConfig
from tinyllama.plan.memory import CONTEXT_BYTES, Layout, Memory, gigabytes, memory

LIBRARIES_BYTES = 500_000_000
"""What Python, PyTorch and DeepSpeed take of a machine's memory for each rank on a CPU."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_GPUS_OF_A_MACHINE = 8


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to lay out a step, and what it takes."""

    zero_stage: int
    recompute: bool
    own: bool
    """Whether it is how the run itself is laid out."""
    needed: Memory
    """With the run's own micro-batch."""
    largest_micro_batch: int | None
    """The largest that fits and divides the batch, 0 where none does; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A run in its GPUs' memory."""

    micro_batch: int
    """The one that is set, or the largest that fits."""
    needed: Memory
    machine: int
    """Bytes of a machine's own memory that an offloaded optimizer takes, of all its ranks."""
    usable: int | None
    """Bytes on one GPU for tensors; None where nobody knows."""
    largest_micro_batch: int | None
    """The largest that fits and divides the batch, 0 where none does; None where nobody knows."""
    remedy: str | None
    """The settings that would make it fit; None where it fits, or nothing would."""
    choices: tuple[Choice, ...]
    """The run at each stage of ZeRO, with activations kept and recomputed; one is its own."""

    @property
    def fits(self) -> bool | None:
        """None where nobody knows."""
        return None if self.usable is None else self.needed.peak <= self.usable

    @property
    def problem(self) -> str | None:
        """What is wrong where it does not fit: value, rule, remedy."""
        if self.usable is None or self.fits:
            return None
        way_out = f"set {self.remedy}" if self.remedy else "no layout would do: choose a smaller model or more memory"
        needed, usable = gigabytes(self.needed.peak), gigabytes(self.usable)
        return f"{self.micro_batch} needs {needed} on a rank, which has {usable} for tensors: {way_out}"


def usable_bytes(config: RunConfig) -> int | None:
    """What one rank may fill with tensors: of a GPU, or of its part where jobs share one, all but what CUDA takes; of
    memory that ranks share, and jobs at the same time, its part."""
    given, parallelism = config.hardware.memory_gb, config.parallelism
    if parallelism.device == "cuda":
        return None if given is None else max(0, round(given * 1e9) // config.study.per_gpu - CONTEXT_BYTES)
    sharers = parallelism.gpus * _jobs_beside(config)
    if given is not None:
        return round(given * 1e9) // sharers
    return max(0, _this_machines_bytes() // sharers - LIBRARIES_BYTES)


def _jobs_beside(config: RunConfig) -> int:
    """How many jobs of its study share a machine's processor and memory with a run, itself one of them."""
    study = config.study
    together = study.folder is not None and study.launcher == "here" and config.parallelism.device == "cpu"
    return study.at_a_time if together else 1


def _this_machines_bytes() -> int:
    """What processes may take here: all there is, or what their control group is given."""
    allowed = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # none of that version, or "max"
            allowed.append(int(limit.read_text()))
    return min(allowed)


def fit(config: RunConfig, *, batches: Sequence[int]) -> Fit:
    """Of a run whose stages take so many sequences a step. Where the micro-batch is auto and its GPU not known: 1."""
    parallelism, usable = config.parallelism, usable_bytes(config)
    largest = _largest(config, batches, usable)
    micro_batch = (largest or 1) if parallelism.micro_batch == "auto" else parallelism.micro_batch

    def choice(stage: int, recompute: bool) -> Choice:
        changes = {"zero_stage": stage, "recompute": recompute}
        return Choice(
            zero_stage=stage,
            recompute=recompute,
            own=(stage, recompute) == (parallelism.zero_stage, parallelism.recompute),
            needed=memory(config.model, _layout(config, batches, micro_batch, **changes)),
            largest_micro_batch=_largest(config, batches, usable, **changes),
        )

    needed = memory(config.model, _layout(config, batches, micro_batch))
    return Fit(
        micro_batch=micro_batch,
        needed=needed,
        machine=needed.machine * parallelism.gpus,
        usable=usable,
        largest_micro_batch=largest,
        remedy=None if usable is None or needed.peak <= usable else _remedy(config, batches, largest or 0, usable),
        choices=tuple(choice(stage, recompute) for stage in _stages(config) for recompute in (False, True)),
    )


def _largest(config: RunConfig, batches: Sequence[int], usable: int | None, **changes: int) -> int | None:
    """The largest micro-batch that fits and divides every batch, 0 where none does; None where nobody knows."""
    if usable is None:
        return None
    together = math.gcd(*batches)
    world = changes.get("world_size", config.parallelism.world_size)
    for micro_batch in reversed(divisors(together // world)) if together % world == 0 else ():
        if memory(config.model, _layout(config, batches, micro_batch, **changes)).peak <= usable:
            return micro_batch
    return 0


def _stages(config: RunConfig) -> range:
    """Of ZeRO, those that the run's other choices allow: what is compiled needs whole parameters."""
    least = 2 if config.parallelism.offload == "optimizer" else 1
    return range(least, 3 if config.kernels.compile else 4)


def _layout(config: RunConfig, batches: Sequence[int], micro_batch: int, **changes: int) -> Layout:
    world = changes.get("world_size", config.parallelism.world_size)
    accumulation = max(batches) // (micro_batch * world)
    return replace(Layout.of(config, micro_batch=micro_batch, accumulation=accumulation), **changes)  # type: ignore[arg-type]


def _remedy(config: RunConfig, batches: Sequence[int], largest: int, usable: int) -> str | None:
    """The first of what costs least speed: a smaller micro-batch, recomputation, more sharding, the optimizer's state
    in the machine's memory, more GPUs, or fewer jobs on each.

    Recomputation takes a third more of the GPU at most; what the processor's step takes is for each machine to say.
    """
    if largest:
        return f"parallelism.micro_batch={largest}"
    for settings, changes in _steps(config):
        if micro_batch := _largest(config, batches, usable, **changes):
            return " ".join([*settings, f"parallelism.micro_batch={micro_batch}"])
    for key, jobs in (("per_gpu", config.study.per_gpu), ("at_a_time", _jobs_beside(config))):
        for fewer in range(jobs - 1, 0, -1):
            room = usable_bytes(replace(config, study=replace(config.study, **{key: fewer})))  # type: ignore[arg-type]
            if micro_batch := _largest(config, batches, room):
                return f"study.{key}={fewer} parallelism.micro_batch={micro_batch}"
    return None


def _steps(config: RunConfig) -> Iterator[tuple[list[str], dict[str, int]]]:
    """What else to set, ever more of it; but where more GPUs shard the optimizer, it stays on them."""
    parallelism = config.parallelism
    settings, changes = [], dict[str, int]()
    if not parallelism.recompute:
        settings, changes = ["parallelism.recompute=true"], {"recompute": True}
        yield settings, changes
    most = max(_stages(config))
    sharding = range(parallelism.zero_stage + 1, most + 1)
    for stage in sharding:  # the second needs less room to reduce gradients, on one GPU too
        yield [*settings, f"parallelism.zero_stage={stage}"], changes | {"zero_stage": stage}
    if parallelism.device == "cpu":
        return  # more processes would share the same memory, and the optimizer is in it already
    if parallelism.offload == "none":
        for stage in range(max(parallelism.zero_stage, 2), most + 1):
            sharded = [f"parallelism.zero_stage={stage}"] if stage > parallelism.zero_stage else []
            moved = [*settings, *sharded, "parallelism.offload=optimizer"]
            yield moved, changes | {"zero_stage": stage, "offload": True}
    if config.study.per_gpu > 1:
        return  # jobs of several GPUs share none: _remedy lets fewer share one
    settings = [*settings, *([f"parallelism.zero_stage={most}"] if sharding else [])]
    for factor in (2, 4, 8, 16, 32, 64):
        gpus = max(parallelism.gpus, min(parallelism.gpus * factor, _GPUS_OF_A_MACHINE))
        world = parallelism.world_size * factor
        more = [f"parallelism.gpus={gpus}"] if gpus > parallelism.gpus else []
        if (nodes := math.ceil(world / gpus)) > parallelism.nodes:
            more.append(f"parallelism.nodes={nodes}")
        yield [*settings, *more], changes | {"zero_stage": most, "world_size": nodes * gpus}


def divisors(n: int) -> list[int]:
    """Of a number, in order; 1 of 0."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)}) or [1]
