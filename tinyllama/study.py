"""Many runs from one line: planned, or compiled to jobs that share trunks, trained in turn or side by side, and fitted.

A study's folder, runs_dir/study-NAME, holds its jobs as they were frozen (`jobs/`, with a log each where they run side
by side), `study.json`, and what was fitted to its points. The points are runs like any other, in folders of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinyllama import fits, jobs, tasks
from tinyllama.config.kinds import parse_count
from tinyllama.config.load import ConfigError, Problem, as_dict, digest, run_folder
from tinyllama.config.schema import RunConfig
from tinyllama.jobs import Study
from tinyllama.launch import trunk
from tinyllama.launch.runs import finished, steps_taken, thaw
from tinyllama.launch.signals import requests
from tinyllama.plan.grid import Point, render_grid
from tinyllama.plan.render import counted
from tinyllama.scaling.collect import STUDY
from tinyllama.tracking.folder import PLAN, RESULT, alone, is_kept
from tinyllama.tracking.parent import Parent
from tinyllama.tracking.record import write_json
from tinyllama.tracking.store import flatten


def check(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError for a grid that cannot be trained as a study."""
    points = [config for config in configs if config.task == "train"]
    if len(points) < 2:
        return
    problems = []
    for folder, times in Counter(map(run_folder, points)).items():
        if times > 1:
            says = f"{times} points of the grid are one run, {folder}: let them differ in what determines a run"
            problems.append(Problem("hydra.sweeper.params", says))
    if points[0].study.launcher == "here" and points[0].study.at_a_time > 1:
        if any(config.parallelism.nodes > 1 for config in points):
            says = "jobs on several nodes cannot run side by side here, as they meet at one address: set it to 1"
            problems.append(Problem("study.at_a_time", says))
        try:
            list(jobs.shared_out(points))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def compiled(configs: Sequence[RunConfig], *, console: Console) -> Study:
    """A grid as a study. Data that can be prepared on the spot is, so that jobs side by side do not all do it."""
    for config in {json.dumps(as_dict(config)["data"]): config for config in configs}.values():
        tasks.prepared(config, console=console)
    whole = _points_of(configs, labels_of(configs))
    plans = [tasks.planned(config) for config in whole]
    texts = [tasks.identity_of(config).manifest_sha256 for config in whole]
    grouped = tuple(tuple(job) for job in trunk.jobs_of(whole, plans))
    name, folder = str(whole[0].study.name), Path(str(whole[0].study.folder))
    return Study(name=name, folder=folder, configs=tuple(whole), plans=tuple(plans), texts=tuple(texts), jobs=grouped)


def _points_of(configs: Sequence[RunConfig], labels: Sequence[str]) -> list[RunConfig]:
    """A grid's points as those of a study."""
    name = configs[0].study.name or f"grid-{_digest_of(configs)}"
    folder = str(Path(configs[0].runs_dir) / f"study-{name}")
    return [
        replace(_side_by_side(config), study=replace(config.study, name=name, folder=folder, point=label))
        for config, label in zip(configs, labels, strict=True)
    ]


def _side_by_side(config: RunConfig) -> RunConfig:
    """Jobs side by side share the machine's cores out."""
    layout, at_a_time = config.parallelism, config.study.at_a_time
    if at_a_time == 1 or layout.threads is not None:
        return config
    cores = len(os.sched_getaffinity(0))
    return replace(config, parallelism=replace(layout, threads=max(1, cores // (at_a_time * layout.gpus))))


def labels_of(configs: Sequence[RunConfig]) -> list[str]:
    """What tells each point from the others, in few words: `model=14m, tokens=160K`.

    Options are named where they differ, then the values that tell apart what they do not, in the config's order.
    """
    flat = [flatten(as_dict(config)) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    # names first; what only says where a run lies last
    keys.sort(key=lambda key: (not key.endswith(".name"), key in ("name", "runs_dir", "run_dir")))
    chosen: list[str] = []
    groups = 1
    for key in keys:
        if (told := len({tuple(one.get(each) for each in (*chosen, key)) for one in flat})) > groups:
            chosen.append(key)
            groups = told
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in chosen}
    times = Counter(short.values())
    names = {key: key if times[leaf] > 1 else leaf for key, leaf in short.items()}
    labels = [", ".join(f"{names[key]}={_short(one[key])}" for key in chosen if key in one) for one in flat]
    return [label or run_folder(config).name for label, config in zip(labels, configs, strict=True)]


def _short(value: str) -> str:
    """A round count of thousands and a whole number as one writes them, any other value as it is."""
    value = value.removesuffix(".0") if value.removesuffix(".0").isdecimal() else value
    short = counted(int(value)) if value.isdecimal() else value
    return short if value.isdecimal() and parse_count(short) == int(value) else value


def _digest_of(configs: Sequence[RunConfig]) -> str:
    return hashlib.sha256("".join(sorted(map(digest, configs))).encode()).hexdigest()[:8]


def plan(configs: Sequence[RunConfig], *, console: Console) -> None:
    """task=plan of several points: a line for each, and what they take together."""
    labels, study = labels_of(configs), configs[0].study
    configs = _points_of(configs, labels)
    one_each = len(set(map(run_folder, configs))) == len(configs)
    plans = [tasks.planned_and_written(config) if one_each else tasks.planned(config) for config in configs]
    points = []
    for label, config, plan, shared in zip(labels, configs, plans, trunk.spared_tokens(configs, plans), strict=True):
        done, steps = _behind(config)
        left = 0 if done else plan.tokens - max(shared, plan.tokens_by(min(steps, plan.steps)))
        points.append(Point(label, plan, done=done, shared_tokens=shared, left_tokens=left))
    at_a_time = min(study.at_a_time, len(configs)) if study.launcher == "here" else 1
    # points that differ in their hardware or layout alone are compared, not added up
    for part in render_grid(points, runs=len(set(map(digest, configs))), at_a_time=at_a_time):
        console.print(part)
    where = "each written to {} in its own folder, where no run has begun"
    console.print(where.format(PLAN) if one_each else f"not written to {PLAN}: points share a folder")


def _behind(config: RunConfig) -> tuple[bool, int]:
    """Whether a point has been trained, and the steps that it has taken; what else lies in its folder is not it."""
    run_dir, is_it = run_folder(config), False
    with suppress(ValueError):
        is_it = config.resume != "never" and thaw(run_dir).digest == digest(config)
    return (bool(finished(run_dir)), steps_taken(run_dir)) if is_it else (False, 0)


def run(configs: Sequence[RunConfig], *, train: jobs.Train, program: Path, console: Console) -> int:
    """Train every point that is not finished, fit what came out and tell it; the exit status.

    A point that fails stops no other. The parent run in MLflow is closed where this ends, fails or is stopped.
    """
    requests.begin_part(configs[0].time_limit)
    study = compiled(configs, console=console)
    with alone(study.folder):
        return _run(study, train=train, program=program, console=console)


def _run(study: Study, *, train: jobs.Train, program: Path, console: Console) -> int:
    jobs.freeze(study)
    told = study.told()  # it reads every point's folder
    console.print(told)
    with Parent.opened(study.configs[0], study.folder, told=told, report=console.print) as parent:
        try:
            if study.configs[0].study.launcher == "slurm":
                status = jobs.on_slurm(study, program, console)
            elif study.configs[0].study.at_a_time == 1:
                status = jobs.in_turn(study, train, console)
            else:
                status = jobs.side_by_side(study, program, console)
        finally:
            for config in study.configs:
                parent.close_child(run_folder(config))
        rows = [row_of(study, number) for number in range(len(study.configs))]
        console.print(table_of(rows))
        for row in rows:
            if row["status"] != "finished" and row["note"]:
                console.print(f"{row['name']}: {row['note']}")
        told = study.told()
        write_json(study.folder / STUDY, {"name": study.name, "told": told, "points": rows})
        artifacts = [study.folder / STUDY, *_fitted(study, rows, told, console)]
        parent.finish(told, rows, artifacts, failed=status != 0)
    return status


def _fitted(study: Study, rows: Sequence[Mapping[str, Any]], told: str, console: Console) -> list[Path]:
    """The files of a fit to the points; that there are too few of them is no failure of theirs."""
    try:
        return fits.fit_study(study.configs[0], rows, told, folder=study.folder, console=console)
    except Exception as error:
        console.print(f"not fitted: {error}" if isinstance(error, ValueError) else traceback.format_exc())
        return []


def row_of(study: Study, number: int) -> dict[str, Any]:
    """What came of a point: its status and loss, and why it has none."""
    plan, run_dir = study.plans[number], run_folder(study.configs[number])
    branch = trunk.branch_of(run_dir)
    result: dict[str, Any] = {"status": "not begun"}
    with suppress(OSError, ValueError):
        result |= json.loads((run_dir / RESULT).read_text())
    if result["status"] == "running" and not is_kept(run_dir):
        result |= {"status": "killed", "reason": "the same line goes on from its newest checkpoint"}
    with suppress(OSError, ValueError):
        failed = json.loads(jobs.why_not(study.folder, run_dir).read_text())
        result |= {"reason": result.get("reason") or failed["reason"], "loss": None}
        if result["status"] in ("finished", "not begun"):
            result["status"] = "refused" if failed["status"] == 2 else "failed"
    trained, rate = plan.tokens - (branch.tokens if branch else 0), result.get("tokens_per_s")
    return {
        "name": run_dir.name,
        "point": study.configs[number].study.point,
        "run_dir": str(run_dir),
        "status": result["status"],
        "params": plan.parameters.total,
        "tokens": plan.tokens,
        "trained_tokens": trained,
        "seconds": trained / rate if rate else None,
        "loss": result.get("loss"),
        "note": result.get("reason") or (f"from step {branch.step:,} of {Path(branch.run).name}" if branch else ""),
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What came of all points, a line each."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("point", overflow="fold")
    for column in ("size", "tokens", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("status", "run"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        table.add_row(row["point"], counted(row["params"]), counted(row["tokens"]), loss, row["status"], row["name"])
    return table
