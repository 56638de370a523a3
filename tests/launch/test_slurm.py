"""What SLURM is asked for, and what a job does when SLURM asks it to stop. SLURM itself: e2e/test_slurm_cluster.py."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama.launch.slurm import Job, Slurm, meeting, parameters, rendezvous, submit

Programs = Callable[..., None]
FILES = [Path("a.json"), Path("b.json")]


def options(script: str) -> dict[str, str]:
    """The options in the head of a batch script; one that stands there twice is not in doubt."""
    lines = [line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if "#SBATCH" in line]
    found = {name: value for name, _, value in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def script(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Submits two jobs and gives the batch script that SLURM was handed."""
    pytest.importorskip("submitit")
    kept = tmp_path / "script"
    programs(srun="exit 1", sbatch=f'cp "$1" {kept}; env > {tmp_path}/env; echo Submitted batch job 812')
    monkeypatch.chdir(tmp_path)

    def handed(nodes: int = 1, **settings: object) -> str:
        ids = submit(FILES, settings=Slurm(**settings), folder=Path("jobs"), command=["python", "m.py"], nodes=nodes)
        assert ids == ["812_0", "812_1"]
        return kept.read_text()

    return handed


def test_settings_become_options(script: Callable[..., str]) -> None:
    asked = options(
        script(
            nodes=4,
            partition="gpu,big",
            account="lab",
            qos="high",
            gpus_per_node=8,
            cpus_per_task=64,
            memory_gb=500,
            minutes=1440,
            constraint="a100&nvlink",
            extra={"mail-type": "END", "exclusive": True, "overcommit": False, "gpus-per-node": "h100:8"},
            array_parallelism=1,
            signal_seconds=300,
        )
    )
    wanted = {
        "partition": "gpu,big",
        "account": "lab",
        "qos": "high",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "h100:8",
        "cpus-per-task": "64",
        "mem": "500GB",
        "time": "1440",
        "constraint": "'a100&nvlink'",
        "mail-type": "END",
        "exclusive": "",
        "array": "0-1%1",
        "signal": "USR2@300",
        "requeue": "",
    }
    assert wanted.items() <= asked.items()
    assert "overcommit" not in asked


def test_what_is_not_set_is_left_to_the_cluster(script: Callable[..., str]) -> None:
    assert options(script()).keys() == {
        *("array", "cpus-per-task", "error", "job-name", "nodes", "ntasks-per-node", "open-mode", "output"),
        *("requeue", "signal", "time", "wckey"),
    }


def test_slurm_signals_what_the_job_passes_on(script: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.JobEnvironment, "USR_SIG", "USR1")  # of the environment that it was imported in
    assert options(script())["signal"] == "USR2@120"


def test_a_job_finds_this_package_and_all_its_cores(script: Callable[..., str]) -> None:
    text = script(cpus_per_task=3)
    assert f"export PYTHONPATH={Path(__file__).parents[2]}${{PYTHONPATH:+:$PYTHONPATH}}\n" in text
    assert "--cpus-per-task=3 --kill-on-bad-exit=0 " in next(line for line in text.splitlines() if "srun" in line)


def test_what_is_submitted_inside_a_job_does_not_take_after_it(
    script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SLURM_CONF": "/somewhere", "SLURM_NTASKS": "7"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    script()
    environment = (tmp_path / "env").read_text().splitlines()
    assert "SLURM_CONF=/somewhere" in environment
    assert "SLURM_NTASKS=7" not in environment
    assert given.items() <= os.environ.items()


def test_a_job_runs_its_file_where_it_was_submitted(script: Callable[..., str], tmp_path: Path) -> None:
    script(signal_seconds=100)
    kept = [pickle.loads(file.read_bytes()).function for file in sorted((tmp_path / "jobs").glob("*_submitted.pkl"))]
    assert kept == [
        Job(
            command=("python", "m.py", "--job", str(tmp_path / name)),
            working_folder=tmp_path,
            folder=tmp_path / "jobs",
            patience=75,
            requeues=1000,
        )
        for name in FILES
    ]


def test_no_jobs_are_no_array(programs: Programs, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    programs(sbatch="exit 1", srun="exit 1")
    assert submit([], settings=Slurm(), folder=tmp_path, command=["true"]) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"minutes": 3}, r"minutes is 3, and .* up to 180 seconds before its end: set slurm\.minutes=4 or more, or"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parameters(Slurm(**settings), nodes=1)


def test_the_remedy_without_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"submitit, which is not installed: pip install 'tinyllama\[slurm\]'$"):
        submit(FILES, settings=Slurm(), folder=tmp_path, command=["true"])


def test_what_sbatch_refuses_is_one_line(programs: Programs, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    programs(srun="exit 1", sbatch="printf 'sbatch: error: no such account\\nsbatch: error: failed\\n' >&2; exit 1")
    with pytest.raises(ValueError, match=r"^SLURM did not take the jobs: no such account; failed$"):
        submit(FILES, settings=Slurm(), folder=tmp_path, command=["true"])


def test_jobs_have_ports_of_their_own() -> None:
    assert rendezvous(1234567, "node3") == "node3:24567"
    places = {rendezvous(number, "node3") for number in range(995_000, 1_005_000)}
    assert len(places) == 10_000
    assert all(20000 <= int(place.partition(":")[2]) <= 29999 for place in places)


def test_several_nodes_meet_on_the_first(programs: Programs) -> None:
    programs(scontrol='[ "$*" = "show hostnames n[3,5-6]" ] && printf "n3\\nn5\\nn6\\n"')
    job = {"SLURM_JOB_ID": "819", "SLURM_ARRAY_JOB_ID": "812", "SLURM_ARRAY_TASK_ID": "7"}
    assert meeting({**job, "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "n[3,5-6]"}) == [
        "--rendezvous",
        "n3:20819",
    ]
    assert meeting({**job, "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n3"}) == []


DRIVER = """
import sys
from pathlib import Path
from tinyllama.launch.slurm import Job
Job(command=tuple(sys.argv[3:]), working_folder=Path(sys.argv[1]), folder=Path(sys.argv[1]), patience=2,
    requeues=int(sys.argv[2]))()
"""
OBEYS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))
open("ready", "w").close()
time.sleep(60)
"""
STARTS = 'import time; open("ready", "w").close(); time.sleep(60)'
IGNORES = 'import signal, time; signal.signal(15, signal.SIG_IGN); open("ready", "w").close(); time.sleep(60)'


class Running:
    """A job's task in a process of its own, with SLURM's programs played."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs = programs
        self.folder = folder

    def start(self, command: str, *, state: str = "RUNNING", requeues: int = 9, **environment: str) -> None:
        self.programs(squeue=f"echo {state}", scontrol=f'echo "$@" >> {self.folder}/scontrol')
        line = [sys.executable, "-c", DRIVER, str(self.folder), str(requeues), sys.executable, "-c", command]
        slurm = {"SLURM_JOB_ID": "819", "SLURM_ARRAY_JOB_ID": "812", "SLURM_ARRAY_TASK_ID": "7", "SLURM_PROCID": "0"}
        root = {"PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(line, env=os.environ | root | slurm | environment)

    def stop(self, number: int) -> None:
        deadline = time.monotonic() + 20
        while not (self.folder / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.process.send_signal(number)

    def ended(self) -> tuple[int, bool, str | None]:
        """Its exit status, whether it was queued again, and the status it left."""
        status = self.process.wait(timeout=20)
        said, left = self.folder / "scontrol", self.folder / "812_7_0_status"
        assert not said.exists() or said.read_text() == "requeue 812_7\n"
        return status, said.exists(), left.read_text().strip() if left.exists() else None


@pytest.fixture
def running(programs: Programs, tmp_path: Path) -> Running:
    return Running(programs, tmp_path)


@pytest.mark.parametrize("status", [0, 1, 2, 74, 130])
def test_a_job_ends_with_its_commands_status(running: Running, status: int) -> None:
    running.start(f"raise SystemExit({status})")
    assert running.ended() == (status, False, str(status))


def test_a_command_that_was_killed_has_failed(running: Running) -> None:
    running.start("import os; os.kill(os.getpid(), 9)")
    assert running.ended() == (137, False, "137")


def test_a_command_that_stops_by_itself_is_queued_again(running: Running) -> None:
    (running.folder / "812_7_0_status").write_text("1\n")  # of an earlier end
    running.start("raise SystemExit(75)")
    assert running.ended() == (75, True, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize(
    "command",
    [OBEYS.format(status=75), STARTS, IGNORES],
    ids=["saves", "is only starting", "is killed when its time is over"],
)
def test_a_stop_is_passed_on_and_the_job_queued_again(running: Running, number: int, command: str) -> None:
    running.start(command)
    running.stop(number)
    assert running.ended() == (75, True, None)


@pytest.mark.parametrize("status", [0, 1])
def test_a_command_that_ends_when_asked_to_stop_has_ended(running: Running, status: int) -> None:
    running.start(OBEYS.format(status=status))
    running.stop(signal.SIGUSR2)
    assert running.ended() == (status, False, str(status))


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_what_slurm_is_ending_is_not_queued_again(running: Running, state: str) -> None:
    running.start("raise SystemExit(75)", state=state)
    assert running.ended() == (75, False, None)


def test_other_nodes_leave_it_to_the_first(running: Running) -> None:
    running.start("raise SystemExit(75)", SLURM_PROCID="1")
    assert running.ended() == (0, False, None)


def test_a_job_is_queued_again_only_so_often(running: Running) -> None:
    running.start("raise SystemExit(75)", requeues=3, SLURM_RESTART_COUNT="3")
    assert running.ended() == (75, False, "75")


def test_submitit_queues_the_same_job_again() -> None:
    pytest.importorskip("submitit")
    job = Job(command=("true",), working_folder=Path(), folder=Path(), patience=1, requeues=1)
    assert job.checkpoint().function == job
