"""The jobs of a study: what they are, and three ways to have them trained.

A job is one or more points, frozen in a file: those that share a trunk, the shortest first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from tinyllama import status
from tinyllama.config.load import ConfigError, Problem, as_dict, digest, run_folder, validate
from tinyllama.config.schema import RunConfig
from tinyllama.launch import queue, runs, slurm, trunk
from tinyllama.launch.launcher import visible_gpus
from tinyllama.launch.workers import Worker, log_of, serve, stop
from tinyllama.plan.plan import Plan
from tinyllama.plan.render import counted
from tinyllama.tracking.record import write_json, write_whole

JOBS = "jobs"
QUEUED = "slurm.json"
SLURM_EVERY = 5.0
"""Seconds between two questions to SLURM."""
POINTS = "points"
"""In a study's folder: why those of its points that were refused or have failed did."""
Train = Callable[[RunConfig, Callable[[str], None]], int]
"""Trains one point and returns the exit status that it would end with alone; tells its second argument why not."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The points of a grid, checked and planned, and which of them are one job."""

    name: str
    folder: Path
    configs: tuple[RunConfig, ...]
    plans: tuple[Plan, ...]
    texts: tuple[str, ...]
    """The sha256 of each one's prepared data."""
    jobs: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Of all points, as if each were trained alone."""
        return sum(plan.tokens for plan in self.plans)

    @property
    def shared_tokens(self) -> int:
        """Those that need not be trained, as others have the same trunk."""
        return sum(trunk.spared_tokens(self.configs, self.plans))

    def finished(self) -> list[int]:
        """The points that need no training."""
        return [number for number in range(len(self.configs)) if self.is_finished(number)]

    def is_finished(self, number: int) -> bool:
        """Whether a point needs no training: its folder holds it, finished."""
        config = self.configs[number]
        run_dir = run_folder(config)
        with suppress(ValueError):  # a folder that cannot be read is the point's own affair
            if config.resume == "auto" and runs.finished(run_dir):
                frozen = runs.thaw(run_dir)
                return (frozen.digest, frozen.data.manifest_sha256) == (digest(config), self.texts[number])
        return False

    def jobs_left(self) -> list[int]:
        """The jobs that have a point to train."""
        done = set(self.finished())
        return [number for number, job in enumerate(self.jobs) if not done.issuperset(job)]

    def told(self) -> str:
        """How much there is to do, in one line."""
        done = len(self.finished())
        whole = f"{self.name}: {len(self.configs)} points, {len(self.jobs)} jobs, {counted(self.tokens)} tokens"
        if spared := self.shared_tokens:
            left = self.tokens - spared
            whole += f", of which shared trunks save {spared / self.tokens:.0%}: {counted(left)} to train"
        return whole + (f"; {done} points are finished" if done else "")


def freeze(study: Study) -> None:
    """Write the jobs down: what trains them later reads these files, and no YAML."""
    for number in range(len(study.jobs)):
        write_whole(job_file(study, number), _frozen(study, number))


def _frozen(study: Study, number: int) -> bytes:
    configs = [as_dict(study.configs[point]) for point in study.jobs[number]]
    return (json.dumps(configs, indent=2) + "\n").encode()


def job_file(study: Study, number: int) -> Path:
    """Where a job is written down; what is in it names it, so that nothing else is ever written there."""
    name = hashlib.sha256(_frozen(study, number)).hexdigest()[:8]
    return study.folder / JOBS / f"{name}.json"


def do_frozen(arguments: Sequence[str], *, train: Train, console: Console) -> int:
    """`--job FILE [--rendezvous HOST:PORT]`, or what a worker is told; the exit status."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))

    def do(path: Path) -> int:
        job = partial(run_job, path, meet=given.get("--rendezvous"), train=train, console=console)
        return status.attempt(job, console=console)

    if "--jobs" in given:
        return serve(int(given["--jobs"]), do, parent=int(given["--parent"]))
    return do(Path(given.get("--job", "nothing")))


def run_job(path: Path, *, meet: str | None, train: Train, console: Console) -> int:
    """Train the points of a frozen job one after the other; the exit status. Raises ValueError where it is no job.

    Where the job runs on several nodes, meet is the host:port where their launchers do.
    """
    try:
        configs = [validate(config) for config in json.loads(path.read_text())]
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no job of a study: {error}") from error
    statuses = []
    for config in configs:
        console.rule(str(run_folder(config)), align="left")
        here = replace(config, parallelism=replace(config.parallelism, rendezvous=meet)) if meet else config
        statuses.append(_train(here, train, console))
    return worst(statuses)


def _train(config: RunConfig, train: Train, console: Console) -> int:
    """One point, whatever becomes of it: the others are not to stop for it. Why it failed is written down."""
    assert config.study.folder is not None  # a point of a study
    note = why_not(Path(config.study.folder), run_folder(config))
    reasons: list[str] = []
    try:
        status = train(config, reasons.append)
    except Exception as error:
        console.print(traceback.format_exc())
        reasons.append(f"{type(error).__name__}: {error}")
        status = 1
    if status:
        write_json(note, {"status": status, "reason": "; ".join(reasons)})
    else:
        note.unlink(missing_ok=True)
    return status


def why_not(folder: Path, run_dir: Path) -> Path:
    """Where a study keeps why a point was not trained."""
    return folder / POINTS / f"{run_dir.name}.json"


def worst(statuses: Iterable[int]) -> int:
    """The exit status of several: interrupted, a full disk, failed or refused, stopped and to be started again."""
    known = set(statuses) - {0}
    for grave in (130, os.EX_IOERR):
        if grave in known:
            return grave
    return 1 if known - {os.EX_TEMPFAIL} else max(known, default=0)


def in_turn(study: Study, train: Train, console: Console) -> int:
    """Each point by this process, job after job; the exit status."""
    statuses, number = [], 0
    for job in study.jobs:
        for point in job:
            config, number = study.configs[point], number + 1
            console.rule(f"{number} of {len(study.configs)}: {run_folder(config)}", align="left")
            if study.is_finished(point):
                console.print("finished already")
            else:
                statuses.append(_train(config, train, console))
    return worst(statuses)


def side_by_side(study: Study, program: Path, console: Console) -> int:
    """So many jobs at a time, each by a process with GPUs or cores of its own, or a part of a GPU."""
    waiting, told = study.jobs_left(), set(study.finished())
    free = [Worker([sys.executable, str(program)], devices) for devices in shared_out(study.configs)]
    running: dict[int, Worker] = {}
    statuses: list[int] = []
    try:
        while waiting or running:
            while waiting and free:
                number, worker = waiting.pop(0), free.pop(0)
                running[number] = worker
                job = job_file(study, number)
                worker.begin(job)
                console.print(f"job {number} begins: {log_of(job)}")
            while free and not waiting:
                free.pop().close()
            for number, worker in list(running.items()):
                if (ended := worker.ended()) is not None:
                    console.print(f"job {number} has {'finished' if not ended else f'ended with status {ended}'}")
                    statuses.append(ended)
                    free.insert(0, running.pop(number))  # it need not be started
            told = _tell_finished(study, told, console)
            time.sleep(0.2)
    finally:
        stop(running.values())
        for worker in free:
            worker.close()
    return worst(statuses)


def shared_out(configs: Sequence[RunConfig]) -> Iterator[dict[str, str]]:
    """The GPUs of each job of those that run at the same time. Raises ConfigError where there are not enough."""
    jobs, per_gpu = configs[0].study.at_a_time, configs[0].study.per_gpu
    each = max(one.parallelism.gpus if one.parallelism.device == "cuda" else 0 for one in configs)
    if not each:
        yield from [{}] * jobs
        return
    here = visible_gpus()
    if len(here) * per_gpu < jobs * each:
        says = f"{jobs} jobs of {each} GPUs each, {per_gpu} to a GPU, are more than the {len(here)} here: lower it"
        raise ConfigError([Problem("study.at_a_time", f"{says} or parallelism.gpus, or raise study.per_gpu")])
    for first in range(0, jobs * each, each):
        yield {"CUDA_VISIBLE_DEVICES": ",".join(here[gpu % len(here)] for gpu in range(first, first + each))}


def on_slurm(study: Study, program: Path, console: Console) -> int:
    """Each job one of an array's.

    Jobs with points that an earlier start has queued are handed over after all that is queued has ended.
    """
    folder, told = study.folder / JOBS, set(study.finished())

    def progress(states: Sequence[queue.JobState]) -> None:
        nonlocal told
        standing = ", ".join(f"{n} {state}" for state, n in sorted(Counter(one.state for one in states).items()))
        console.print(f"SLURM: {standing}; logs: {folder}")
        told = _tell_finished(study, told, console)

    statuses: dict[int, int] = {}
    left, queued = study.jobs_left(), _queued(folder)
    while left:
        points = {number: [str(run_folder(study.configs[point])) for point in study.jobs[number]] for number in left}
        new = [number for number in left if queued.keys().isdisjoint(points[number])]
        for array in _submitted(study, new, program):
            queued |= {point: id_ for number, id_ in array.items() for point in points[number]}
            write_json(folder / QUEUED, queued)
        ids = {number: {queued[point] for point in points[number] if point in queued} for number in left}
        ended = queue.wait(sorted(set().union(*ids.values())), folder=folder, progress=progress, every=SLURM_EVERY)
        status = {state.id: 1 if state.status is None else state.status for state in ended}
        statuses |= {number: worst(status[id_] for id_ in ids[number]) for number in left}
        partly = [number for number in left if not queued.keys() >= set(points[number])]
        left, queued = [number for number in study.jobs_left() if number in partly], {}
    return worst(statuses[number] for number in study.jobs_left() if number in statuses)


def _submitted(study: Study, jobs: Sequence[int], program: Path) -> Iterator[dict[int, str]]:
    """Hand jobs over, those of as many nodes as one array: each array's jobs with the ids that they get."""
    nodes_of = {number: study.configs[study.jobs[number][0]].parallelism.nodes for number in jobs}
    for nodes in sorted(set(nodes_of.values())):
        alike = [number for number in jobs if nodes_of[number] == nodes]
        ids = slurm.submit(
            [job_file(study, number) for number in alike],
            settings=slurm.settings_of([study.configs[study.jobs[number][0]] for number in alike]),
            folder=study.folder / JOBS,
            command=[sys.executable, str(program)],
            nodes=nodes,
        )
        yield dict(zip(alike, ids, strict=True))


def _queued(folder: Path) -> dict[str, str]:
    """What an earlier start handed over and that has not ended: the job's id by its points' folders."""
    note = folder / QUEUED
    known: dict[str, str] = json.loads(note.read_text()) if note.exists() else {}
    ids = sorted(set(known.values()))
    ended = {state.id for state in queue.states(ids, folder=folder) if state.ended} if ids else set()
    return {name: id_ for name, id_ in known.items() if id_ not in ended}


def _tell_finished(study: Study, told: set[int], console: Console) -> set[int]:
    """A line for each point that has finished since it was last asked."""
    done = set(told)
    for number in range(len(study.configs)):
        if number in told or not study.is_finished(number):
            continue
        done.add(number)
        run_dir = run_folder(study.configs[number])
        loss = (runs.finished(run_dir) or {})["loss"]
        console.print(f"{run_dir.name}: a loss of {loss:.3f}; {len(done)} of {len(study.configs)} points")
    return done
