"""Which jobs of a study SLURM is given, and which it has already."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tinyllama import jobs
from tinyllama.config.load import ConfigError, run_folder
from tinyllama.config.schema import RunConfig
from tinyllama.jobs import QUEUED, Study, on_slurm
from tinyllama.launch import slurm
from tinyllama.launch.queue import JobState
from tinyllama.plan.plan import make_plan

Grid = Callable[[list[list[int]]], Study]


@pytest.fixture
def grid(config: Callable[..., RunConfig], tmp_path: Path) -> Grid:
    """A study of jobs with points of these seeds."""

    def of(seeds: list[list[int]]) -> Study:
        flat = [seed for job in seeds for seed in job]
        configs = [config(f"seed={seed}", f"runs_dir={tmp_path}/runs", "study.launcher=slurm") for seed in flat]
        numbers = iter(range(len(flat)))
        return Study(
            name="s",
            folder=tmp_path / "runs" / "study-s",
            configs=tuple(configs),
            plans=tuple(map(make_plan, configs)),
            texts=("",) * len(flat),
            jobs=tuple(tuple(next(numbers) for _ in job) for job in seeds),
        )

    return of


class Queue:
    """SLURM, as far as `on_slurm` asks it: jobs end when they are waited for."""

    def __init__(self, patch: pytest.MonkeyPatch, study: Study) -> None:
        self.study = study
        self.log: list[Any] = []
        """Lists of the ids that a submission has given or that are waited for."""
        self.ends: dict[str, int | None] = {}
        """The statuses with which jobs end, 0 where none is set; None is a job that was killed."""
        self.trains: dict[str, list[int]] = {}
        """The points that jobs train which were queued before."""
        self.finished: set[int] = set()
        patch.setattr(jobs.slurm, "submit", self.submit)
        patch.setattr(jobs.slurm, "settings_of", lambda configs: None)
        patch.setattr(jobs.queue, "states", lambda ids, folder: [JobState(id=id_, state="RUNNING") for id_ in ids])
        patch.setattr(jobs.queue, "wait", self.wait)
        patch.setattr(Study, "is_finished", lambda study, number: study.configs[number].seed in self.finished)
        patch.setattr(jobs, "_tell_finished", lambda study, told, console: told)

    def submit(self, files: Sequence[Path], *, nodes: int, **_: Any) -> list[str]:
        ids = [f"{len(self.log)}_{number}" for number in range(len(files))]
        by_file = {jobs.job_file(self.study, number): job for number, job in enumerate(self.study.jobs)}
        for id_, file in zip(ids, files, strict=True):
            self.trains[id_] = [self.study.configs[point].seed for point in by_file[file]]
        self.log.append(("submit", nodes, ids))
        return ids

    def wait(self, ids: Sequence[str], *, folder: Path, **_: Any) -> list[JobState]:
        note = json.loads((folder / QUEUED).read_text())
        assert set(ids) <= set(note.values()), "what is waited for can be found again"
        self.log.append(("wait", list(ids)))
        for id_ in ids:
            if self.ends.get(id_, 0) == 0:
                self.finished |= set(self.trains[id_])
        return [JobState(id=id_, state="COMPLETED", status=self.ends.get(id_, 0)) for id_ in ids]

    def run(self) -> int:
        return on_slurm(self.study, Path("main.py"), Console(file=io.StringIO()))

    def queued(self, points: dict[int, str]) -> None:
        """What an earlier start has noted: jobs by the seeds of their points."""
        of = {config.seed: str(run_folder(config)) for config in self.study.configs}
        (self.study.folder / "jobs").mkdir(parents=True)
        (self.study.folder / "jobs" / QUEUED).write_text(json.dumps({of[seed]: id_ for seed, id_ in points.items()}))
        for seed, id_ in points.items():
            self.trains.setdefault(id_, []).append(seed)


def test_all_jobs_are_one_array(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Queue(monkeypatch, grid([[1, 2], [3]]))
    (cluster.study.folder / "jobs").mkdir(parents=True)
    assert cluster.run() == 0
    assert cluster.log == [("submit", 1, ["0_0", "0_1"]), ("wait", ["0_0", "0_1"])]
    assert cluster.run() == 0 and len(cluster.log) == 2, "nothing is left"


def test_points_that_are_queued_are_not_queued_again(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Queue(monkeypatch, grid([[1, 2, 3], [4], [5]]))
    cluster.queued({1: "7_0", 2: "7_0", 4: "7_1"})
    assert cluster.run() == 0
    assert cluster.log == [
        ("submit", 1, ["0_0"]),
        ("wait", ["0_0", "7_0", "7_1"]),
        ("submit", 1, ["2_0"]),
        ("wait", ["2_0"]),
    ]
    assert cluster.trains["0_0"] == [5]
    assert cluster.trains["2_0"] == [1, 2, 3], "the first two are passed over, as they have finished"


def test_a_job_on_several_nodes_is_told_where_they_meet(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = grid([[1, 2]])
    points = [replace(config, study=replace(config.study, folder=str(tmp_path))) for config in study.configs]
    study = replace(study, configs=tuple(points))
    (study.folder / "jobs").mkdir(parents=True)
    jobs.freeze(study)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n3; echo n5\n")
    (tmp_path / "scontrol").chmod(0o755)
    told = slurm.meeting({"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[3,5]", "SLURM_JOB_ID": "819"})
    trained: list[tuple[int, str | None]] = []

    def train(config: RunConfig, _: object) -> int:
        trained.append((config.seed, config.parallelism.rendezvous))
        return 0

    for extra in (told, []):
        line = ["--job", str(jobs.job_file(study, 0)), *extra]
        assert jobs.do_frozen(line, train=train, console=Console(file=io.StringIO())) == 0
    assert trained == [(1, "n3:20819"), (2, "n3:20819"), (1, None), (2, None)]


@pytest.mark.parametrize(("last", "status"), [(0, 0), (3, 1), (None, 1)])
def test_what_was_handed_over_again_counts_by_how_it_ended_then(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, last: int | None, status: int
) -> None:
    cluster = Queue(monkeypatch, grid([[1, 2]]))
    cluster.queued({1: "7_0"})
    cluster.ends = {"7_0": None, "1_0": last}
    assert cluster.run() == status
    assert cluster.log == [("wait", ["7_0"]), ("submit", 1, ["1_0"]), ("wait", ["1_0"])]


def test_folders_of_one_name_are_two_points(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    study = grid([[1], [2]])
    configs = tuple(replace(config, run_dir=f"out/{config.seed}/run") for config in study.configs)
    cluster = Queue(monkeypatch, replace(study, configs=configs))
    (cluster.study.folder / "jobs").mkdir(parents=True)
    assert cluster.run() == 0
    assert cluster.log[-1] == ("wait", ["0_0", "0_1"])


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("study.at_a_time=2", ["0", "1"]),
        ("study.at_a_time=3 study.per_gpu=2", ["0", "1", "2"]),
        ("study.at_a_time=5 study.per_gpu=2", ["0", "1", "2", "0", "1"]),
        ("study.at_a_time=6 study.per_gpu=2", ["0", "1", "2", "0", "1", "2"]),
        ("study.at_a_time=1 parallelism.gpus=2", ["0,1"]),
    ],
)
def test_gpus_are_shared_out(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, line: str, given: list[str]
) -> None:
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ["0", "1", "2"])
    shares = list(jobs.shared_out([config("parallelism=single", *line.split())] * 2))
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == given


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("study.at_a_time=4", "4 jobs of 1 GPUs each, 1 to a GPU, are more than the 3 here"),
        ("study.at_a_time=7 study.per_gpu=2", "7 jobs of 1 GPUs each, 2 to a GPU, are more than the 3 here"),
        ("study.at_a_time=2 parallelism.gpus=2", "2 jobs of 2 GPUs each, 1 to a GPU, are more than the 3 here"),
    ],
)
def test_more_jobs_than_gpus_are_refused(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ["0", "1", "2"])
    with pytest.raises(ConfigError) as refusal:
        list(jobs.shared_out([config("parallelism=single", *line.split())] * 2))
    assert str(refusal.value) == f"study.at_a_time: {says}: lower it or parallelism.gpus, or raise study.per_gpu"
