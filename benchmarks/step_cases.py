"""The cases of benchmarks/step.py, and the least time that a step of each could take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from benchmarks.measure import BOTH, FORWARD, Shape, flops, least_bytes, visible_pairs
from benchmarks.step_worker import BUILT
from tinyllama.config.schema import Model
from tinyllama.plan.count import count_parameters

ROOT = Path(__file__).resolve().parents[1]
OURS = [name for name in BUILT if name.startswith(("tinyllama", "engine"))]
GIVEN_5M = {
    "name": "5m", "vocab_size": 4096, "context": 512, "d_model": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2,
    "d_ff": 704, "rope_theta": 10_000.0, "norm_eps": 1e-5,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, a precision and the sequences of a step."""

    model: str
    precision: str
    sequences: int
    who: tuple[str, ...]
    goals: Mapping[str, float]
    """How many times as fast as a peer the best of ours is to be, or as a ratio between two of ours."""

    @property
    def name(self) -> str:
        """As --cases has it."""
        return f"{self.model}-{self.precision}"

    @property
    def shape(self) -> Model:
        """An option of conf/, at Llama's vocabulary or, where it trains on a laptop, at the laptop's."""
        if self.model == "5m":
            return Model(**GIVEN_5M)
        given = yaml.safe_load((ROOT / "conf/model" / f"{self.model}.yaml").read_text())
        return Model(**given | {"vocab_size": 4096 if self.model == "nano" else 32_000})


CPU_PEERS = ("transformers", "transformers compiled", "litgpt compiled")
GPU_PEERS = (*CPU_PEERS, "transformers liger")
CPU = (
    Case("nano", "fp32", 4, (*OURS, *CPU_PEERS), {"transformers": 1.1}),
    Case("nano", "bf16", 4, (*OURS, *CPU_PEERS), {"transformers": 1.5, "litgpt compiled": 1.0}),
    Case("5m", "fp32", 2, (*OURS, *CPU_PEERS), {"transformers": 1.1}),
    Case("5m", "bf16", 2, (*OURS, *CPU_PEERS), {"transformers": 1.5, "litgpt compiled": 1.0}),
    Case("14m", "fp32", 1, ("tinyllama", "engine", "transformers"), {"engine over tinyllama": 0.9}),
)
GPU = (
    # all are held at once, 15 to 20 GB each: six, and the activations of one, fit an H200
    Case(
        "1.1b", "bf16", 8, ("tinyllama compiled", "engine compiled", *GPU_PEERS),
        {
            "transformers": 1.9, "transformers compiled": 1.25, "transformers liger": 1.15,
            "engine compiled over tinyllama compiled": 0.97,
        },
    ),
    Case("120m", "bf16", 32, (*OURS, *GPU_PEERS), {}),
    Case("14m", "bf16", 64, (*OURS, *GPU_PEERS), {"engine over tinyllama": 0.9}),
)  # fmt: skip


def rates(device: str, precision: str) -> dict[str, float]:
    """What this machine reaches now: on a large matrix product and on a copy.

    A CPU may multiply bf16 numbers faster as fp32; both are tried for them.
    """
    side, copied = (8192, 1 << 30) if device == "cuda" else (1024, 1 << 27)
    best = {"tflop_per_s": 0.0, "gb_per_s": 0.0}
    dtypes = [torch.float32] if device == "cpu" or precision == "fp32" else []
    if precision == "bf16":
        dtypes.append(torch.bfloat16)
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        best["tflop_per_s"] = max(best["tflop_per_s"], 2 * side**3 / _seconds(lambda a=a, b=b: a @ b, device) / 1e12)
    source = torch.randn(copied // 4, device=device)
    aim = torch.empty_like(source)
    best["gb_per_s"] = 2 * copied / _seconds(lambda: aim.copy_(source), device) / 1e9
    return best


def _seconds(run: Callable[[], object], device: str) -> float:
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def floor(case: Case, limits: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a step at those rates, part by part: every FLOP and every byte that it cannot do without."""
    m = case.shape
    shape = Shape(
        name=m.name, batch=case.sequences, context=m.context, d_model=m.d_model, n_heads=m.n_heads,
        n_kv_heads=m.n_kv_heads, head_size=m.head_dim, d_ff=m.d_ff, vocab=m.vocab_size,
    )  # fmt: skip
    matmul, copy = limits["tflop_per_s"] * 1e12, limits["gb_per_s"] * 1e9
    numbers, size = count_parameters(m), 2 if case.precision == "bf16" else 4
    starts = torch.zeros(1, m.context, dtype=torch.int32)
    pairs = case.sequences * visible_pairs(starts)
    often = {"rms_norm": 1, "add_rms_norm": 2 * m.n_layers, "rope": m.n_layers, "swiglu": m.n_layers}
    moved = sum(times * sum(least_bytes(op, shape, value_bytes=size).values()) for op, times in often.items())
    # the norm reads the gradient, AdamW reads it again, both moments and a weight, and writes these three, in bf16 the
    # weight in use too
    each = 2 * size + 6 * 4 + (0 if case.precision == "fp32" else 2)
    return {
        "matrix products": 6 * (numbers.attention + numbers.mlp) * shape.tokens / matmul,
        "attention": 3 * flops("attention", shape, pairs=pairs)[FORWARD] * m.n_layers / matmul,
        "loss": flops("linear_cross_entropy", shape, pairs=0)[BOTH] / matmul,
        "elementwise": moved / copy,
        "optimizer": each * numbers.total / copy,
    }
