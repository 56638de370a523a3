"""Timing a GPU: its clock, contenders timed in turns, the machine's own limits, and what machine it is."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch

from benchmarks.measure import Limits, passes, repeats


class Clock:
    """Times a GPU with its own events, or stands in for that by the host's clock, which then measures nothing."""

    def __init__(self, device: str) -> None:
        self._gpu = device == "cuda"
        self._filled = torch.empty((1 << 30) if self._gpu else 0, dtype=torch.uint8, device=device)

    def cover(self) -> None:
        """Give the GPU work for as long as Python needs to queue what follows, and leave none of its inputs in cache.

        It writes many times what the cache holds. That leaves the cache full of lines which what is timed has to
        write back: as many as it may leave behind itself, so that neither is given anything for free.
        """
        self._filled.zero_()

    def mark(self) -> Any:
        """This point in the queue."""
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def is_late(self, start: Any) -> bool:
        """Whether the GPU has come past a mark already: what follows it may then hold waits for Python."""
        return self._gpu and bool(start.query())

    def us(self, start: Any, end: Any) -> float:
        """Microseconds between two marks, after wait."""
        return float(1e3 * start.elapsed_time(end) if self._gpu else 1e6 * (end - start))

    def wait(self) -> None:
        """Until all that was queued is done."""
        if self._gpu:
            torch.cuda.synchronize()

    def peak(self, run: Callable[[], object]) -> int | None:
        """The most bytes that a call held beside what was held before it; None without a GPU."""
        if not self._gpu:
            run()
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before


class Timed(Protocol):
    """What can be raced: a forward that gives outputs, and the backward of them."""

    def restore(self) -> None:
        """Bring back the inputs."""

    def forward(self) -> Any:
        """Outputs."""

    def backward(self, outputs: Any, /) -> Any:
        """Gradients."""


def lap(runner: Timed, clock: Clock, *, apart: bool) -> list[tuple[Any, Any, bool]]:
    """One forward and one backward: for each that is timed, the marks around it and whether it may hold waits.

    A backward follows a forward of its own, behind a cover: it is timed alone, on cold inputs, as in a training step,
    and peers that write over what they saved can be timed at all.
    """
    runner.restore()
    clock.cover()
    start = clock.mark()
    outputs = runner.forward()
    if not apart:
        runner.backward(outputs)
    laps = [(start, clock.mark(), clock.is_late(start))]
    if apart:
        clock.cover()
        start = clock.mark()
        runner.backward(outputs)
        laps.append((start, clock.mark(), clock.is_late(start)))
    return laps


def race(
    runners: Mapping[str, Timed], op: str, clock: Clock, *, budget_s: float = 0.0, rounds: int | None = None
) -> dict[str, dict[str, Any]]:
    """Times of all, one lap each in turn, so that what drifts drifts for all; rounds is how many fit, if not given.

    By runner: raw_us, a list for each pass, and late, the share of them that may hold waits.
    """
    apart = len(passes(op)) > 1
    round_s = 0.0
    for _ in range(0 if rounds else 3):  # the last of them is warm
        clock.wait()
        began = time.perf_counter()
        for runner in runners.values():
            lap(runner, clock, apart=apart)
        clock.wait()
        round_s = time.perf_counter() - began
    laps: dict[str, list[list[tuple[Any, Any, bool]]]] = {name: [] for name in runners}
    for _ in range(rounds or repeats(round_s, budget_s=budget_s)):
        for name, runner in runners.items():
            laps[name].append(lap(runner, clock, apart=apart))
    clock.wait()
    return {
        name: {
            "raw_us": {one: [clock.us(*each[i][:2]) for each in done] for i, one in enumerate(passes(op))},
            "late": {one: sum(each[i][2] for each in done) / len(done) for i, one in enumerate(passes(op))},
        }
        for name, done in laps.items()
    }


def limits(clock: Clock, device: str, *, copied: int = 1 << 30, side: int = 8192, times: int = 30) -> Limits:
    """The copy and matmul rates now: a GiB to another, and 8192^3 of normal values, since zeros run faster."""
    source = torch.empty(copied // 2, dtype=torch.bfloat16, device=device).normal_()
    aim = torch.empty_like(source)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))

    def median_us(run: Callable[[], object]) -> float:
        marks = []
        for _ in range(times + 3):
            clock.cover()
            start = clock.mark()
            run()
            marks.append((start, clock.mark()))
        clock.wait()
        return statistics.median(clock.us(*pair) for pair in marks[3:])

    copy_us, matmul_us = median_us(lambda: aim.copy_(source)), median_us(lambda: a @ b)
    return Limits(copy_gb_per_s=2 * copied / copy_us / 1e3, matmul_tflop_per_s=2 * side**3 / matmul_us / 1e6)


def machine(device: str) -> dict[str, Any]:
    """What was measured on, and with what."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "liger-kernel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    commit = _said("git", "rev-parse", "HEAD")
    if device == "cpu":
        return {"device": "cpu", "versions": versions, "commit": commit}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": commit,
    }


def nvidia_smi() -> dict[str, str]:
    """The driver, and the clocks, power and heat at this moment."""
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"
    said = _said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader") or ""
    return dict(zip(asked.split(","), said.split(", "), strict=False))


def _said(*command: str) -> str | None:
    try:
        lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None
