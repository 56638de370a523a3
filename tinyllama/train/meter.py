"""Rates: tokens a second, model FLOPs utilisation, time left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tinyllama.plan.cost import mfu


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast training goes."""

    tokens_per_s: float
    """Over all ranks."""
    mfu: float
    """The model's FLOPs over what the devices could do, by plan.cost.MFU_CONVENTION."""
    seconds_left: float
    """Of training steps."""


class Meter:
    """Adds up the time of training steps only, so that evaluations and checkpoints do not count as slow training."""

    def __init__(self, *, flops_per_token: int, peak_flops: float) -> None:
        """flops_per_token is that of the plan; peak_flops is that of all ranks together, per second."""
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._tokens = 0
        self._seconds = 0.0
        self._read = (0, 0.0)

    def add(self, seconds: float, *, tokens: int) -> None:
        """One step took so long for so many tokens."""
        self._tokens += tokens
        self._seconds += seconds

    def read(self, *, tokens_left: int) -> Rates:
        """The rates since they were last read; there has to be a step since then. tokens_left are those to come."""
        tokens, seconds = self._read
        self._read = (self._tokens, self._seconds)
        return self._rates(self._tokens - tokens, self._seconds - seconds, tokens_left)

    def overall(self) -> Rates | None:
        """The rates over all steps; None before the first."""
        return self._rates(self._tokens, self._seconds, 0) if self._tokens else None

    def _rates(self, tokens: int, seconds: float, tokens_left: int) -> Rates:
        tokens_per_s = tokens / seconds
        return Rates(
            tokens_per_s=tokens_per_s,
            mfu=mfu(tokens_per_s, flops_per_token=self._flops_per_token, peak_flops=self._peak_flops),
            seconds_left=tokens_left * self._seconds / self._tokens,
        )


class MemoryMeter:
    """The most memory that this process takes from here on: a GPU's tensors, or resident pages on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0 if device.type == "cuda" else _resident("VmRSS")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def most(self) -> int:
        """In bytes, beside what was there before."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(0, _resident("VmHWM") - self._before)


def _resident(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 on a system that has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def measured_matmul_flops(
    device: torch.device, precision: str, *, size: int | None = None, seconds: float = 0.3
) -> float:
    """Multiply-adds a second, times two, of square matrix products: the best of as many as fit into the time."""
    size = size or (8192 if device.type == "cuda" else 1024)  # a GPU is not busy with less
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        _finish(device)
        start = time.perf_counter()
        a @ b
        _finish(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
