"""Things timed in turns on a CPU, how they compare, and on what machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.data_peers import PeerError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "sentencepiece", "pyarrow", "zstandard")

Run = Callable[[], float]
"""Does a thing once and gives the seconds it took."""


def timed(function: Callable[..., object], *arguments: Any, **options: Any) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - began


def race(runs: Mapping[str, Run], *, rounds: int, failed: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of each in turn, round after round, so that a machine that slows down does so for all.

    Who raises PeerError is left out from then on, and what it said goes to `failed`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if name not in failed:
                try:
                    seconds[name].append(run())
                except PeerError as error:
                    failed[name] = f"failed: {error}"
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """The least, the middle and the most of some values."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def times(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast as theirs ours is, of seconds round by round."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def keep(told: Mapping[str, Any], out: Path | None) -> None:
    """Write what is told to a file, where one is asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(told, indent=1) + "\n")


def row(
    part: str,
    what: str,
    than: str,
    seconds: Mapping[str, list[float]],
    *,
    amount: float,
    unit: str,
    failed: Mapping[str, str],
    goal: float | None = None,
    start: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """`what` beside `than`: the ratio says how many times as fast `what` is, round by round.

    `amount` is what a run gets through, in units; `start` holds the seconds that a run takes for nothing.
    """
    a, b = seconds.get(what, []), seconds.get(than, [])
    status = failed.get(than, "measured" if b else "not installed")
    told: dict[str, Any] = {"part": part, "what": what, "than": than, "status": status, "unit": unit, "goal": goal}
    told |= dict.fromkeys(("rate", "than_rate", "ratio", "ratio_without_start", "met", "start"))
    told |= {"seconds": a, "than_seconds": b}
    if a:
        told["rate"] = spread([amount / one for one in a])
    if a and status == "measured":
        told["than_rate"] = spread([amount / one for one in b])
        told["ratio"] = times(a, b)
        told["met"] = None if goal is None else told["ratio"]["median"] >= goal
        if start and what in start and than in start:
            told["start"] = {one: start[one] for one in (what, than)}
            less = [(y - start[than]) / (x - start[what]) for x, y in zip(a, b, strict=True)]
            told["ratio_without_start"] = spread(less)
    return told


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows to look at."""
    shown = Table(title="ratio: how many times as fast as what it is beside; min, median and max of the rounds")
    for column in ("", "what", "rate", "than", "its rate", "ratio", "without start", "goal", "met"):
        shown.add_column(column, justify="left" if column in ("", "what", "than") else "right", no_wrap=True)

    def number(value: float) -> str:
        return f"{value:,.{4 if value < 0.1 else 2 if value < 100 else 0}f}"

    def told(values: Mapping[str, float] | None) -> str:
        return " ".join(map(number, (values or {}).values()))

    for one in rows:
        rates = [
            f"{number(one[rate]['median'])} {one['unit']}" if one.get(rate) else "" for rate in ("rate", "than_rate")
        ]
        ratio = told(one.get("ratio")) or ("" if one["than"] is None else one["status"][:40])
        met = {True: "yes", False: "no", None: ""}[one["met"]]
        than, goal = one["than"] or "", "" if one["goal"] is None else f"{one['goal']:g}"
        without = told(one.get("ratio_without_start"))
        shown.add_row(one["part"], one["what"], rates[0], than, rates[1], ratio, without, goal, met)
    return shown


def machine() -> dict[str, Any]:
    """What was measured on, with what, and how busy it was."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "device": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": said.stdout.strip() or None,
    }
