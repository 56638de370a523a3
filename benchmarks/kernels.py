"""Every kernel beside its peers on this GPU: python benchmarks/kernels.py [--out FILE] [--quick] [--only OP].

What is timed was right first: outputs and gradients are held to the reference in fp64, and a kernel of ours that fails
gets no figures and fails the run. Without a GPU the same code runs once on tiny shapes, with interpreted kernels, and
measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks import clock as clocks
from benchmarks import measure
from benchmarks.clock import Clock
from benchmarks.measure import OURS, Limits, Shape
from benchmarks.peers import Case, MissingError, Runner, floating, make, peers
from tests.kernels.compare import error_ratio
from tinyllama.kernels import REFERENCE, Ops, select

ROOT = Path(__file__).resolve().parents[1]

TOLERANCE = {torch.bfloat16: torch.finfo(torch.bfloat16).eps, torch.float32: 32 * torch.finfo(torch.float32).eps}
"""Error ratio allowed. A rounding to bf16 costs 0.2 eps, and attention, which rounds scores, weights, their gradients
and its results, has been seen at 0.6; in fp32 every step of a sum rounds."""

WORST_ROW = 16
"""A row may be off by as many times that, which is still far less than a row lost or never written is off by."""

Results = tuple[list[Tensor], list[Tensor]]
"""Outputs and gradients."""


def expected(case: Case) -> Results:
    """The reference's results in fp64; of attention the first and the last sequence's, one at a time."""

    def results(xs: Sequence[Tensor], fixed: Sequence[Tensor], upstreams: Sequence[Tensor]) -> Results:
        leaves = [x.detach().double().requires_grad_() for x in xs]
        outputs = floating(case.call(REFERENCE)(*leaves, *fixed))
        gradients = torch.autograd.grad(outputs, leaves, [x.double() for x in upstreams])
        return [out.detach() for out in outputs], list(gradients)

    given = (case.inputs, case.fixed, case.upstreams)
    if not case.is_sequences:
        return results(*given)
    first, last = (results(*([x[i : i + 1] for x in xs] for xs in given)) for i in (0, case.shape.batch - 1))
    outputs, gradients = ([torch.cat(pair) for pair in zip(*two, strict=True)] for two in zip(first, last, strict=True))
    return outputs, gradients


def worst_row(actual: Tensor, expected: Tensor) -> float:
    """The largest error ratio of a row; rows smaller than most are compared with what most are."""
    size = expected.square().mean(-1)
    off = (actual.double() - expected).square().mean(-1) / size.clamp(min=float(size.mean()))
    return float(off.max().sqrt())


def errors(got: Results, wanted: Results) -> dict[str, tuple[float, float]]:
    """By result: its error ratio, and that of its worst row. Raises ValueError where numbers or shapes differ."""
    found = {}
    for what, actual, reference in zip(("output", "gradient"), got, wanted, strict=True):
        shapes = [[tuple(x.shape) for x in some] for some in (actual, reference)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{what}s have shapes {shapes[0]}, the reference's {shapes[1]}")
        for index, pair in enumerate(zip(actual, reference, strict=True)):
            found[f"{what} {index}"] = error_ratio(*pair), worst_row(*pair)
    return found


def complaint(found: Mapping[str, tuple[float, float]], dtype: torch.dtype) -> str:
    """What is wrong with results of these errors, in words; nothing if they are right."""
    allowed = TOLERANCE[dtype], WORST_ROW * TOLERANCE[dtype]
    for result, ratios in found.items():
        for kind, ratio, most in zip(("error ratio", "a row's error ratio"), ratios, allowed, strict=True):
            if not ratio <= most:  # a NaN is not at most anything
                return f"{result}: {kind} {ratio:.1e}, allowed {most:.1e}"
    return ""


class OurOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls of this project's own ops."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.namespace == OURS
        return func(*args, **(kwargs or {}))


@contextmanager
def empty_is_nan() -> Iterator[None]:
    """Within, memory that a kernel forgets to write holds NaN, and not what an earlier run left there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def results(runner: Runner) -> Results:
    """What one run gives."""
    runner.restore()
    outputs = runner.forward()
    gradients = runner.backward(outputs)
    return [x.detach() for x in outputs], [x.detach() for x in gradients]


def check(case: Case, runner: Runner, wanted: Results, *, is_ours: bool) -> dict[str, Any]:
    """The errors of an implementation's results, and what is wrong with it, in words; nothing if it is right."""
    n_calls = len(measure.passes(case.op))
    if is_ours:
        with empty_is_nan(), OurOps() as ours:  # type: ignore[no-untyped-call]
            got = results(runner)
        n_calls = ours.calls
    else:
        got = results(runner)
    if case.is_sequences:
        outputs, gradients = ([torch.stack((x[0], x[-1])) for x in some] for some in got)
        got = outputs, gradients
    found = errors(got, runner.expected(*wanted))
    said = complaint(found, case.inputs[0].dtype)
    if n_calls < len(measure.passes(case.op)):
        said = said or "it leaves the work to PyTorch"
    return {"errors": found, "wrong": said}


def contest(case: Case, ops: Ops, clock: Clock, *, backend: str, **race: Any) -> dict[str, dict[str, Any]]:
    """By implementation: status, check, errors, peak_bytes, does and, if it was timed, what `clock.race` says of it."""
    entries: dict[str, dict[str, Any]] = {}
    runners: dict[str, Runner] = {}
    wanted = expected(case)
    for name, implementation in peers(case, ops, backend=backend).items():
        entry = entries[name] = {"check": None, "errors": None, "peak_bytes": None, "does": case.op}
        try:
            peer = implementation()
            runner = Runner(case, peer)
            told = check(case, runner, wanted, is_ours=name == OURS)
            entry |= {"errors": told["errors"], "does": peer.does or case.op}
            if told["wrong"] and name == OURS:
                entry["status"] = f"check failed: {told['wrong']}"
                continue
            entry["check"] = f"differs: {told['wrong']}" if told["wrong"] else "right"
            runner.restore()
            entry |= {"peak_bytes": clock.peak(runner.both), "status": "timed"}
            runners[name] = runner
        except MissingError as error:
            entry["status"] = str(error)
        except Exception as error:  # whatever else a peer lacks here must not end the run
            said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
            entry["status"] = f"check failed: {said}" if name == OURS else f"not available: {said}"
    for name, times in clocks.race(runners, case.op, clock, **race).items():
        entries[name] |= times
    return entries


def one_case(op: str, shape: Shape, ops: Ops, clock: Clock, *, is_gpu: bool, budget_s: float) -> dict[str, Any]:
    """An op at a shape, checked and timed; or checked once through the same code, where there is no GPU."""
    torch.compiler.reset()  # its limit on recompilations is for all shapes of a function together
    if is_gpu:
        torch.cuda.empty_cache()
        case = make(op, shape, device="cuda", dtype=torch.bfloat16)
        entries = contest(case, ops, clock, backend="inductor", budget_s=budget_s)
    else:
        case = make(op, shape, device="cpu", dtype=torch.float32)
        entries = contest(case, ops, clock, backend="eager", rounds=1)
    pairs = measure.visible_pairs(case.starts()) if op.endswith("attention") else None
    return {"op": op, "shape": shape.name, "sizes": asdict(shape), "visible_pairs": pairs, "implementations": entries}


def file_name(date: datetime, device: str) -> str:
    """Where a run's figures lie under benchmarks/results."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{date:%Y-%m-%d}-{slug}-kernels.json"


def refused(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Kernels of ours that were wrong, and how."""
    statuses = {f"{case['shape']} {case['op']}": case["implementations"][OURS]["status"] for case in cases}
    return [f"{case}: {status}" for case, status in statuses.items() if status.startswith("check failed")]


def run(*, only: str | None = None, quick: bool = False, out: Path | None = None) -> int:
    """All cases, in a file that is written after each of them. 1 if a kernel of ours was wrong, else 0."""
    began, now = time.perf_counter(), datetime.now().astimezone()
    gpu = torch.cuda.is_available()
    device: Literal["cuda", "cpu"] = "cuda" if gpu else "cpu"
    # Triton looks at it first when it is imported, which select does
    os.environ["TRITON_INTERPRET"] = "0" if gpu else "1"
    ops = select("triton", attention="triton", device=device, precision="bf16")
    clock, facts = Clock(device), clocks.machine(device)
    if out is None and gpu:
        out = ROOT / "benchmarks" / "results" / file_name(now, facts["device"])
    reached: list[Limits] = []
    states: list[dict[str, str]] = []
    cases: list[dict[str, Any]] = []

    def at_full_speed() -> None:
        if gpu:
            reached.append(clocks.limits(clock, device))
            states.append(clocks.nvidia_smi())

    def report() -> dict[str, Any]:
        told = {"benchmark": "kernels", "date": now.isoformat(timespec="seconds"), **facts}
        told |= {"seconds": time.perf_counter() - began, "nvidia_smi": states}
        told |= {"limits": [asdict(each) for each in reached]}
        told["cases"] = [measure.finished(case, measure.best(reached)) for case in cases]
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(told, indent=1) + "\n")
        return told

    at_full_speed()
    shapes = measure.SHAPES[: 1 if quick else None]
    for shape in shapes:
        for op in [only] if only else measure.OPS:
            at = shape if gpu else shape.tiny()
            cases.append(one_case(op, at, ops, clock, is_gpu=gpu, budget_s=1.5 if quick else 4.0))
            report()
            print(f"{time.perf_counter() - began:4.0f} s  {shape.name} {op}", flush=True)
    at_full_speed()
    told = report()
    console = Console(width=None if sys.stdout.isatty() else 180)
    for shape in shapes:
        console.print(measure.table(shape.name, [case for case in told["cases"] if case["shape"] == shape.name]))
    print(*(refused(cases) or ["measured" if gpu else "checked; nothing is measured without a GPU"]), sep="\n")
    return 1 if refused(cases) else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file; by default benchmarks/results/DATE-GPU-kernels.json")
    parser.add_argument("--quick", action="store_true", help="the first shape alone, with fewer repetitions")
    parser.add_argument("--only", choices=measure.OPS, metavar="OP", help=f"one of {', '.join(measure.OPS)}")
    asked = parser.parse_args()
    return run(only=asked.only, quick=asked.quick, out=asked.out)


if __name__ == "__main__":
    sys.exit(main())
