"""Jobs on a real SLURM of two nodes, both of them this machine, with a stand-in for the command."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.e2e.conftest import Here
from tinyllama.launch.queue import JobState, states, wait
from tinyllama.launch.slurm import Slurm, submit

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed, make slurm does it"),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons need root"),
]

HOST = socket.gethostname().partition(".")[0]
"""The first node's name, by which the second finds it."""
COMMAND = [sys.executable, str(Path(__file__).with_name("slurm_command.py"))]
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=10
JobRequeue=0
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host},{host}-2 Default=YES MaxTime=60
PartitionName=graceful Nodes={host},{host}-2 MaxTime=60 GraceTime=5
PartitionName=urgent Nodes={host},{host}-2 MaxTime=60 PriorityTier=2
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def until(happened: Callable[[], bool], what: Callable[[], str], *, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def answer(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """munged, slurmctld and two slurmd of our own; all have ended at the end."""
    with TemporaryDirectory(prefix="slurm-") as name, ExitStack() as daemons, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        logs = folder / "logs"
        for made in ("state", f"spool-{HOST}", f"spool-{HOST}-2", "logs"):
            (folder / made).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        conf = folder / "slurm.conf"
        conf.write_text(
            CONF.format(
                folder=folder,
                host=HOST,
                user=getpass.getuser(),
                ports=free_ports(3),
                cpus=os.cpu_count(),
            )
        )
        patch.setenv("SLURM_CONF", str(conf))

        def start(label: str, *command: str) -> None:
            with (logs / label).open("w") as log:
                daemon = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            daemons.callback(end, daemon)

        own = [f"--{kind}={folder}/munge.{kind.partition('-')[0]}" for kind in ("socket", "key-file", "pid-file")]
        own += [f"--{kind}={folder}/munge.{kind.partition('-')[0]}" for kind in ("log-file", "seed-file")]
        start("munged", "munged", "--foreground", "--force", *own)
        until((folder / "munge.socket").exists, lambda: told(logs))
        start("slurmctld", "slurmctld", "-D")
        for node in (HOST, f"{HOST}-2"):
            start(node, "slurmd", "-D", "-N", node)
        until(lambda: answer("sinfo", "--noheader", "--states=idle", "--format=%D").strip() == "2", lambda: told(logs))
        # its jobs first, whose processes are not the daemons' own
        daemons.callback(lambda: until(lambda: not answer("squeue", "--noheader"), lambda: told(logs)))
        daemons.callback(answer, "scancel", f"--user={getpass.getuser()}")
        yield


def end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def told(logs: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(logs.iterdir()))


class Study:
    """A working folder and the jobs submitted from it."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.folder = here / "slurm"
        self.seen: list[list[str]] = []
        self.jobs = 0

    def submit(self, *jobs: dict[str, int], nodes: int = 1, **settings: Any) -> list[str]:
        paths = [self.here / f"job-{self.jobs + index}.json" for index in range(len(jobs))]
        self.jobs += len(jobs)
        for path, job in zip(paths, jobs, strict=True):
            path.write_text(json.dumps(job))
        return submit(paths, settings=Slurm(**settings), folder=self.folder, command=COMMAND, nodes=nodes)

    def wait(self, ids: list[str]) -> list[tuple[str, int | None]]:
        ended = wait(ids, folder=self.folder, progress=self.progress, every=0.2)
        return [(job.state, job.status) for job in ended]

    def progress(self, jobs: object) -> None:
        """Note where the jobs stand; one that is queued again need not wait SLURM's two minutes."""
        assert isinstance(jobs, list)
        self.seen.append([job.state for job in jobs])
        for job in jobs:
            if job.reason == "BeginTime":
                time.sleep(2)  # a node refuses a job that starts in the second in which it was ended there
                answer("scontrol", "update", f"jobid={job.id}", "StartTime=now")

    def starts(self) -> list[list[str]]:
        """The job, its task, the step it began at, SLURM's number, the cores and other arguments, of every start."""
        path = self.here / "starts"
        return sorted(line.split() for line in path.read_text().splitlines()) if path.exists() else []

    def count(self, name: str) -> int:
        path = self.here / f"{name}.0.count"
        return int(path.read_text() or 0) if path.exists() else 0

    def reach(self, name: str, step: int) -> None:
        until(lambda: self.count(name) >= step, self.logs)

    def state(self, id_: str) -> JobState:
        return states([id_], folder=self.folder)[0]

    def logs(self) -> str:
        files = sorted(self.folder.glob("*_log.*"))
        return answer("squeue", "--states=all") + "".join(f"{file.name}: {file.read_text()}" for file in files)


@pytest.fixture
def study(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path)


def test_an_array_of_which_one_fails(study: Study) -> None:
    ids = study.submit({"steps": 3}, {"steps": 3, "status": 74}, {"steps": 20}, cpus_per_task=1)
    array = ids[0].partition("_")[0]
    assert ids == [f"{array}_{index}" for index in range(3)]
    assert study.wait(ids) == [("COMPLETED", 0), ("FAILED", 74), ("COMPLETED", 0)], study.logs()
    assert [start[:3] for start in study.starts()] == [[f"job-{index}", "0", "0"] for index in range(3)]
    assert any("RUNNING" in seen for seen in study.seen)


def test_at_most_so_many_at_a_time(study: Study) -> None:
    ids = study.submit({"steps": 5}, {"steps": 5}, {"steps": 5}, array_parallelism=1)
    study.wait(ids)
    assert max(seen.count("RUNNING") for seen in study.seen) == 1


@pytest.mark.parametrize("by", ["time limit", "requeue", "preemption", "preemption with grace"])
def test_a_job_that_is_asked_to_stop_goes_on(study: Study, by: str) -> None:
    whole = {"nodelist": HOST, "exclusive": True}
    partition = "graceful" if by == "preemption with grace" else "main"
    ids = study.submit({"steps": 30}, partition=partition, extra=whole)
    study.reach("job-0", 5)
    if by == "time limit":
        answer("scancel", "--signal=USR2", *ids)  # what SLURM sends before it
    elif by == "requeue":
        answer("scontrol", "requeue", *ids)
    else:
        ids += study.submit({"steps": 5}, partition="urgent", extra=whole)
    ended = study.wait(ids)
    assert set(ended) == {("COMPLETED", 0)}, study.logs()
    (_, _, first, *_), (_, _, second, *_) = study.starts()[:2]
    assert int(first) == 0 and 5 <= int(second) < 30
    assert study.count("job-0") == 30


def test_one_of_an_array_is_queued_again_alone(study: Study) -> None:
    ids = study.submit({"steps": 5}, {"steps": 30})
    study.reach("job-1", 5)
    answer("scancel", "--signal=USR2", ids[1])
    assert study.wait(ids) == [("COMPLETED", 0)] * 2, study.logs()
    assert [start[0] for start in study.starts()] == ["job-0", "job-1", "job-1"]


def test_a_job_that_stops_by_itself_goes_on(study: Study) -> None:
    [id_] = study.submit({"steps": 8, "stops_at": 4})
    assert study.wait([id_]) == [("COMPLETED", 0)], study.logs()
    assert [start[2] for start in study.starts()] == ["0", "4"]


def test_a_job_is_queued_again_only_so_often(study: Study) -> None:
    [id_] = study.submit({"steps": 8, "stops_at": 4}, requeues=0)
    assert study.wait([id_]) == [("FAILED", 75)]


def test_a_cancelled_job_stays_cancelled(study: Study) -> None:
    [id_] = study.submit({"steps": 100})
    study.reach("job-0", 3)
    answer("scancel", id_)
    until(lambda: study.state(id_).ended, study.logs)
    time.sleep(3)
    assert study.wait([id_]) == [("CANCELLED", None)]
    assert len(study.starts()) == 1
    assert 3 <= study.count("job-0") < 100


def test_two_nodes_meet_at_one_place_and_go_on_together(study: Study) -> None:
    [id_] = study.submit({"steps": 30}, nodes=2)
    study.reach("job-0", 5)
    answer("scancel", "--signal=USR2", id_)
    assert study.wait([id_]) == [("COMPLETED", 0)], study.logs()
    meeting = ["--rendezvous", f"{HOST}:{20000 + int(id_) % 10000}"]
    starts = study.starts()
    assert [start[1] for start in starts] == ["0", "0", "1", "1"]
    assert all(start[5:] == meeting for start in starts)


def test_a_job_takes_its_cores_into_its_task(study: Study) -> None:
    study.wait(study.submit({"steps": 1}, cpus_per_task=2))
    assert study.starts()[0][4] == "2"


def test_what_slurm_refuses_is_told(study: Study) -> None:
    (study.here / "job.json").write_text("{}")
    settings = Slurm(partition="nowhere")
    with pytest.raises(ValueError, match="invalid partition specified: nowhere"):
        submit([study.here / "job.json"], settings=settings, folder=study.folder, command=COMMAND)


def test_a_study_is_trained_by_its_jobs_and_found_again(cluster: None, here: Here) -> None:
    """The process that began them is killed; a line with one more budget and another time limit waits for the jobs
    that are queued, and hands over what they leave."""
    pytest.importorskip("submitit")
    line = ["-m", "seed=1,2", "budget.tokens=60K,80K", "schedule=wsd", "checkpoint.every=1000", "train.eval_every=1000"]
    line += ["runs_dir=runs/slurm", "study.name=array", "study.launcher=slurm", "fit.replicates=20"]
    folder = here.folder / "runs/slurm/study-array"
    begun = subprocess.Popen(here.command(*line), cwd=here.folder, stdout=subprocess.PIPE, text=True)
    until((folder / "jobs/slurm.json").exists, lambda: answer("squeue"), seconds=240)
    begun.kill()
    begun.communicate()
    queued = json.loads((folder / "jobs/slurm.json").read_text())
    assert (len(queued), len(set(queued.values()))) == (4, 2), "the budgets of one seed are one job"
    line[2] += ",100K"
    line += ["slurm.minutes=50"]
    here.run(*line)
    later = json.loads((folder / "jobs/slurm.json").read_text())
    assert len(later) == 6 and set(later.values()).isdisjoint(queued.values())
    points = json.loads((folder / "study.json").read_text())["points"]
    assert [point["status"] for point in points] == ["finished"] * 6
    assert sorted(point["trained_tokens"] // 2048 for point in points) == [16, 16, 17, 17, 30, 30]
    assert here.run(*line).count("SLURM:") == 0, "nothing is left to hand over"


def test_points_on_two_nodes_each(cluster: None, here: Here) -> None:
    """A rank on each; what comes out is what two ranks of one machine make of it."""
    pytest.importorskip("submitit")
    line = ["budget.tokens=60K,80K", "schedule=wsd", "checkpoint.every=1000", "train.eval_every=1000"]
    line += ["fit.replicates=20"]
    nodes = ["parallelism.nodes=2", "study.launcher=slurm", "runs_dir=runs/nodes", "study.name=nodes"]
    here.run("-m", *line, *nodes)
    here.run("-m", *line, "parallelism.gpus=2", "runs_dir=runs/ranks", "study.name=ranks", "tracking=journal")
    ours, theirs = (
        json.loads((here.folder / f"runs/{name}/study-{name}/study.json").read_text())["points"]
        for name in ("nodes", "ranks")
    )
    assert [point["status"] for point in ours] == ["finished"] * 2
    for one, other in zip(ours, theirs, strict=True):
        assert one["trained_tokens"] == other["trained_tokens"]
        assert here.final_hashes(one["run_dir"]) == here.final_hashes(other["run_dir"])
