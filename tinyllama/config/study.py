"""Knobs of many runs from one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinyllama.config.kinds import Name, NonNegativeInt, PositiveInt, Section


@dataclass(frozen=True, kw_only=True)
class Study(Section):
    """How the points of a grid are trained. None of it determines what comes out."""

    name: Name | None
    """Names the study's folder and its parent run in MLflow; null names them by the points."""
    folder: str | None
    """Where its jobs, its fit and its report are; the program sets it for the points of a grid."""
    point: str | None = None
    """What tells a point from the others, as in "d_model=16, tokens=64K"; the program sets it. Its name in MLflow."""
    launcher: Literal["here", "slurm"]
    """Whether this machine trains the points, or SLURM does, through submitit, an array of jobs."""
    at_a_time: PositiveInt
    """Jobs on this machine at the same time, each with GPUs of its own; points that share a trunk are one job."""
    per_gpu: PositiveInt = 1
    """How many of those jobs may share a GPU, each with its part of the memory."""
    share_trunks: bool
    """With schedule=wsd, start from the longest stretch before the decay that another run in runs_dir has trained."""


@dataclass(frozen=True, kw_only=True)
class Slurm(Section):
    """What each job of a study asks of SLURM; None leaves it to the cluster. Its number of nodes is the point's own."""

    partition: str | None = None
    """The partition, or several with commas."""
    account: str | None = None
    """The account that pays."""
    qos: str | None = None
    """The quality of service."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs on each node, 0 asks for none; None takes those of the points' parallelism."""
    cpus_per_task: PositiveInt = 1
    """Processor cores on each node, where one task of a job runs and starts that node's ranks."""
    memory_gb: PositiveInt | None = None
    """Memory on each node, in GB."""
    minutes: PositiveInt = 60
    """The time limit of a job; when it is over, the job stops, is queued again and goes on."""
    constraint: str | None = None
    """Features that a node has to have, as in `a100&nvlink`."""
    extra: dict[str, str | int | bool] = field(default_factory=dict)
    """Other options of sbatch by their long names, as in `{"exclude": "node7", "exclusive": true}`; before ours."""
    array_parallelism: PositiveInt = 16
    """How many jobs of a study run at a time."""
    signal_seconds: PositiveInt = 120
    """Seconds before the time limit at which a job is asked to stop; SLURM may ask up to 60 seconds earlier. A job that
    has not stopped after three quarters of them is killed, and goes on from its newest checkpoint."""
    requeues: NonNegativeInt = 1000
    """How often a job is queued again at most, after time limits and preemptions together."""
