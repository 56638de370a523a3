"""Points to fit to: from run folders, a study, an MLflow experiment or a table. What is left out is named, with why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from tinyllama.scaling.points import Point, read_csv
from tinyllama.tracking.folder import CONFIG, PLAN, RESULT

MLFLOW = "mlflow:"
STUDY = "study.json"


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A run that is no point, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What there is to fit to."""

    source: str
    """What was asked for."""
    points: tuple[Point, ...]
    excluded: tuple[Excluded, ...]


class NoPoint(ValueError):  # noqa: N818
    """A run has no loss to fit to."""


def collect(
    runs: str, *, source: str | None = None, experiment: Callable[[str], list[Mapping[str, Any]]] | None = None
) -> Collected:
    """The points of a CSV file, of an MLflow experiment, or of the run folders that a folder or a pattern names.

    source names the data source whose held-out loss counts; None takes all of a run's, by their shares of its training.
    experiment gives the runs of an MLflow experiment by its name. Raises ValueError where nothing is found.
    """
    if runs.startswith(MLFLOW):
        assert experiment is not None
        looks = [(str(run["name"]), partial(of_mlflow, run, source)) for run in experiment(runs.removeprefix(MLFLOW))]
        points, excluded = _sorted_out(looks)
        return Collected(source=runs, points=points, excluded=excluded)
    if runs.endswith(".csv"):
        return Collected(source=runs, points=tuple(read_csv(Path(runs))), excluded=())
    folders = run_folders(runs)
    if not folders:
        raise ValueError(f"fit.runs: {runs} holds no run: name run folders, a pattern of them, or a .csv file")
    return of_folders(folders, asked=runs, source=source)


def run_folders(runs: str) -> list[Path]:
    """The run folders that a folder, a study's folder or a pattern names."""
    named = [Path(path) for path in sorted(glob(runs))]  # noqa: PTH207 - a pattern may be absolute
    found: list[Path] = []
    for folder in named:
        if (folder / CONFIG).exists():
            found.append(folder)
        elif (folder / STUDY).exists():
            points = json.loads((folder / STUDY).read_text())["points"]
            found += [folder.parent / point["name"] for point in points]
        else:
            found += [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))]
    return found


def of_folders(folders: Iterable[Path], *, asked: str, source: str | None = None) -> Collected:
    """The points of run folders. Those measured on other text than most of them are left out."""
    texts = {folder: _text_of(folder) for folder in folders}
    counted = Counter(text for text in texts.values() if text is not None)
    common = counted.most_common(1)[0][0] if counted else None
    looks = [(folder.name, partial(of_run, folder, source, text=common)) for folder in texts]
    points, excluded = _sorted_out(looks)
    return Collected(source=asked, points=points, excluded=excluded)


def of_run(folder: Path, source: str | None, *, text: str | None) -> Point:
    """A finished run as a point. Raises NoPoint where it is none."""
    try:
        result, plan = json.loads((folder / RESULT).read_text()), json.loads((folder / PLAN).read_text())
        frozen = json.loads((folder / CONFIG).read_text())
        if result["status"] != "finished":
            raise NoPoint(f"{result['status']}: {result.get('reason') or 'it has no result yet'}")
        if frozen.get("changed"):
            raise NoPoint("it was changed under way (resume=force)")
        if frozen["config"]["init_from"]:
            raise NoPoint(f"it began with the weights of {frozen['config']['init_from']}")
        if frozen["data"]["manifest_sha256"] != text:
            raise NoPoint("its loss was measured on other text than that of most runs here")
        return Point(
            name=folder.name,
            params=plan["parameters"]["total"],
            tokens=plan["tokens"],
            loss=_loss({name: part["loss"] for name, part in result["held_out"].items()}, plan, source),
            unique_tokens=plan.get("unique_tokens"),
        )
    except NoPoint:
        raise
    except FileNotFoundError as error:
        raise NoPoint(f"it has no {Path(error.filename).name}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoPoint(f"its folder cannot be read: {error!r}") from error


def of_mlflow(run: Mapping[str, Any], source: str | None) -> Point:
    """A run of an MLflow experiment, with its name, status, params and metrics, as a point. Raises NoPoint."""
    metric = f"held_out/{source}/loss" if source else "held_out/loss"
    try:
        if run["status"] != "FINISHED":
            raise NoPoint(f"it is {run['status']}")
        if metric not in run["metrics"]:
            raise NoPoint(f"it has no metric {metric}")
        unique = run["params"].get("planned.unique_tokens")
        return Point(
            name=run["name"],
            params=float(run["params"]["planned.parameters"]),
            tokens=float(run["params"]["planned.tokens"]),
            loss=run["metrics"][metric],
            unique_tokens=float(unique) if unique else None,
        )
    except KeyError as error:
        raise NoPoint(f"it has no parameter {error.args[0]}") from error


def _loss(losses: Mapping[str, float], plan: Mapping[str, Any], source: str | None) -> float:
    if source is None:
        return math.fsum(plan["sources"][name]["share"] * loss for name, loss in losses.items())
    if source not in losses:
        raise NoPoint(f"it has no held-out loss of {source}")
    return float(losses[source])


def _text_of(folder: Path) -> str | None:
    """What a finished run's loss was measured on."""
    try:
        status = json.loads((folder / RESULT).read_text())["status"]
        text: str = json.loads((folder / CONFIG).read_text())["data"]["manifest_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return text if status == "finished" else None


def _sorted_out(
    looks: Iterable[tuple[str, Callable[[], Point]]],
) -> tuple[tuple[Point, ...], tuple[Excluded, ...]]:
    points, excluded = [], []
    for name, look in looks:
        try:
            points.append(look())
        except NoPoint as error:
            excluded.append(Excluded(name=name, reason=str(error)))
    return tuple(points), tuple(excluded)
