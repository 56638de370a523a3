"""Torch's elastic agent, told what ours knows: who is lost, who hangs, what no restart would mend."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs

from tinyllama.launch import forkserver
from tinyllama.launch.lifeline import Board, State, first
from tinyllama.launch.signals import StopRequests
from tinyllama.launch.watch import Watch, Watched


@dataclass(frozen=True, kw_only=True)
class Death:
    """Why an attempt failed."""

    rank: int
    reason: str
    traceback: str | None = None
    for_good: bool = False
    disk_full: bool = False
    out_of_memory: bool = False
    """Whether the first step already took more than its GPU has."""
    by_stop: bool = False
    """Whether a signal that asks to stop killed it, before it could take one."""

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.reason}"


class Agent(LocalElasticAgent):
    """Starts, watches and restarts the ranks of this machine."""

    def __init__(
        self,
        spec: WorkerSpec,
        logs: LogsSpecs,
        *,
        forked: bool,
        board: Board,
        watch: Watch,
        requests: StopRequests,
        report: Callable[[str], None],
    ) -> None:
        super().__init__(spec, logs, start_method="forkserver" if forked else "spawn")
        self._forked = forked
        self.death: Death | None = None
        """Why the last attempt failed."""
        self.met = False
        """Whether all machines have met once."""
        self._board = board
        self._watch = watch
        self._requests = requests
        self._report = report
        self._processes: dict[int, BaseProcess] = {}

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._requests.check()
        super()._rendezvous(worker_group)
        self.met = True

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._board.clear()
        if self._forked:
            forkserver.start()  # again, where it was killed
            forkserver.wait()
        with self._requests.ranks_are_started():
            pids: dict[int, Any] = super()._start_workers(worker_group)
        ours = {process.pid: process for process in multiprocessing.active_children()}
        self._processes = {local: ours[pid] for local, pid in pids.items() if pid in ours}
        workers = worker_group.workers
        self._watch.begin(
            [Watched(local, workers[local].global_rank, pid, forkserver.parent_of(pid)) for local, pid in pids.items()]
        )
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY and any(one.exitcode == 0 for one in self._processes.values()):
            # it left without returning, as by os._exit(0): the agent would wait for its value for good
            result = RunResult(state=WorkerState.FAILED)
        if result.state in (WorkerState.UNHEALTHY, WorkerState.FAILED):
            self.death = self._why(worker_group)
            if self.death.for_good or self._board.stop_asked():
                self._remaining_restarts = 0
            if self._remaining_restarts:
                attempts = worker_group.spec.max_restarts + 1
                number = attempts - self._remaining_restarts + 1
                self._report(f"{self.death}; attempt {number} of {attempts} begins")
        return result

    def _why(self, worker_group: WorkerGroup) -> Death:
        """The death that the others followed from: where one rank is gone, the others lose their connection to it."""
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        if self._watch.verdict:
            rank, reason = self._watch.verdict
            return Death(rank=rank, reason=reason)
        told = {local: failure for local in ranks if (failure := self._board.failure(local))}
        codes = {local: process.exitcode for local, process in self._processes.items()}
        # SIGTERM last: the agent sends it to those that are left, and one that is ending has no handler any more
        killed = sorted(
            (code == -signal.SIGTERM, local)
            for local, code in codes.items()
            if code is not None and code < 0 and local not in self._watch.killed and local not in told
        )
        cause = first(told.items())
        if killed and not (cause and cause[1].state > State.FAILED):
            local = killed[0][1]
            number = signal.Signals(-(codes[local] or 0))
            reason = f"killed by {number.name}"
            if number == signal.SIGKILL:
                reason += ", as the kernel does where memory runs out"
            return Death(
                rank=ranks[local], reason=reason, by_stop=number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
            )
        if cause:
            local, failure = cause
            # a later attempt takes no more than the first took: what it finds taken is not its own
            first_attempt = self._remaining_restarts == worker_group.spec.max_restarts
            out_of_memory = failure.state == State.OUT_OF_MEMORY and first_attempt
            final = failure.state in (State.FAILED_FOR_GOOD, State.DISK_FULL)
            return Death(
                rank=ranks[local],
                reason=failure.message,
                traceback=failure.traceback,
                for_good=final or out_of_memory,
                disk_full=failure.state == State.DISK_FULL,
                out_of_memory=out_of_memory,
            )
        local = next(
            (local for local, code in codes.items() if code is not None and local not in self._watch.killed), 0
        )
        reason = f"ended with exit status {codes.get(local)} and without a word"
        if self._forked and codes.get(local) == 255:  # which is Python's word for not knowing
            reason += ", as where the process that it was forked from is killed"
        return Death(rank=ranks[local], reason=reason)
