"""The tasks of scaling laws: fit them to runs, tell what they foretell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinyllama import tasks
from tinyllama.config.schema import RunConfig
from tinyllama.scaling import collect
from tinyllama.scaling.collect import Collected
from tinyllama.scaling.points import write_csv
from tinyllama.tracking.record import write_json

FIT = "fit.json"
REPORT = "report.html"
POINTS = "points.csv"


def fit(config: RunConfig, *, console: Console) -> None:
    """task=fit: laws fitted to what fit.runs names, with plots and a report."""
    folder = Path(config.fit.folder or Path(config.runs_dir) / "fit")
    asked = config.fit.runs or config.runs_dir
    found = collect.collect(asked, source=config.fit.source, experiment=lambda name: _experiment(config, name))
    _fitted(config, found, folder, title=f"Scaling laws of {asked}", console=console)


def fit_study(
    config: RunConfig, rows: Sequence[Mapping[str, Any]], told: str, *, folder: Path, console: Console
) -> list[Path]:
    """What the points of a study come to; the files that say so. Too few of them is said, and no error."""
    found = collect.of_folders([Path(row["run_dir"]) for row in rows], asked=str(folder), source=config.fit.source)
    title = f"Study {config.study.name}"
    folder = Path(config.fit.folder or folder)
    return _fitted(config, found, folder, title=title, console=console, runs=rows, summary=[told])


def predict(config: RunConfig, *, console: Console) -> None:
    """task=predict: the loss that a fitted study foretells of this run, and how far that reaches beyond its points."""
    from tinyllama.scaling.predict import predict as foretell

    path = Path(config.predict.fit or Path(config.runs_dir) / "fit")
    path = path / FIT if path.is_dir() else path
    try:
        whole = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"predict.fit: {path} is no fit ({error}): name one, as task=fit or a study writes it"
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != 1:
        raise ValueError(f"predict.fit: {path} is no fit of this version: fit again, or name what task=fit wrote")
    planned = tasks.plan_of(config, manifest=tasks.manifest_of(config))
    told = foretell(whole, params=planned.parameters.total, tokens=planned.tokens, unique_tokens=planned.unique_tokens)
    loss = told["loss"]
    console.print(
        f"{planned.parameters.total:,} parameters, {planned.tokens:,} tokens: a loss of {loss['value']:.3f}, "
        f"{loss['low']:.3f} to {loss['high']:.3f} at 90% ({told['law']}, {path})"
    )
    for what, key in (("size", "params_beyond"), ("length", "tokens_beyond")):
        if told[key] > 1:
            console.print(f"the {what} is {told[key]:,.3g} times beyond the points it was fitted to")


def _fitted(
    config: RunConfig,
    found: Collected,
    folder: Path,
    *,
    title: str,
    console: Console,
    runs: Sequence[Mapping[str, Any]] = (),
    summary: Sequence[str] = (),
) -> list[Path]:
    from tinyllama.scaling import plots, report
    from tinyllama.scaling.fit import fit_all

    for run in found.excluded:
        console.print(f"left out: {run.name}: {run.reason}")
    if not found.points:
        raise ValueError(f"fit.runs: none of {found.source} has finished with a loss: see what is left out, and why")
    whole = fit_all(
        found.points,
        excluded=[asdict(run) for run in found.excluded],
        source=found.source,
        inference_tokens=config.plan.inference_tokens,
        held_out_fraction=config.fit.held_out,
        replicates=config.fit.replicates,
        seed=config.seed,
    )
    write_json(folder / FIT, whole)
    write_csv(folder / POINTS, found.points)
    report.write(whole, folder / REPORT, title=title, runs=runs, summary=summary)
    console.print(_table(whole))
    for law, why in whole["not_fitted"].items():
        console.print(f"not fitted: {law}: {why}")
    console.print(f"report: {folder / REPORT}")
    files = [folder / name for name in (FIT, REPORT, POINTS)]
    return [*files, *(path for path in plots.draw(whole, folder) if path.suffix == ".png")]


def _table(whole: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("law", "", "value", "90% interval", ""):
        table.add_column(column, justify="right" if column in ("value", "90% interval") else "left", overflow="fold")
    for law in whole["laws"].values():
        for number, (name, given) in enumerate(law["parameters"].items()):
            interval = f"{given['low']:.4g} to {given['high']:.4g}"
            remark = law["identified"].get(name) or ""
            table.add_row("" if number else law["title"], name, f"{given['value']:.4g}", interval, remark)
        if law["held_out_error"] is not None:
            table.add_row("", "held out", f"{law['held_out_error']:.2%}", "", "mean error of the largest runs' losses")
    return table


def _experiment(config: RunConfig, name: str) -> list[Mapping[str, Any]]:
    from tinyllama.tracking.mlflow import runs_of
    from tinyllama.tracking.store import tracking_uri

    return runs_of(tracking_uri(config.tracking, runs_dir=Path(config.runs_dir)), name)
