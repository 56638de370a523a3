"""Knobs of many runs together: how a study is carried out, and what is fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tinyllama.config.kinds import Name, PositiveInt, Section


@dataclass(frozen=True, kw_only=True)
class Study(Section):
    """How the points of a grid are trained. None of it determines what comes out."""

    name: Name | None
    """Names the study's folder and its parent run in MLflow; null names them by the points."""
    folder: str | None
    """Where its jobs, its fit and its report are; the program sets it for the points of a grid."""
    at_a_time: PositiveInt
    """Jobs on this machine at the same time, each with GPUs of its own; points that share a trunk are one job."""
    share_trunks: bool
    """With schedule=wsd, start from the longest stretch before the decay that another run in runs_dir has trained."""


@dataclass(frozen=True, kw_only=True)
class Fitting(Section):
    """What task=fit reads and how it fits."""

    runs: str | None
    """Run folders: a folder of them, a pattern such as runs/60m-*; a CSV file with the columns params, tokens, loss and
    maybe unique_tokens; or mlflow:EXPERIMENT. Null takes runs_dir."""
    source: Name | None
    """The data source whose held-out loss is fitted; null takes all of a run's, by their shares of its training."""
    held_out: Annotated[float, Field(ge=0, lt=1)]
    """Share of the points, those of most compute, that are foretold by a fit to the others."""
    replicates: PositiveInt
    """Of the bootstrap, for the 90% intervals."""
    folder: str | None
    """Where fit.json, report.html and the plots go; null is the study's folder, or runs_dir/fit."""


@dataclass(frozen=True, kw_only=True)
class Predict(Section):
    """What task=predict reads."""

    fit: str | None
    """A fit.json, or the folder that it is in."""
