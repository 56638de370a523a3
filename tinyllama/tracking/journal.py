"""The journal: one JSON object a line, in `metrics.jsonl`, the truth about a run that everything else is drawn from."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

JOURNAL = "metrics.jsonl"
MEASURED = ("train", "eval", "held_out", "tasks")
_MEASURES = re.compile(rb'\{"kind": "(?:%s)", "time": [0-9.]+, "step": ([0-9]+), .*\}' % "|".join(MEASURED).encode())


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same values in strict JSON's terms: every non-finite float becomes null, with a reason beside it.

    The reasons are in one mapping, `reason`, from the dotted path of the missing number to `nan`, `inf` or `-inf`;
    reasons that the values already carry are kept. A missing number is an absence, never 0.0.
    """
    reasons: dict[str, str] = {}

    def clean(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: clean(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, f"{path}.{index}") for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            reasons[path] = str(float(value))
            return None
        return value

    cleaned = {key: clean(value, key) for key, value in values.items()}
    return cleaned | {"reason": reasons | cleaned.get("reason", {})} if reasons else cleaned


class Journal:
    """Appends lines to a run's journal; a context manager.

    Opening it cuts a last line that a crash left unfinished. Every line is handed to the operating system whole before
    `write` returns, so a killed process loses none. Errors: OSError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=0)
        whole = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)

    def write(self, kind: str, /, **values: Any) -> dict[str, Any]:
        """Appends one line and returns it as written.

        `kind` is start, resume, train, eval, held_out, tasks, checkpoint, skip, rollback or end. All but end carry
        `step`; train, eval, held_out and tasks carry `tokens` (seen so far). skip and rollback are what was decided
        about a loss spike at that step; a rollback says the step it went back to, `to`. Where start, resume and
        rollback take measured steps again, they name the first and the last, `superseded`. `time` is added, in seconds
        since 1970.
        Non-finite floats: see `finite`.
        """
        record = finite({"kind": kind, "time": round(time.time(), 3), **values})
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        written = self._file.write(line)
        if written != len(line):
            told = f"{self.path}: wrote {written} of {len(line)} bytes of a line; is the disk full?"
            raise OSError(errno.ENOSPC, told)
        if kind in ("skip", "rollback"):
            os.fsync(self._file.fileno())  # the checkpoints that follow rest on it
        return record

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that count, in order.

    A start or resume at step s, and a rollback to s, supersede the lines of later steps that were written before it:
    the run took them again. An unfinished last line is left out, so a live run's journal can be read. Errors:
    FileNotFoundError; ValueError where another line is no JSON object with a kind.
    """
    return read_both(path)[0]


def superseded(path: Path) -> list[tuple[int, int]]:
    """The first and the last step of each stretch that had been measured when the run went back, in order.

    Errors: as for `measured`.
    """
    return measured(path)[1]


def last_measured(records: Iterable[Mapping[str, Any]]) -> int:
    """The last step that lines of a journal measure; 0 where none does."""
    return max((record["step"] for record in records if record["kind"] in MEASURED), default=0)


def read_both(path: Path) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """What `read` and `superseded` give, from one reading."""
    records: list[dict[str, Any]] = []
    again: list[tuple[int, int]] = []
    last = 0
    for record, back in _parsed(path, _whole_lines(path)):
        if back is not None and last > back:
            again.append((back + 1, last))
            records = [old for old in records if old["kind"] not in MEASURED or old["step"] <= back]
            last = last_measured(records)
        if record["kind"] in MEASURED:
            last = max(last, record["step"])
        records.append(record)
    return records, again


def measured(path: Path) -> tuple[int, list[tuple[int, int]]]:
    """The last step that the lines that count measure, 0 where none does, and what `superseded` gives.

    Of a line as `Journal` writes it the beginning is enough: a run of a million steps has hundreds of thousands, and
    its next start waits for this. Errors: as for `read`, but for what is wrong further on in such a line.
    """
    steps: list[int] = []
    again: list[tuple[int, int]] = []
    for number, line in enumerate(_whole_lines(path), start=1):
        if ours := _MEASURES.match(line):
            steps.append(int(ours[1]))
            continue
        [(record, back)] = _parsed(path, [line], first=number)
        if back is not None and (last := max(steps, default=0)) > back:
            again.append((back + 1, last))
            steps = [step for step in steps if step <= back]
        if record["kind"] in MEASURED:
            steps.append(record["step"])
    return max(steps, default=0), again


def read_kinds(path: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of some rare kinds, none of them MEASURED. Errors: as for `read`, but for what is in other lines."""
    named = [f'"{kind}"'.encode() for kind in kinds]
    content = path.read_bytes()
    if not any(name in content for name in named):
        return []
    lines = enumerate(content.split(b"\n")[:-1], start=1)
    found = [(number, line) for number, line in lines if any(name in line for name in named)]
    records = [record for number, line in found for record, _ in _parsed(path, [line], first=number)]
    return [record for record in records if record["kind"] in kinds]


def has(path: Path, is_so: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether it is so of any line, superseded or not; reads up to the first. Errors: as for `read`."""
    return any(is_so(record) for record, _ in _parsed(path, _whole_lines(path)))


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line[:-1] for line in file if line.endswith(b"\n"))


def _parsed(path: Path, lines: Iterable[bytes], *, first: int = 1) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Lines as what they say, and the step that the run went back to with them, if it did."""
    for number, line in enumerate(lines, start=first):
        try:
            record = json.loads(line)
            kind, step = record["kind"], record.get("step", 0)
            back = record["to"] if kind == "rollback" else step if kind in ("start", "resume") else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            shown = line[:80].decode(errors="replace")
            raise ValueError(
                f"{path}, line {number}: {shown!r} is no JSON object with a kind; restore or remove that line"
            ) from error
        yield record, back


def add_tasks(path: Path, record: Mapping[str, Any], *, step: int, tokens: int | None) -> None:
    """Add scores of tasks at a step to a journal, but those, and failures, that are its last word on that step already.

    The caller keeps others out of the run's folder. Errors: as for `read`.
    """
    known: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for line in read(path):
        if line["kind"] == "tasks" and line["step"] == step:
            known |= line["scores"]
            reasons |= line.get("reason", {})
    written = finite({"scores": record["scores"]})["scores"]
    scores = {
        name: value
        for name, value in record["scores"].items()
        if name not in known or not _same(known[name], written[name])
    }
    reason = {name: why for name, why in record.get("reason", {}).items() if reasons.get(name) != why}
    if scores or reason:
        with Journal(path) as journal:
            rest = {"reason": reason} if reason else {}
            journal.write("tasks", step=step, tokens=tokens, scores=scores, **rest)


def _same(one: float | None, other: float | None) -> bool:
    """Whether two numbers are one, measured on another device or in other batches; or both are missing."""
    return one is other if one is None or other is None else math.isclose(one, other, rel_tol=1e-5)
