"""Runs that differ only in their budget are one run until the shorter one's decay begins: who has trained that already.

With schedule=wsd the rate of a step is the same whatever the budget, up to the last part of the steps, in which it
falls. Each such run keeps a checkpoint of the step where its decay begins. A longer one goes on from there, with the
same weights as if it had come there itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllama.config.load import essence, validate
from tinyllama.config.schema import RunConfig
from tinyllama.launch import runs
from tinyllama.plan.plan import Plan
from tinyllama.tracking.folder import CONFIG, PLAN
from tinyllama.tracking.journal import JOURNAL, read
from tinyllama.tracking.record import write_json, write_whole

BRANCH = "branch.json"


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Where a run goes on from what another has trained."""

    run: str
    """The other's folder."""
    step: int
    tokens: int
    """Those of the steps before it."""


def trunk(config: RunConfig, *, batch_tokens: int) -> dict[str, Any] | None:
    """All that determines a run's steps before its decay, as plain data.

    None for a schedule that has no plateau, and for a run that begins with another's weights, which may have been
    trained anew since.
    """
    if config.schedule.name != "wsd" or config.init_from:
        return None
    kept = essence(config)
    del kept["budget"], kept["schedule"]["decay_fraction"], kept["schedule"]["min_ratio"]
    return kept | {"batch_tokens": batch_tokens}


def _shares(config: RunConfig) -> bool:
    """Whether a run takes what others have trained; one that is to start over does not."""
    return config.study.share_trunks and config.resume != "never"


def jobs_of(configs: Sequence[RunConfig], plans: Sequence[Plan]) -> list[list[int]]:
    """Which points are one job, by their numbers: those that share a trunk, the shorter first, as the longer go on from
    them; each of the others alone."""
    jobs: dict[str, list[int]] = {}
    for number, (config, plan) in enumerate(zip(configs, plans, strict=True)):
        common = trunk(config, batch_tokens=plan.batch_tokens) if _shares(config) else None
        jobs.setdefault(json.dumps(common) if common else str(number), []).append(number)
    return [sorted(job, key=lambda number: (plans[number].branch_step or 0, number)) for job in jobs.values()]


def spared_tokens(configs: Sequence[RunConfig], plans: Sequence[Plan]) -> list[int]:
    """What each point need not train, as it goes on from the longest trunk of those before it in its job."""
    spared = [0] * len(plans)
    for job in jobs_of(configs, plans):
        step = 0
        for number in job:
            spared[number] = plans[number].tokens_by(step)
            step = max(step, plans[number].branch_step or 0)
    return spared


def branch_of(run_dir: Path) -> Branch | None:
    """Where a run has gone on from another; None where it has trained all its steps itself."""
    with suppress(OSError, ValueError, TypeError):
        return Branch(**json.loads((run_dir / BRANCH).read_text()))
    return None


def adopt(config: RunConfig, plan: Plan, *, run_dir: Path, data: runs.DataIdentity) -> Branch | None:
    """Give a run that has not begun the longest trunk that a run in runs_dir has trained, if there is one.

    The checkpoint's files are the other's own, by another name, and the journal begins with the other's. The checkpoint
    is named last: what is cut short before that is done again.
    """
    from tinyllama.engine.checkpoint import Checkpoint

    if not _shares(config) or runs.steps_taken(run_dir):
        return None
    (run_dir / BRANCH).unlink(missing_ok=True)
    for step, place in sorted(_trunks(config, plan, data), reverse=True):
        other = place.parent.parent
        branch = Branch(run=str(other), step=step, tokens=plan.tokens_by(step))
        try:
            Checkpoint.at(place).verify()
            lines = [line for line in read(other / JOURNAL) if line["kind"] != "end" and line["step"] <= step]
        except (OSError, ValueError, KeyError):  # removed meanwhile, damaged, not ours to read: there may be another
            continue
        _take(place, lines, run_dir=run_dir, branch=branch)
        return branch
    return None


def _trunks(config: RunConfig, plan: Plan, data: runs.DataIdentity) -> Iterator[tuple[int, Path]]:
    """Checkpoints that this run would come to as well, with their steps."""
    wanted = trunk(config, batch_tokens=plan.batch_tokens)
    if wanted is None or plan.branch_step is None:
        return
    for path in Path(config.runs_dir).glob(f"*/{CONFIG}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            frozen, planned = json.loads(path.read_text()), json.loads((path.parent / PLAN).read_text())
            if frozen.get("changed") or frozen["data"]["manifest_sha256"] != data.manifest_sha256:
                continue
            if frozen["config"]["model"]["d_model"] != config.model.d_model or planned["branch_step"] is None:
                continue  # checking all of a configuration takes its time
            theirs = trunk(validate(frozen["config"]), batch_tokens=planned["batch_tokens"])
            if theirs != wanted:
                continue
            most = min(plan.branch_step, planned["branch_step"])
            for step, place in runs.checkpoints(path.parent):
                if step <= most:
                    yield step, place


def _take(place: Path, lines: Sequence[Mapping[str, Any]], *, run_dir: Path, branch: Branch) -> None:
    partial = run_dir / runs.CHECKPOINTS / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in place.iterdir():
        try:
            os.link(file, partial / file.name)
        except OSError:  # another filesystem, or one without links
            shutil.copy2(file, partial / file.name)
    write_whole(run_dir / JOURNAL, "".join(json.dumps(record) + "\n" for record in lines).encode())
    write_json(run_dir / BRANCH, {"run": branch.run, "step": branch.step, "tokens": branch.tokens})
    partial.rename(partial.with_name(place.name))
