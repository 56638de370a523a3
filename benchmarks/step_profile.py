"""Where a training step's time goes: python benchmarks/step_profile.py [--case NAME] [--who NAME,...] [--steps N].

By group of kernels, beside the least that the group's work could take at the rates this machine reaches. On a GPU
seconds are those of its kernels, and gaps are when none ran; on a CPU those of operations, Python's own time apart.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.step import written
from benchmarks.step_cases import CPU, GPU, Case, floor, rates
from benchmarks.step_worker import BUILT, ENVIRONMENT, case_of

GROUPS = {
    "attention": r"scaled_dot_product|flash|fmha|attention|attend",
    "matrix products": r"aten::(add)?(mm|bmm)\b|gemm|cutlass|nvjet|xmma",
    "communication": r"nccl|gloo|all_?reduce|reduce_?scatter|all_?gather",
    "optimizer": r"adam|vector_norm|multi_tensor|Optimizer\.step|foreach",
    "Python": r"autograd::engine|Backward|CompiledFunction|Torch-Compiled|TorchDynamo|ProfilerStep",
}
"""By what their names hold, the first that fits; all else is elementwise."""


def group_of(name: str) -> str:
    """Of an operation or a kernel."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "elementwise")


def profiled(who: str, folder: Path, *, steps: int) -> dict[str, float]:
    """Seconds of a step by group, and of what is left of its time."""
    case = case_of(folder)
    gpu = case["device"] == "cuda"
    step = BUILT[who](case)
    for _ in range(3):
        step()

    def whole() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps

    alone = whole()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        watched = whole()
    took = alone if gpu else watched  # a GPU's kernels take no longer for being watched, a CPU's operations do
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        if gpu and event.device_type == DeviceType.CUDA:
            spent[group_of(event.key)] += event.self_device_time_total
        elif not gpu:
            spent[group_of(event.key)] += event.self_cpu_time_total
    seconds = {group: us / 1e6 / steps for group, us in spent.items()}
    left = max(0.0, took - sum(seconds.values()))
    return {**dict(sorted(seconds.items(), key=lambda item: -item[1])), "gaps": left, "step": took}


def run(case: Case, who: Sequence[str], *, device: str, threads: int, steps: int) -> int:
    """Print a table for each."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        written(case, folder, device=device, threads=threads)
        least = floor(case, rates(device, case.precision))
        least = {
            "matrix products": least["matrix products"] + least["loss"],
            **{part: least[part] for part in ("attention", "elementwise", "optimizer")},
            "step": sum(least.values()),
        }
        for name in who:
            seconds = profiled(name, folder, steps=steps)
            grid = Table(title=f"{name}, {case.name}, {case.sequences} x {case.shape.context} tokens")
            for column in ("", "ms", "of the step", "least ms"):
                grid.add_column(column, justify="left" if not column else "right")
            for part, second in seconds.items():
                floor_ms = f"{1e3 * least[part]:.1f}" if part in least else ""
                grid.add_row(part, f"{1e3 * second:.1f}", f"{second / seconds['step']:.0%}", floor_ms)
            Console().print(grid)
    return 0


def main() -> int:
    """The command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = {case.name: case for case in (GPU if device == "cuda" else CPU)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default=next(iter(known)), choices=known)
    parser.add_argument("--who", default="tinyllama,tinyllama compiled", help=f"of {', '.join(BUILT)}")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    return run(known[given.case], given.who.split(","), device=device, threads=given.threads, steps=given.steps)


if __name__ == "__main__":
    if os.environ.get("MALLOC_MMAP_MAX_") is None:  # which malloc reads when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    sys.exit(main())
