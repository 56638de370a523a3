"""What an op has to do, and what its times say about it: pure functions, in bytes, FLOPs, microseconds and shares.

Bytes and FLOPs are the least that an op needs, whoever does it. The limits they are compared with are what this machine
reached in the same run: on a copy, counting bytes read and bytes written, and on a large bf16 matrix product.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's sizes and the batch that it is given."""

    name: str
    batch: int
    context: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    d_ff: int
    vocab: int = 32000

    @property
    def tokens(self) -> int:
        """Positions in the batch."""
        return self.batch * self.context

    def tiny(self) -> Shape:
        """As few values as keep what is peculiar about this shape: its ratio of heads, and no power of two."""
        kv = min(self.n_kv_heads, 2)
        heads = kv * (self.n_heads // self.n_kv_heads)
        return replace(
            self, batch=2, context=20, d_model=16 * heads, n_heads=heads, n_kv_heads=kv, head_size=16, d_ff=40, vocab=50
        )


SHAPES = (
    Shape(name="1.1b", batch=8, context=2048, d_model=2048, n_heads=32, n_kv_heads=4, head_size=64, d_ff=5632),
    Shape(name="120m", batch=16, context=2048, d_model=768, n_heads=12, n_kv_heads=1, head_size=64, d_ff=2048),
    Shape(name="head-128", batch=4, context=4096, d_model=2048, n_heads=16, n_kv_heads=8, head_size=128, d_ff=5632),
)

OURS = "tinyllama"
"""The name of our kernels among their peers."""

OPS = (
    "rms_norm", "add_rms_norm", "rope", "swiglu", "attention", "document_attention", "linear_cross_entropy",
)  # fmt: skip

GOALS: Mapping[tuple[str, str], tuple[str, float]] = {
    ("add_rms_norm", FORWARD): ("share", 0.92),
    ("add_rms_norm", BACKWARD): ("share", 0.88),
    ("swiglu", FORWARD): ("share", 0.92),
    ("swiglu", BACKWARD): ("share", 0.92),
    ("rope", FORWARD): ("share", 0.85),
    ("rope", BACKWARD): ("share", 0.85),
    ("linear_cross_entropy", BOTH): ("share", 0.85),
    ("attention", FORWARD): ("rate", 340.0),
    ("attention", BACKWARD): ("rate", 280.0),
}
"""What was set out for on an H200 at the 1.1b shape: a share of the limit, or a rate in TFLOP/s."""


def passes(op: str) -> tuple[str, ...]:
    """What is timed apart; a fused linear cross-entropy makes its gradients in the forward, so there it is both."""
    return (BOTH,) if op == "linear_cross_entropy" else (FORWARD, BACKWARD)


def visible_pairs(starts_bt: Tensor) -> int:
    """Pairs of a query and a key that it sees, in all sequences; starts as in `reference.visible`."""
    position = torch.arange(starts_bt.shape[1], device=starts_bt.device)
    return int((position - starts_bt + 1).sum())


def least_bytes(op: str, shape: Shape, *, value_bytes: int = 2) -> dict[str, int]:
    """Bytes of the large tensors that each pass must read and write once; weights and saved statistics are small.

    rope reads and writes the whole packed projection, rope_in_place queries and keys alone.
    """
    d, f, c = shape.d_model, shape.d_ff, shape.head_size
    turned = (shape.n_heads + shape.n_kv_heads) * c
    packed = turned + shape.n_kv_heads * c
    forward, backward = {
        "rms_norm": (2 * d, 3 * d),
        "add_rms_norm": (4 * d, 4 * d),
        "rope": (2 * packed, 2 * packed),
        "rope_in_place": (2 * turned, 2 * turned),
        "swiglu": (3 * f, 5 * f),
    }[op]
    each = shape.tokens * value_bytes
    return {FORWARD: forward * each, BACKWARD: backward * each}


def flops(op: str, shape: Shape, *, pairs: int) -> dict[str, int]:
    """Floating-point operations of each pass's matrix products, none of them for pairs that are hidden.

    Attention's backward is counted as 2.5 forwards, its scores recomputed, as FlashAttention's authors count it.
    """
    if op == "linear_cross_entropy":
        return {BOTH: 6 * shape.tokens * shape.d_model * shape.vocab}
    forward = 4 * shape.n_heads * shape.head_size * pairs
    return {FORWARD: forward, BACKWARD: forward * 5 // 2}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine reaches on what it is best at."""

    copy_gb_per_s: float
    matmul_tflop_per_s: float


def best(limits: Sequence[Limits]) -> Limits | None:
    """The higher of what was reached before and after, so that no share is flattered; None if there was nothing."""
    if not limits:
        return None
    return Limits(
        copy_gb_per_s=max(each.copy_gb_per_s for each in limits),
        matmul_tflop_per_s=max(each.matmul_tflop_per_s for each in limits),
    )


def work(op: str, shape: Shape, *, pairs: int) -> tuple[str, dict[str, int]]:
    """What bounds an op: GB/s and its least bytes, or TFLOP/s and its FLOPs."""
    if op.endswith("attention") or op == "linear_cross_entropy":
        return "TFLOP/s", flops(op, shape, pairs=pairs)
    return "GB/s", least_bytes(op, shape)


def spread(us: Sequence[float]) -> dict[str, float]:
    """Median, least and most, in microseconds, and of how many."""
    return {"median": statistics.median(us), "min": min(us), "max": max(us), "repeats": len(us)}


def figures(us: Sequence[float], work: int, *, unit: str, limits: Limits) -> dict[str, Any]:
    """A pass's times, its rate by the median, and that rate's share of the limit; unit is GB/s or TFLOP/s."""
    times = spread(us)
    rate = work / times["median"] / (1e3 if unit == "GB/s" else 1e6)
    limit = limits.copy_gb_per_s if unit == "GB/s" else limits.matmul_tflop_per_s
    return {"us": times, "rate": rate, "unit": unit, "share": rate / limit}


def goal(op: str, one_pass: str, shape: str, reached: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The goal of this pass, if there is one, what was reached and whether that meets it (null: not measured)."""
    if shape != SHAPES[0].name or (op, one_pass) not in GOALS:
        return None
    of, value = GOALS[op, one_pass]
    got = None if reached is None else reached[of]
    return {"of": of, "value": value, "reached": got, "met": None if got is None else got >= value}


def repeats(round_s: float, *, budget_s: float, least: int = 10, most: int = 200) -> int:
    """How many rounds fit the budget, within bounds."""
    return max(least, min(most, int(budget_s / max(round_s, 1e-9))))


def finished(case: Mapping[str, Any], limits: Limits | None) -> dict[str, Any]:
    """A case with what its times say: figures, how many times ours, goals. Without limits nothing was measured."""
    shape = Shape(**case["sizes"])
    entries = {
        name: _judged(entry, shape, pairs=case["visible_pairs"], limits=limits)
        for name, entry in case["implementations"].items()
    }
    ours = entries[OURS]["figures"]
    for entry in entries.values():
        got = entry["figures"]
        both = ours and got
        entry["times_ours"] = (
            {one: got[one]["us"]["median"] / ours[one]["us"]["median"] for one in got} if both else None
        )
    goals = {one: goal(case["op"], one, shape.name, (ours or {}).get(one)) for one in passes(case["op"])}
    return {**case, "goals": goals, "implementations": entries}


def _judged(entry: Mapping[str, Any], shape: Shape, *, pairs: int, limits: Limits | None) -> dict[str, Any]:
    raw = entry.get("raw_us")
    if raw is None or limits is None:
        status = entry["status"] if raw is None else "not measured"
        return {**entry, "status": status, "figures": None, "raw_us": None, "late": None}
    unit, amounts = work(entry["does"], shape, pairs=pairs)
    got = {one: figures(us, amounts[one], unit=unit, limits=limits) for one, us in raw.items()}
    return {**entry, "status": "measured", "figures": got}


def cell(entry: Mapping[str, Any] | None, one: str) -> str:
    """A pass's time, and how many times ours; or why there is none. A star: it may hold waits for Python."""
    if entry is None:
        return ""
    if not entry["figures"]:
        return str(entry["check"] or entry["status"]).partition(":")[0]
    ratio = "" if entry["times_ours"] is None else f" ({entry['times_ours'][one]:.2f}x)"
    star = "*" if entry["late"][one] > 0.5 else ""
    differs = "" if entry["check"] == "right" else " differs"
    return f"{entry['figures'][one]['us']['median']:,.0f}{star}{ratio}{differs}"


def our_cells(entry: Mapping[str, Any], goal: Mapping[str, Any] | None, one: str) -> list[str]:
    """Our time, rate, share of the limit, and the goal."""
    said = ["", "", ""]
    if goal:
        met = {None: "", True: " met", False: " missed"}[goal["met"]]
        said[2] = (f"{goal['value']:.0%}" if goal["of"] == "share" else f"{goal['value']:.0f}") + met
    if not entry["figures"]:
        return [cell(entry, one), *said]
    got = entry["figures"][one]
    least, most = got["us"]["min"], got["us"]["max"]
    said[:2] = f"{got['rate']:,.0f} {got['unit']}", f"{got['share']:.0%}"
    return [f"{cell({**entry, 'times_ours': None}, one)} ({least:,.0f} to {most:,.0f})", *said]


def table(shape: str, cases: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each pass of each op: ours, then everyone else."""
    grid = Table(title=f"{shape}: microseconds, median (min to max); of peers, how many times ours")
    named = ("eager", "compile", "liger")
    for column in ("op", "pass", OURS, "rate", "of limit", "goal", *named, "others"):
        grid.add_column(column)
    for case in cases:
        entries = case["implementations"]
        others = [name for name in entries if name not in (OURS, *named)]
        for one in passes(case["op"]):
            ours = our_cells(entries[OURS], case["goals"][one], one)
            rest = "\n".join(f"{name} {cell(entries[name], one)}" for name in others)
            grid.add_row(case["op"], one, *ours, *(cell(entries.get(name), one) for name in named), rest)
    return grid
