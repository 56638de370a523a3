"""A sweep from one line beside its points one after the other: python benchmarks/sweep.py [--points N] [--gpu NAME].

The same points three ways, each in folders of its own: a command for each, in turn; one command, several jobs at once;
and the same with budgets of one size sharing a trunk. Right first: each point's held-out loss is the same in all,
otherwise nothing is told and the run exits with 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.data_race import keep, machine, spread, times

ROOT = Path(__file__).resolve().parents[1]
ALONE, TOGETHER, SHARED = "one at a time", "one line", "one line, trunks shared"
COMMON = ["schedule=wsd", "train.eval_every=100000", "train.log_every=100", "checkpoint.every=100000"]


@dataclass(frozen=True)
class Grid:
    """Points of every size at every budget, and what they have in common."""

    key: str
    sizes: tuple[str, ...]
    budgets: tuple[str, ...]
    common: tuple[str, ...]
    within: float
    """The relative difference in loss up to which two runs of a point count as the same."""

    def first(self, points: int) -> Grid:
        """So many of the points. Raises ValueError where they are no grid."""
        budgets = min(points, len(self.budgets))
        sizes = points // budgets
        if sizes * budgets != points or sizes > len(self.sizes):
            most = len(self.sizes) * len(self.budgets)
            raise ValueError(f"{points} points: take up to {len(self.budgets)}, or a multiple of it up to {most}")
        return Grid(self.key, self.sizes[:sizes], self.budgets[:budgets], self.common, self.within)

    def lines(self) -> list[list[str]]:
        """What sets each point."""
        return [[f"{self.key}={size}", f"budget.tokens={budget}"] for size in self.sizes for budget in self.budgets]

    def line(self) -> list[str]:
        """What sets all of them."""
        return ["-m", f"{self.key}={','.join(self.sizes)}", f"budget.tokens={','.join(self.budgets)}"]


CPU = Grid(
    "model.d_model",
    ("32", "48", "64", "96"),
    ("64K", "80K", "96K", "112K", "128K"),
    # one thread each way: losses are then the same to the bit, and so small a matrix is not worth a second
    (
        *(
            "model.n_layers=2",
            "model.n_heads=1",
            "model.n_kv_heads=1",
            "model.d_ff=128",
            "data.tokenizer.vocab_size=1024",
        ),
        *("data.tokenizer.sample_bytes=500K", "data.sources.text.held_out=0.005", "data.sources.code.held_out=0.005"),
        *("train.batch_tokens=2048", "parallelism.micro_batch=8", "parallelism.threads=1", "schedule.warmup_steps=8"),
        *("generate.max_tokens=20", "hardware.peak_tflops=0.1"),
    ),
    1e-6,
)
GPU = Grid(
    "model",
    ("14m", "30m", "60m", "120m"),
    ("8M", "16M", "24M", "32M", "40M"),
    # a micro-batch that fits a part of a GPU too: an automatic one would add up in another order
    ("parallelism=single", "train.batch_tokens=64K", "parallelism.micro_batch=8", "schedule.warmup_steps=20"),
    5e-3,
)


def trained(line: Sequence[str], folder: Path) -> float:
    """Seconds that a command line takes, from its start to its end. Raises RuntimeError where it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *line], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(line)} ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )
    return time.perf_counter() - began


def losses(runs_dir: Path) -> dict[str, float]:
    """The held-out loss of each finished run, by its folder's name, which is the same for the same point."""
    results = {path.parent.name: json.loads(path.read_text()) for path in runs_dir.glob("*/result.json")}
    return {name: result["loss"] for name, result in results.items() if result["status"] == "finished"}


def raced(grid: Grid, folder: Path, number: int, *, at_a_time: int, per_gpu: int) -> tuple[dict[str, float], list[Any]]:
    """Seconds of each way in one round, and every way's losses."""
    common = [*COMMON, *grid.common, "fit.replicates=20"]
    side = [f"study.at_a_time={at_a_time}", f"study.per_gpu={per_gpu}"]
    seconds, found = {}, []
    for way in (ALONE, TOGETHER, SHARED):
        runs_dir = f"runs-{number}-{way.replace(', ', '-').replace(' ', '-')}"
        rest = [*common, f"runs_dir={runs_dir}", f"study.share_trunks={str(way == SHARED).lower()}"]
        if way == ALONE:
            seconds[way] = sum(trained([*point, *rest], folder) for point in grid.lines())
        else:
            seconds[way] = trained([*grid.line(), *rest, *side, "study.name=sweep"], folder)
        found.append(losses(folder / runs_dir))
    return seconds, found


def same(found: Sequence[dict[str, float]], *, points: int, within: float) -> bool:
    """Whether every way has finished every point, at the same loss."""
    first, *others = found
    return len(first) == points and all(
        other.keys() == first.keys()
        and all(math.isclose(other[name], first[name], rel_tol=within, abs_tol=0) for name in first)
        for other in others
    )


def run(grid: Grid, *, points: int, at_a_time: int, per_gpu: int, rounds: int, out: Path | None) -> int:
    """Measure, print a table, and write a file where one is asked for."""
    grid = grid.first(points)
    told: dict[str, Any] = {"benchmark": "sweep", "date": datetime.now(UTC).isoformat(timespec="seconds")} | machine()
    told["versions"] |= {package: version(package) for package in ("torch", "deepspeed", "mlflow")}
    told |= {"points": points, "at_a_time": at_a_time, "per_gpu": per_gpu, "rounds": rounds, "grid": grid.line()}
    told |= {"common": [*COMMON, *grid.common], "within": grid.within}
    seconds: dict[str, list[float]] = {ALONE: [], TOGETHER: [], SHARED: []}
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        trained([*grid.lines()[0], *COMMON, *grid.common, "task=prepare"], folder)  # once for all
        for number in range(rounds):
            each, found = raced(grid, folder, number, at_a_time=at_a_time, per_gpu=per_gpu)
            if not same(found, points=points, within=grid.within):
                print(f"not the same losses, nothing is told: {json.dumps(found, indent=1)}", file=sys.stderr)
                return 1
            for way, took in each.items():
                seconds[way].append(took)
    told |= {"losses": found[0], "seconds": seconds, "load_after": os.getloadavg()}
    told["ratio"] = {way: times(seconds[way], seconds[ALONE]) for way in (TOGETHER, SHARED)}
    table = Table(title=f"{told['device']}: {points} points, {at_a_time} at a time; times as fast as one at a time")
    for column in ("", "seconds: min", "median", "max", "ratio: min", "median", "max"):
        table.add_column(column, justify="left" if not column else "right")
    for way, took in seconds.items():
        ratio = [f"{x:.2f}" for x in told["ratio"].get(way, {}).values()]
        table.add_row(way, *(f"{x:,.1f}" for x in spread(took).values()), *ratio)
    Console().print(table)
    keep(told, out)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20, help="up to 5, or 5, 10, 15, 20 (20)")
    parser.add_argument("--gpu", help="train 14m to 120m on GPUs, which are this option of conf/hardware, such as h200")
    parser.add_argument("--at-a-time", type=int, help="jobs at once (a core each; with --gpu, 4)")
    parser.add_argument("--per-gpu", type=int, help="of them on one GPU (with --gpu, as many as at a time)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the file to write")
    given = parser.parse_args()
    grid, at_a_time, per_gpu = CPU, given.at_a_time or len(os.sched_getaffinity(0)), 1
    if given.gpu:
        grid = Grid(GPU.key, GPU.sizes, GPU.budgets, (*GPU.common, f"hardware={given.gpu}"), GPU.within)
        at_a_time = given.at_a_time or 4
        per_gpu = given.per_gpu or at_a_time
    return run(grid, points=given.points, at_a_time=at_a_time, per_gpu=per_gpu, rounds=given.rounds, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
