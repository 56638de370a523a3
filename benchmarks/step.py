"""A whole training step beside its peers: python benchmarks/step.py [--cases NAME,...] [--peers PYTHON] [--out FILE].

One process for each implementation, in turns, round after round. Right first: over five steps all have Hugging Face's
losses. If ours have not, nothing is told and the run exits with 1; a peer that has not is not timed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.data_race import keep, machine, spread, times
from benchmarks.step_cases import CPU, GPU, OURS, Case, floor, rates
from benchmarks.step_worker import Worker, WorkerError
from tinyllama import kernels
from tinyllama.model.huggingface import config_of
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama
from tinyllama.plan.count import count_flops

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "transformers"
CHECKED, GAIN = 5, 3.0
APART = {"fp32": (1e-5, 1e-4), "bf16": (2e-3, 2e-2)}
"""How far the first loss, and any after it, may be from Hugging Face's, of the first: what a sum in another order or a
rounding changes in a step, the next steps enlarge."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How all cases are measured."""

    device: str
    threads: int
    peers: str | None
    """A Python that has litgpt."""
    rounds: int
    least_s: float
    """Seconds that a round takes for each, at the least."""
    peak: float | None
    """TFLOP/s that MFU is of; None is the measured rate of a matrix product."""


def written(case: Case, folder: Path, *, device: str, threads: int) -> None:
    """The case as all processes read it."""
    shape = case.shape
    with torch.device("meta"):
        meta = Llama(shape, ops=kernels.TORCH)
    seeded = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, shape.vocab_size, (case.sequences, shape.context + 1), generator=seeded)
    # at their first size weights hardly tell one context from another, and a mistake in attention would not show
    weights = {name: w if "norm" in name else GAIN * w for name, w in initial_weights(meta, seed=1).items()}
    torch.save({"weights": weights, "tokens": tokens}, folder / "given.pt")
    layout = yaml.safe_load((ROOT / "conf/parallelism/single.yaml").read_text())
    told = {
        "shape": asdict(shape),
        "huggingface": config_of(shape, start=1, end=2, dtype="fp32"),
        "precision": case.precision,
        "device": device,
        "threads": threads,
        "layout": layout | {"device": device, "micro_batch": case.sequences},
    }
    (folder / "case.json").write_text(json.dumps(told))


def begun(case: Case, folder: Path, *, peers: str | None) -> tuple[dict[str, Worker], dict[str, dict[str, Any]]]:
    """A process for each, after its first steps, and what is told of it; those that failed are closed."""
    working, told = {}, {}
    pythons = {name: peers if peers and name.startswith("litgpt") else sys.executable for name in case.who}
    started = {name: Worker(name, folder, python=pythons[name], log=folder / f"{name}.log") for name in case.who}
    for name, worker in started.items():
        try:
            told[name] = worker.answer()
            told[name] |= {"status": "measured", "losses": worker.steps(CHECKED)["losses"]}
            working[name] = worker
        except WorkerError as error:
            worker.close()
            told[name] = {"status": str(error)}
    return working, told


def apart(losses: Sequence[float], expected: Sequence[float]) -> tuple[float, float]:
    """How far the first loss, and the furthest after it, are from what is expected, of the first expected.

    Infinitely far where one is no number. Of its own size a late one could be any share away: a batch that is seen
    again and again is learnt by heart.
    """
    if not all(map(math.isfinite, losses)):
        return math.inf, math.inf
    first, *others = (abs(a - b) / expected[0] for a, b in zip(losses, expected, strict=True))
    return first, max(others)


def measured(case: Case, how: How) -> dict[str, Any] | None:
    """A case's figures; None where ours have other losses than Hugging Face's."""
    torch.set_num_threads(how.threads)  # for the machine's rates
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        written(case, folder, device=how.device, threads=how.threads)
        workers, told = begun(case, folder, peers=how.peers)
        try:
            for name, entry in told.items():
                if name not in workers:
                    print(f"{case.name}: {name}: {entry['status']}", file=sys.stderr)
                    if name in (REFERENCE, *OURS):
                        print((folder / f"{name}.log").read_text()[-2000:], file=sys.stderr)
            if any(told[name]["status"] != "measured" for name in case.who if name in (REFERENCE, *OURS)):
                return None
            for name in list(workers):
                entry = told[name]
                entry["apart"] = apart(entry["losses"], told[REFERENCE]["losses"])
                if not all(far <= most for far, most in zip(entry["apart"], APART[case.precision], strict=True)):
                    far = " and ".join(f"{share:.1e}" for share in entry["apart"])
                    entry["status"] = f"other losses than {REFERENCE}'s: {far} apart"
                    print(f"{case.name}: {name}: {entry['status']}", file=sys.stderr)
                    if name in OURS:
                        return None
                    workers.pop(name).close()
            limits = [rates(how.device, case.precision)]
            steps = {name: _steps(worker, how.least_s) for name, worker in workers.items()}
            for name in workers:
                told[name]["seconds"] = []
            for _ in range(how.rounds):
                for name, worker in workers.items():
                    answer = worker.steps(steps[name])
                    told[name]["seconds"].append(answer["seconds"] / steps[name])
                    told[name]["peak_bytes"] = answer["peak_bytes"]
            limits.append(rates(how.device, case.precision))
        finally:
            for worker in workers.values():
                worker.close()
    return figures(case, told, {key: max(limit[key] for limit in limits) for key in limits[0]}, peak=how.peak)


def _steps(worker: Worker, least_s: float) -> int:
    return max(1, min(200, round(least_s / max(worker.steps(1)["seconds"], 1e-6))))


def figures(
    case: Case, told: dict[str, dict[str, Any]], limits: Mapping[str, float], *, peak: float | None
) -> dict[str, Any]:
    """What the seconds of all rounds say; MFU is of the device's peak in TFLOP/s, or of the measured matmul rate."""
    tokens, parts, work = case.sequences * case.shape.context, floor(case, limits), count_flops(case.shape)
    reference = told[REFERENCE]["seconds"]
    for entry in told.values():
        if not (seconds := entry.get("seconds")):
            continue
        middle = spread(seconds)["median"]
        most = (peak or limits["tflop_per_s"]) * 1e12 * middle / tokens
        entry["tokens_per_s"] = spread([tokens / second for second in seconds])
        entry["times_transformers"] = times(seconds, reference)
        entry["of_floor"] = sum(parts.values()) / middle
        entry["mfu"] = {"palm": work.palm / most, "causal": work.causal / most}
    seconds = {name: entry["seconds"] for name, entry in told.items() if "seconds" in entry}
    best = min((name for name in OURS if name in seconds), key=lambda name: spread(seconds[name])["median"])
    ratios = {f"{best} over {peer}": times(seconds[best], seconds[peer]) for peer in seconds if peer not in OURS}
    ratios |= {
        f"engine{how} over tinyllama{how}": times(seconds[f"engine{how}"], seconds[f"tinyllama{how}"])
        for how in ("", " compiled")
        if f"engine{how}" in seconds
    }
    goals = {of if " over " in of else f"{best} over {of}": {"least": least} for of, least in case.goals.items()}
    for name, goal in goals.items():
        goal["reached"] = ratios.get(name, {}).get("median")
    return {
        "case": case.name, "sequences": case.sequences, "context": case.shape.context, "limits": dict(limits),
        "floor_s": parts, "mfu_of_tflop_per_s": peak or limits["tflop_per_s"], "goals": goals, "ratios": ratios,
        "implementations": told,
    }  # fmt: skip


def table(case: Mapping[str, Any]) -> Table:
    """A row for each implementation."""
    said = f"{case['case']}, {case['sequences']} x {case['context']} tokens"
    grid = Table(title=f"{said}: times as fast as {REFERENCE}")
    for column in ("", "tokens/s", "min", "median", "max", "of floor", "MFU PaLM", "causal"):
        grid.add_column(column, justify="left" if not column else "right")
    for name, entry in case["implementations"].items():
        if "tokens_per_s" not in entry:
            grid.add_row(name, entry["status"])
            continue
        ratio = [f"{entry['times_transformers'][key]:.2f}" for key in ("min", "median", "max")]
        shares = [f"{share:.0%}" for share in (entry["of_floor"], *entry["mfu"].values())]
        grid.add_row(name, f"{entry['tokens_per_s']['median']:,.0f}", *ratio, *shares)
    return grid


def run(cases: Sequence[Case], how: How, *, out: Path | None) -> int:
    """Measure, print a table for each case, and write a file where one is asked for, anew after each."""
    told: dict[str, Any] = {"benchmark": "step", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    told |= machine() | {"threads": how.threads, "rounds": how.rounds, "cpu": torch.backends.cpu.get_cpu_capability()}
    if how.device == "cuda":
        told["device"] = torch.cuda.get_device_name(0)
    told["cases"] = []
    for case in cases:
        one = measured(case, how)
        if one is None:
            print(f"{case.name}: nothing is told", file=sys.stderr)
            return 1
        told["cases"].append(one)
        told["load_after"] = os.getloadavg()
        Console().print(table(one))
        for name, ratio in one["ratios"].items():
            aim = f", to be {one['goals'][name]['least']}" if name in one["goals"] else ""
            print(f"{name}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}){aim}")
        keep(told, out)
    return 0


def peak_of(hardware: str) -> float | None:
    """An option of conf/hardware's peak, in TFLOP/s, its own or that of the option that it begins with."""
    given = yaml.safe_load((ROOT / f"conf/hardware/{hardware}.yaml").read_text())
    base = [option for option in given.get("defaults", []) if option != "_self_"]
    peak: float | None = given["peak_tflops"] if "peak_tflops" in given else peak_of(base[0])
    return peak


def main() -> int:
    """The command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = {case.name: case for case in (GPU if device == "cuda" else CPU)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--peers", metavar="PYTHON", help="one that has litgpt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--least", type=float, default=1.0, metavar="SECONDS", help="that a round takes for each")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--who", help="some of the implementations, transformers among them")
    parser.add_argument(
        "--hardware", help="an option of conf/hardware, whose peak MFU is of; or else the measured rate"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if unknown := set(given.cases.split(",")) - known.keys():
        parser.error(f"no case of this machine: {', '.join(sorted(unknown))}")
    cases = [known[name] for name in given.cases.split(",")]
    if given.who:
        cases = [replace(case, who=tuple(name for name in case.who if name in given.who.split(","))) for case in cases]
    if not all(REFERENCE in case.who for case in cases):
        parser.error(f"all are held to {REFERENCE}: name it too")
    how = How(
        device=device,
        threads=given.threads,
        peers=given.peers,
        rounds=given.rounds,
        least_s=given.least,
        peak=None if given.hardware is None else peak_of(given.hardware),
    )
    return run(cases, how, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
