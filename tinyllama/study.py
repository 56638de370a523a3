"""Many runs from one line: compiled to jobs that share trunks, trained in turn or side by side, fitted, and told.

A study's folder, runs_dir/study-NAME, holds its jobs as they were frozen (`jobs/`, with a log each where they run side
by side), `study.json`, and what was fitted to its points. The points are runs like any other, in folders of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinyllama import fits, tasks
from tinyllama.config.load import ConfigError, Problem, as_dict, digest, run_folder, validate
from tinyllama.config.schema import RunConfig
from tinyllama.launch import runs, trunk
from tinyllama.launch.launcher import visible_gpus
from tinyllama.launch.signals import requests
from tinyllama.plan.plan import Plan
from tinyllama.plan.render import counted
from tinyllama.tracking.folder import RESULT
from tinyllama.tracking.parent import Parent
from tinyllama.tracking.record import write_json

STUDY = "study.json"
JOBS = "jobs"
Train = Callable[[RunConfig], int]
"""Trains one point and returns the exit status that it would end with alone."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The points of a grid, checked and planned, and which of them are one job."""

    name: str
    folder: Path
    configs: tuple[RunConfig, ...]
    plans: tuple[Plan, ...]
    jobs: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Of all points, as if each were trained alone."""
        return sum(plan.tokens for plan in self.plans)

    @property
    def shared_tokens(self) -> int:
        """Those that need not be trained, as others have the same trunk."""
        return sum(trunk.spared_tokens(self.configs, self.plans))

    def told(self) -> str:
        """How much there is to do, in one line."""
        done = sum(is_finished(config) for config in self.configs)
        whole = f"{self.name}: {len(self.configs)} points, {len(self.jobs)} jobs, {counted(self.tokens)} tokens"
        if self.shared_tokens:
            left = self.tokens - self.shared_tokens
            whole += f", of which shared trunks save {self.shared_tokens / self.tokens:.0%}: {counted(left)} to train"
        return whole + (f"; {done} points are finished" if done else "")


def compiled(configs: Sequence[RunConfig], *, console: Console) -> Study:
    """A grid as a study. Data that can be prepared on the spot is, so that jobs side by side do not all do it."""
    name = configs[0].study.name or f"grid-{_digest_of(configs)}"
    folder = Path(configs[0].runs_dir) / f"study-{name}"
    for config in {json.dumps(as_dict(config)["data"]): config for config in configs}.values():
        tasks.prepared(config, console=console)
    whole = [_point(config, name=name, folder=folder) for config in configs]
    plans = [tasks.plan_of(config, manifest=tasks.manifest_of(config)) for config in whole]
    jobs = tuple(tuple(job) for job in trunk.jobs_of(whole, plans))
    return Study(name=name, folder=folder, configs=tuple(whole), plans=tuple(plans), jobs=jobs)


def _point(config: RunConfig, *, name: str, folder: Path) -> RunConfig:
    """One of a study's; on a CPU, jobs side by side share its cores out."""
    layout, jobs = config.parallelism, config.study.at_a_time
    if jobs > 1 and layout.device == "cpu" and layout.threads is None:
        cores = len(os.sched_getaffinity(0))
        layout = replace(layout, threads=max(1, cores // (jobs * layout.gpus)))
    return replace(config, study=replace(config.study, name=name, folder=str(folder)), parallelism=layout)


def _digest_of(configs: Sequence[RunConfig]) -> str:
    return hashlib.sha256("".join(sorted(map(digest, configs))).encode()).hexdigest()[:8]


def run(configs: Sequence[RunConfig], *, train: Train, program: Path, console: Console) -> int:
    """Train every point that is not finished, fit what came out and tell it; the exit status.

    A point that fails stops no other. The parent run in MLflow is closed however this ends.
    """
    requests.begin_part(configs[0].time_limit)
    study = compiled(configs, console=console)
    freeze(study)
    console.print(study.told())
    with Parent.opened(study.configs[0], study.folder, study.name, report=console.print) as parent:
        try:
            if study.configs[0].study.at_a_time == 1:
                status = _in_turn(study, train, console)
            else:
                status = _side_by_side(study, program, console)
        finally:
            for config in study.configs:
                parent.close_child(run_folder(config))
        rows = [row_of(config, plan) for config, plan in zip(study.configs, study.plans, strict=True)]
        console.print(table_of(rows))
        write_json(study.folder / STUDY, {"name": study.name, "told": study.told(), "points": rows})
        artifacts = [study.folder / STUDY, *_fitted(study, rows, console)]
        parent.finish(artifacts, failed=status != 0)
    return status


def _fitted(study: Study, rows: Sequence[Mapping[str, Any]], console: Console) -> list[Path]:
    """The files of a fit to the points; that there are too few of them is no failure of theirs."""
    try:
        return fits.fit_study(study.configs[0], rows, study.told(), folder=study.folder, console=console)
    except ValueError as error:
        console.print(f"not fitted: {error}")
        return []


def freeze(study: Study) -> None:
    """Write the jobs down: what trains them later reads these files, and no YAML."""
    for number, job in enumerate(study.jobs):
        configs = [as_dict(study.configs[point]) for point in job]
        write_json(job_file(study.folder, number), configs)


def job_file(folder: Path, number: int) -> Path:
    """Where a job is written down."""
    return folder / JOBS / f"{number:03d}.json"


def run_job(path: Path, *, meet: str | None, train: Train, console: Console) -> int:
    """Train the points of a frozen job one after the other; the exit status. Raises ValueError where it is no job.

    Where the job runs on several nodes, meet is the host:port where their launchers do.
    """
    try:
        configs = [validate(config) for config in json.loads(path.read_text())]
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no job of a study: {error}") from error
    status = 0
    for config in configs:
        console.rule(str(run_folder(config)), align="left")
        here = replace(config, parallelism=replace(config.parallelism, rendezvous=meet)) if meet else config
        status = train(here) or status
    return status


def _in_turn(study: Study, train: Train, console: Console) -> int:
    status, number = 0, 0
    for job in study.jobs:
        for point in job:
            config, number = study.configs[point], number + 1
            console.rule(f"{number} of {len(study.configs)}: {run_folder(config)}", align="left")
            if is_finished(config):
                console.print("finished already")
            else:
                status = train(config) or status
    return status


def _side_by_side(study: Study, program: Path, console: Console) -> int:
    """Each job a process of its own, so many at a time, with GPUs or cores of its own."""
    waiting = [n for n, job in enumerate(study.jobs) if not all(is_finished(study.configs[point]) for point in job)]
    free: list[Mapping[str, str]] = list(_devices(study))
    running: dict[int, tuple[subprocess.Popen[bytes], Mapping[str, str]]] = {}
    status = 0
    try:
        while waiting or running:
            while waiting and free:
                number, devices = waiting.pop(0), free.pop(0)
                running[number] = _begin(study, number, program, devices), devices
                console.print(f"job {number} begins: {job_file(study.folder, number).with_suffix('.log')}")
            for number, (process, devices) in list(running.items()):
                if (ended := process.poll()) is not None:
                    del running[number]
                    free.append(devices)
                    status = ended or status
                    console.print(f"job {number} has {'finished' if not ended else f'ended with status {ended}'}")
            time.sleep(0.1)
    finally:
        for process, _ in running.values():
            process.terminate()  # it saves and stops
        for process, _ in running.values():
            process.wait()
    return status


def _begin(study: Study, number: int, program: Path, devices: Mapping[str, str]) -> subprocess.Popen[bytes]:
    path = job_file(study.folder, number)
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(program), "--job", str(path)],
            env=os.environ | devices,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is passed on by this process, once
        )


def _devices(study: Study) -> Iterator[dict[str, str]]:
    """What each of the jobs that run at the same time has for itself."""
    config = study.configs[0]
    jobs, each = config.study.at_a_time, max(one.parallelism.gpus for one in study.configs)
    if config.parallelism.device == "cpu":
        yield from [{}] * jobs
        return
    here = visible_gpus()
    if len(here) < jobs * each:
        says = f"{jobs} jobs of {each} GPUs each are more than the {len(here)} here: lower it or parallelism.gpus"
        raise ConfigError([Problem("study.at_a_time", says)])
    for first in range(0, jobs * each, each):
        yield {"CUDA_VISIBLE_DEVICES": ",".join(here[first : first + each])}


def is_finished(config: RunConfig) -> bool:
    """Whether a point needs no training: its folder holds it, finished."""
    run_dir = run_folder(config)
    if config.resume != "auto" or not runs.finished(run_dir):
        return False
    with suppress(ValueError):
        return runs.thaw(run_dir).digest == digest(config)
    return False


def row_of(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What came of a point: its status and loss, and why it has none."""
    run_dir = run_folder(config)
    branch, result = trunk.branch_of(run_dir), {"status": "not begun"}
    with suppress(OSError, ValueError):
        result = json.loads((run_dir / RESULT).read_text())
    return {
        "name": run_dir.name,
        "run_dir": str(run_dir),
        "status": result["status"],
        "params": plan.parameters.total,
        "tokens": plan.tokens,
        "trained_tokens": plan.tokens - (branch.tokens if branch else 0),
        "loss": result.get("loss"),
        "note": result.get("reason") or (f"from step {branch.step:,} of {Path(branch.run).name}" if branch else ""),
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What came of all points, a line each."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("run", "size", "tokens", "trained", "loss", "status", ""):
        table.add_column(column, justify="left" if column in ("run", "status", "") else "right", overflow="fold")
    for row in rows:
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        sizes = (counted(row[key]) for key in ("params", "tokens", "trained_tokens"))
        table.add_row(row["name"], *sizes, loss, row["status"], row["note"])
    return table
