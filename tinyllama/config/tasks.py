"""Knobs of the tasks that come after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tinyllama.config.kinds import Name, NonNegativeFloat, PositiveInt, Section


@dataclass(frozen=True, kw_only=True)
class Generate(Section):
    """How text is sampled, at the end of a run and by task=generate."""

    run: str | None
    """Folder of a run to continue text with; task=generate needs it."""
    prompt: str
    """The text to continue."""
    max_tokens: PositiveInt
    """Tokens to add at most."""
    temperature: NonNegativeFloat
    """Divides the logits; 0 takes the likeliest token."""
    top_k: PositiveInt | None
    """Sample among this many likeliest tokens; null takes all."""


@dataclass(frozen=True, kw_only=True)
class Sync(Section):
    """What task=sync brings to MLflow."""

    run: str | None
    """Folder of the run; null takes every run in runs_dir."""


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
