"""What the paper (TinyLlama, arXiv 2401.02385) says of its seven tasks, all without solved examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A figure of the paper's."""

    metric: str
    """The harness' name of what it measures."""
    percent: float
    """Of TinyLlama 1.1B after 3T tokens."""


PUBLISHED = {
    "hellaswag": Published("acc_norm", 59.20),
    "openbookqa": Published("acc_norm", 36.00),
    "winogrande": Published("acc", 59.12),
    "arc_challenge": Published("acc_norm", 30.12),
    "arc_easy": Published("acc_norm", 55.25),
    "boolq": Published("acc", 57.83),
    "piqa": Published("acc_norm", 73.29),
}
MEAN = 52.99
"""Of the seven, in percent."""
PYTHIA_MEAN = 48.30
"""Pythia-1.0B's mean of the same seven, in percent."""


HOW_ASKED = ("questions", "shots")
"""What stands beside a task's metrics and is none: how many questions it had, after how many solved examples."""


def shown(task: str, metrics: Mapping[str, float]) -> str | None:
    """Which metric of a task to show: the paper's, else acc_norm, else acc, else its first; None where it has none."""
    wanted = [PUBLISHED[task].metric] if task in PUBLISHED else []
    first = [name for name in metrics if name not in HOW_ASKED and not name.endswith("_stderr")]
    return next((name for name in (*wanted, "acc_norm", "acc", *first) if name in metrics), None)


def mean(tasks: Mapping[str, Mapping[str, float]]) -> float | None:
    """The mean of the paper's seven, of 1; None where one of them is missing."""
    scores = [tasks.get(task, {}).get(figure.metric) for task, figure in PUBLISHED.items()]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None
