"""Seconds until a command does what it is for: python benchmarks/startup.py [--rounds N] [--only CASE,...].

Commands as a user gives them, in a folder of their own whose data is prepared beforehand, in turns, on this machine's
CPU. Right first: each ends with the status it should and has said or done what is waited for; otherwise nothing is told
and the run exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.data_race import keep, machine, spread
from tinyllama.engine import checkpoint
from tinyllama.tracking.journal import JOURNAL, Journal, read

ROOT = Path(__file__).resolve().parents[1]
CASES = ("show", "plan", "first step", "second point", "resume")
GOALS = {"show": 1.0, "plan": 1.5, "first step": 12.0, "late over early": 1.0}
"""Seconds, and how many times as long a resume late in a run may take."""
PLAN = [
    *("task=plan", "model=1.1b", "data=slimpajama_starcoder", "budget=three_epochs"),
    *("hardware=a100", "parallelism=zero1", "parallelism.gpus=16"),
]
LATE = 1_430_000
"""Steps, as many as TinyLlama took."""
TINY = ("model.d_model=64", "model.n_layers=2", "model.context=64", "train.batch_tokens=1024", "train.eval_tokens=1K")
WITHIN = 600
"""Seconds after which a command has failed."""


class WrongError(Exception):
    """A command did not do what it is timed for."""


class Place:
    """The folder in which the commands run."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder = folder
        self._seeds = count(1)
        self._data: tuple[str, ...] = ()
        if quick:  # a small text instead of Python's library
            raw = folder / "raw.jsonl"
            texts = (f"{n:x} times {n} is {n * n:x}, {n**5:x} not. " * 20 for n in range(3000))
            raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            web = f"+data.sources.web={{format: jsonl, raw: {raw.parent}, include: ['raw.jsonl'], weight: 1, "
            web += "held_out: 0.01, tokens: 1M}"
            words = ("~data.sources.text", "~data.sources.code", web, "data.name=web", "data.tokenizer.vocab_size=300")
            self._data = (*words, *TINY, "parallelism.threads=1")

    def command(self, *line: str, data: bool = True) -> list[str]:
        """A command line; flags come before the overrides."""
        flags = [word for word in line if word.startswith("-")]
        rest = [word for word in line if word not in flags]
        return [sys.executable, str(ROOT / "main.py"), *flags, *(self._data if data else ()), *rest]

    def said(self, *line: str, data: bool = True) -> tuple[float, str]:
        """Seconds that a command takes, and what it prints. Raises WrongError where it fails."""
        began = time.perf_counter()
        done = subprocess.run(
            self.command(*line, data=data), cwd=self.folder, capture_output=True, text=True, timeout=WITHIN, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise WrongError(f"{' '.join(line)} ended with {done.returncode}: {done.stderr[-1000:]}")
        return seconds, done.stdout

    def seed(self) -> str:
        """One that no run here has."""
        return str(next(self._seeds))

    def until_step(self, run_dir: str, after: int, *line: str) -> float:
        """Seconds from the command to the journal's line of the step after so many, at which the run is stopped."""
        path, told = self.folder / run_dir / JOURNAL, self.folder / "told.txt"
        size = path.stat().st_size if path.exists() else 0
        began, end = time.time(), time.monotonic() + WITHIN
        with told.open("w") as file:
            command = self.command(f"run_dir={run_dir}", *line)
            running = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT)
        try:
            while not (lines := list(_later(path, size))) or lines[-1]["kind"] != "train":
                if running.poll() is not None or time.monotonic() > end:
                    raise WrongError(f"{' '.join(line)} took no step: {told.read_text()[-1000:]}")
                time.sleep(0.01)
            running.send_signal(signal.SIGTERM)
            if (status := running.wait(WITHIN)) != os.EX_TEMPFAIL:
                raise WrongError(f"{' '.join(line)} ended with {status}: {told.read_text()[-1000:]}")
        finally:
            running.kill()
            running.wait()
        if lines[0].get("step") != after or lines[-1]["step"] != after + 1:
            raise WrongError(f"{' '.join(line)} went on from step {lines[0].get('step')}, and not from {after}")
        return float(lines[-1]["time"]) - began


def _later(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """The lines that a journal has had since it was of this size, up to the first step."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(size)
        for line in file.read().split(b"\n")[:-1]:
            record = json.loads(line)
            yield record
            if record["kind"] == "train":
                return


def show(place: Place) -> dict[str, float]:
    """--cfg job."""
    seconds, told = place.said("--cfg", "job", data=False)
    if "\ntask: train\n" not in told or "n_kv_heads:" not in told:
        raise WrongError(f"--cfg job shows {told[:300]}")
    return {"show": seconds}


def plan(place: Place) -> dict[str, float]:
    """task=plan of TinyLlama's run."""
    seconds, told = place.said(*PLAN, data=False)
    if "1,100,048,384" not in told:
        raise WrongError(f"task=plan says {told[:300]}")
    return {"plan": seconds}


def first_step(place: Place) -> dict[str, float]:
    """A run that is new."""
    seed = place.seed()
    seconds = place.until_step(f"runs/{seed}", 0, f"seed={seed}")
    shutil.rmtree(place.folder / f"runs/{seed}")
    return {"first step": seconds}


def second_point(place: Place) -> dict[str, float]:
    """Two runs of one step by one launcher: from the last line of the first to the step of the second."""
    seeds = [place.seed() for _ in range(2)]
    one_step = (*TINY, "budget.tokens=1024", "schedule.warmup_steps=0", "generate.max_tokens=1")
    place.said("-m", f"seed={','.join(seeds)}", "name=point", "runs_dir=study", *one_step)
    journals = [read(path) for path in (place.folder / "study").glob(f"point-*/{JOURNAL}")]
    former, later = sorted(journals, key=lambda lines: float(lines[0]["time"]))
    if [line["kind"] for line in former][-1] != "end" or former[-1]["status"] != "FINISHED":
        raise WrongError(f"the first point ended with {former[-1]}")
    [step] = [line for line in later if line["kind"] == "train"]
    shutil.rmtree(place.folder / "study")
    return {"second point": float(step["time"]) - float(former[-1]["time"])}


class Resume:
    """A run of 1,430,004 steps, gone on with early and late: the same weights, and as long a journal as it would be."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._line = (*TINY, f"budget.tokens={1024 * (LATE + 4)}", "schedule.warmup_steps=2000")
        place.until_step("runs/early", 0, *self._line)
        [early] = checkpoint.found(place.folder / "runs/early/checkpoints")
        self._early = checkpoint.Checkpoint.at(early).step
        shutil.copytree(place.folder / "runs/early", place.folder / "runs/late", symlinks=True)
        self._age(place.folder / "runs/late", early.name)

    def _age(self, run_dir: Path, name: str) -> None:
        """Turn a run's only checkpoint into one of LATE steps, and write the journal of the steps to there."""
        one = checkpoint.Checkpoint.at(run_dir / "checkpoints" / name)
        losses = [one.meta["losses"][-1]] * 100
        meta = one.meta | {"tokens": 1024 * LATE, "losses": losses}
        checkpoint.write_state(one.place, step=LATE, meta=meta, files=one.sha256)
        one.place.rename(one.place.with_name(checkpoint.name_of(LATE)))
        (one.place.parent / "latest").unlink()
        lines = {line["kind"]: line for line in read(run_dir / JOURNAL)}
        with Journal(run_dir / JOURNAL) as journal, journal.path.open("a") as file:
            for step in range(one.step + 1, LATE + 1):
                kinds = {"train": step % 5 == 0, "checkpoint": step % 100 == 0}
                for kind in (kind for kind, due in kinds.items() if due):
                    known = lines[kind] | {"step": step}
                    file.write(json.dumps(known | ({"tokens": 1024 * step} if "tokens" in known else {})) + "\n")

    def __call__(self, _: Place) -> dict[str, float]:
        """Both, from the same folders each time."""
        seconds = {}
        for when, step in (("early", self._early), ("late", LATE)):
            kept = self._place.folder / f"runs/{when}"
            again = self._place.folder / f"runs/{when}-again"
            shutil.copytree(kept, again, symlinks=True)
            seconds[f"resume {when}"] = self._place.until_step(f"runs/{when}-again", step, *self._line)
            shutil.rmtree(again)
        return seconds


def measured(cases: Sequence[str], *, rounds: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of each case, round by round. Raises WrongError."""
    seconds: dict[str, list[float]] = {}
    with TemporaryDirectory() as name:
        place = Place(Path(name), quick=quick)
        if set(cases) - {"show", "plan"}:
            place.said("task=prepare")
        todo: dict[str, Callable[[Place], dict[str, float]]] = {
            "show": show,
            "plan": plan,
            "first step": first_step,
            "second point": second_point,
        }
        if "resume" in cases:
            todo["resume"] = Resume(place)
        for case in cases:
            todo[case](place)  # which warms the disk's caches, and makes MLflow's tables
        for _ in range(rounds):
            for case in cases:
                for what, took in todo[case](place).items():
                    seconds.setdefault(what, []).append(took)
    return seconds


def run(cases: Sequence[str], *, rounds: int, quick: bool, out: Path | None) -> int:
    """Measure, print a table, and write a file where one is asked for."""
    told: dict[str, Any] = {"benchmark": "startup", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    told |= machine() | {"rounds": rounds, "quick": quick, "goals": GOALS}
    try:
        seconds = measured(cases, rounds=rounds, quick=quick)
    except WrongError as error:
        print(f"{error}\nnothing is told", file=sys.stderr)
        return 1
    told |= {"load_after": os.getloadavg(), "seconds": seconds, "spread": {}}
    figures = dict(seconds)
    if "resume late" in seconds:
        pairs = zip(seconds["resume late"], seconds["resume early"], strict=True)
        figures["late over early"] = [late / early for late, early in pairs]
    table = Table(title=f"{told['device']}: seconds from the command, {rounds} rounds in turns")
    for column in ("", "min", "median", "max", "goal"):
        table.add_column(column, justify="right" if column else "left")
    for what, values in figures.items():
        told["spread"][what] = spread(values)
        goal = GOALS.get(what)
        row = [f"{value:.2f}" for value in told["spread"][what].values()]
        table.add_row(what, *row, "" if goal is None else f"{goal:g}")
    Console().print(table)
    keep(told, out)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(CASES), help=f"some of the cases ({', '.join(CASES)})")
    parser.add_argument("--quick", action="store_true", help="a tiny model on a small text: its figures are none")
    parser.add_argument("--out", type=Path, help="the file to write")
    given = parser.parse_args()
    return run(given.only.split(","), rounds=given.rounds, quick=given.quick, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
