"""The jobs of a study on SLURM, through submitit: an array of them, each of which goes on after it was preempted.

In a job submitit starts `Job`, on each node once, and that starts the command. SLURM's wish that it stop is passed on;
where it then stops as asked, the job is queued again under its own id, and the same command goes on.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllama.config.schema import RunConfig
from tinyllama.config.study import Slurm
from tinyllama.launch.lifeline import STOP_SIGNALS
from tinyllama.launch.queue import status_file

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

__all__ = ["Job", "Slurm", "job_id", "meeting", "parameters", "rendezvous", "submit"]

ROOT = Path(__file__).parents[2]
PORTS = range(20000, 30000)


def settings_of(configs: Sequence[RunConfig]) -> Slurm:
    """What a study's jobs ask for, with the GPUs that their points need."""
    settings = configs[0].slurm
    if settings.gpus_per_node is not None:
        return settings
    needed = max(config.parallelism.gpus if config.parallelism.device == "cuda" else 0 for config in configs)
    return replace(settings, gpus_per_node=needed)


def parameters(settings: Slurm, *, nodes: int) -> dict[str, Any]:
    """submitit's parameters of jobs on so many nodes each, one task a node. Raises ValueError where they cannot be."""
    least = settings.signal_seconds // 60 + 2
    if settings.minutes < least:
        raise ValueError(
            f"slurm.minutes is {settings.minutes}, and a job is asked to stop up to {settings.signal_seconds + 60} "
            f"seconds before its end: set slurm.minutes={least} or more, or slurm.signal_seconds lower"
        )
    wanted = {
        "job_name": "tinyllama",
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "nodes": nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_task,
        "mem": None if settings.memory_gb is None else f"{settings.memory_gb}GB",
        "time": settings.minutes,
        "array_parallelism": settings.array_parallelism,
        "signal_delay_s": settings.signal_seconds,
        # which srun does not take from its job since 22.05
        "srun_args": [f"--cpus-per-task={settings.cpus_per_task}", "--kill-on-bad-exit=0"],
        "setup": [f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        # submitit takes its signal from the environment, and a cluster may not queue again what does not ask for it
        "additional_parameters": {
            "signal": f"USR2@{settings.signal_seconds}",
            "requeue": True,
            **{name.replace("-", "_"): value for name, value in settings.extra.items() if value is not False},
        },
    }
    return {name: value for name, value in wanted.items() if value is not None}


def submit(jobs: Sequence[Path], *, settings: Slurm, folder: Path, command: Sequence[str], nodes: int = 1) -> list[str]:
    """Hand jobs to SLURM, as one array, to run in this working folder. Returns their ids, in their order.

    A job file's command is `command --job FILE`. `folder` takes logs, statuses and what submitit keeps; all nodes have
    to see it. Raises ValueError where submitit or SLURM is missing, or refuses.
    """
    wanted = parameters(settings, nodes=nodes)
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "jobs on SLURM need submitit, which is not installed: pip install 'tinyllama[slurm]'"
        ) from None
    folder = folder.absolute()
    here = Path.cwd()
    calls = [
        Job(
            command=(*command, "--job", str(job.absolute())),
            working_folder=here,
            folder=folder,
            patience=settings.signal_seconds * 3 // 4,
            requeues=settings.requeues,
        )
        for job in jobs
    ]
    if not calls:
        return []
    try:
        # what is submitted from inside a job is not to take after that, but where SLURM is found holds for all
        conf = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
        with submitit.helpers.clean_env():
            os.environ.update(conf)
            executor = submitit.SlurmExecutor(folder)
            executor.update_parameters(**wanted)
            return [job.job_id for job in executor.submit_array(calls)]
    except RuntimeError as error:  # there is no srun
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"SLURM did not take the jobs: {'; '.join(lines)}") from error


@dataclass(frozen=True, kw_only=True)
class Job:
    """What submitit runs on each node of a job: the command, until it has ended for good."""

    command: tuple[str, ...]
    """What it runs."""
    working_folder: Path
    """Where it runs it."""
    folder: Path
    """Where it leaves its status."""
    patience: int
    """Seconds that the command has to stop in before it is killed."""
    requeues: int
    """How often it is queued again at most."""

    def __call__(self) -> None:
        """Run the command: return where it ends with 0, else exit with its status, or with 75 once queued again."""
        asked = False
        child: subprocess.Popen[bytes] | None = None

        def stop(*_: object) -> None:
            nonlocal asked
            if not asked:
                signal.alarm(max(1, self.patience))
            asked = True
            if child is not None:
                child.send_signal(signal.SIGTERM)

        def kill(*_: object) -> None:
            if child is not None:
                child.kill()

        # in place of submitit's, which pass nothing on, and on all nodes but the first do nothing
        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        signal.signal(signal.SIGALRM, kill)
        task = os.environ.get("SLURM_PROCID", "0")
        told = status_file(self.folder, job_id(os.environ), task)
        told.unlink(missing_ok=True)
        child = subprocess.Popen([*self.command, *meeting(os.environ)], cwd=self.working_folder)
        if asked:
            child.send_signal(signal.SIGTERM)
        status = child.wait()
        signal.alarm(0)
        # a signal itself ends a command that was only just starting, or that did not stop in time
        stopped = status == os.EX_TEMPFAIL or -status in STOP_SIGNALS or (asked and -status == signal.SIGKILL)
        if stopped and task != "0":
            return  # the first node's task queues the job again for all
        if stopped and self._queued_again():
            sys.exit(os.EX_TEMPFAIL)
        status = os.EX_TEMPFAIL if stopped else 128 - status if status < 0 else status
        told.write_text(f"{status}\n")
        if status:
            sys.exit(status)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again where SLURM asks for a stop before the command was started."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _queued_again(self) -> bool:
        """Queue this job again, unless it has been already, or is cancelled; False where it cannot or may not be."""
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= self.requeues:
            return False
        name = job_id(os.environ)
        asking = ["squeue", "--noheader", f"--jobs={name}", "--format=%T"]
        state = subprocess.run(asking, check=False, stdout=subprocess.PIPE, text=True).stdout.strip()
        if state not in ("RUNNING", ""):
            return True  # SLURM is ending it, and knows what comes after
        return subprocess.run(["scontrol", "requeue", name], check=False).returncode == 0


def job_id(environment: Mapping[str, str]) -> str:
    """The id of the job that this is, as `submit` returned it."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def rendezvous(number: int, host: str) -> str:
    """Where the nodes of a job meet, as host:port: a port of their own for 10,000 jobs in a row."""
    return f"{host}:{PORTS[number % len(PORTS)]}"


def meeting(environment: Mapping[str, str]) -> list[str]:
    """What a command on several nodes is told besides: where they meet, which is on the first of them."""
    if int(environment.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        return []
    asking = ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]
    hosts = subprocess.run(asking, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    # in an array the job's own number, and not the array's
    return ["--rendezvous", rendezvous(int(environment["SLURM_JOB_ID"]), hosts[0])]
