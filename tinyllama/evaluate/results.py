"""What is written down and shown of a model's scores, the paper's beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tinyllama.config.tasks import Evaluate
from tinyllama.evaluate.loss import SourceLoss
from tinyllama.evaluate.paper import HOW_ASKED, MEAN, PUBLISHED, PYTHIA_MEAN, mean, shown

Tasks = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What came of tasks."""

    tasks: dict[str, dict[str, float]]
    """By task, its metrics by their names, their standard errors as NAME_stderr, and HOW_ASKED."""
    failed: dict[str, str]
    """By task that could not be asked, why, in one line."""


def as_record(tasks: Tasks, failed: Mapping[str, str], how: Evaluate) -> dict[str, Any]:
    """The values of a line in the journal: `scores` by task/metric, and why a task has none.

    A task that was asked with so many solved examples or questions is called by them too: `boolq-5shot-limit100`.
    """
    asked = f"-{how.shots}shot" * (how.shots is not None) + f"-limit{how.limit}" * (how.limit is not None)
    scores = {
        f"{task}{asked}/{metric}": value
        for task, found in tasks.items()
        for metric, value in found.items()
        if metric not in HOW_ASKED
    }
    reason = {f"{task}{asked}": why for task, why in failed.items()}
    return {"scores": scores, **({"reason": reason} if reason else {})}


def asked_at(*, step: int | None, tokens: int | None, failed: Mapping[str, str]) -> dict[str, Any]:
    """When tasks were asked and which failed, for result.json."""
    return {"step": step, "tokens": tokens, **({"failed": dict(failed)} if failed else {})}


def score_line(tasks: Tasks) -> str:
    """The score of each task in a line: `hellaswag 59.2% acc_norm  ...`."""
    parts = ((task, shown(task, found), found) for task, found in tasks.items())
    return "  ".join(f"{task} {_written(name, found[name])} {name}" for task, name, found in parts if name)


def _written(metric: str, value: float) -> str:
    """A share in percent, any other number as it is."""
    return f"{value:.1%}" if _is_share(metric) else f"{value:.3f}"


def _is_share(metric: str) -> bool:
    return metric.partition(".")[0] in ("acc", "acc_norm", "exact_match", "em", "f1")


def render_held_out(measured: Mapping[str, SourceLoss]) -> Table:
    """Losses by source, for a terminal."""
    table = Table(box=None)
    for column in ("held out", "loss (nats)", "bits per byte", "tokens"):
        table.add_column(column, justify="left" if column == "held out" else "right")
    for name, source in measured.items():
        table.add_row(name, f"{source.loss:.3f}", f"{source.bits_per_byte:.3f}", f"{source.tokens:,}")
    return table


def render_tasks(tasks: Tasks) -> Iterator[Table | str]:
    """Scores with their standard errors, and what the paper has, for a terminal; nothing where there are none."""
    if not tasks:
        return
    paper = any(task in PUBLISHED for task in tasks)
    table = Table(box=None)
    for column in ("task", "score", "±", "metric", "questions", "shots", *(["paper"] if paper else [])):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task, found in tasks.items():
        metric = shown(task, found)
        if metric is None:
            continue
        error = found.get(f"{metric}_stderr")
        row = [task, _written(metric, found[metric]), "" if error is None else _written(metric, error), metric]
        row += [f"{found[key]:,.0f}" if key in found else "" for key in HOW_ASKED]
        table.add_row(*row, *([f"{PUBLISHED[task].percent:.2f}%"] if task in PUBLISHED else []))
    if (average := mean(tasks)) is not None:
        table.add_row("mean of the paper's seven", f"{average:.1%}", "", "", "", "", f"{MEAN:.2f}%")
    yield table
    if paper:
        yield (
            "paper: TinyLlama 1.1B after 3T tokens, without solved examples (arXiv 2401.02385)"
            + (f"; Pythia-1.0B's mean is {PYTHIA_MEAN:.2f}% there" if average is not None else "")
        )
