"""Knobs of many runs from one line."""

from __future__ import annotations

from dataclasses import dataclass

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
