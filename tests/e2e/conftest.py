"""Real command lines on a model and a vocabulary so small that a run takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tinyllama.tracking.journal import read

MAIN = Path(__file__).parents[2] / "main.py"

TINY = [
    "model=nano",
    "model.context=64",
    "model.d_model=64",
    "model.n_layers=2",
    "model.d_ff=128",
    "data.tokenizer.vocab_size=1024",
    "data.tokenizer.sample_bytes=500K",
    "budget.tokens=500K",
    "train.batch_tokens=2048",
    "optimizer.lr=1e-2",
    "parallelism.micro_batch=16",
    "parallelism.threads=1",
    "train.eval_every=100",
    "train.eval_tokens=4K",
    "checkpoint.every=40",
    "generate.max_tokens=20",
    "hardware.peak_tflops=0.1",
]


@dataclass(frozen=True)
class Here:
    """A working folder in which command lines run."""

    folder: Path

    def command(self, *line: str, base: Sequence[str] = TINY) -> list[str]:
        flags = [word for word in line if word.startswith("-")]  # which have to stand before the overrides
        return [sys.executable, str(MAIN), *flags, *base, *(word for word in line if word not in flags)]

    def run(self, *line: str, base: Sequence[str] = TINY, expect: int = 0, **environment: str) -> str:
        """What a command line prints, both streams; it has to end with the expected status."""
        done = subprocess.run(
            self.command(*line, base=base),
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, done.stdout[-6000:]
        return done.stdout

    def wait_for_checkpoint(self, run_dir: str, step: int, running: subprocess.Popen[str]) -> None:
        checkpoints = self.folder / run_dir / "checkpoints"
        deadline = time.monotonic() + 120
        while not any(int(path.name[5:]) >= step for path in checkpoints.glob("step-*")):
            assert running.poll() is None, "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill_after_checkpoint(self, run_dir: str, step: int, *, base: Sequence[str] = TINY) -> None:
        """Start the run and kill all its processes, without warning, once it has a checkpoint at `step` or later."""
        running = subprocess.Popen(
            self.command(f"run_dir={run_dir}", base=base),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.wait_for_checkpoint(run_dir, step, running)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()

    def result(self, run_dir: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / run_dir / "result.json").read_text())
        return found

    def losses(self, run_dir: str) -> dict[int, float]:
        """The training loss of each journal line, by step."""
        records = read(self.folder / run_dir / "metrics.jsonl")
        return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}

    def final_hashes(self, run_dir: str) -> dict[str, str]:
        """What the last checkpoint's files hash to."""
        last = max((self.folder / run_dir / "checkpoints").glob("step-*"))
        hashes: dict[str, str] = json.loads((last / "state.json").read_text())["state"]["files"]
        return hashes


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """One working folder for all command lines, so that the data is prepared once."""
    return Here(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def whole(here: Here) -> str:
    """The output of a run in runs/whole, from nothing, on a machine where no program can be found: no compiler."""
    return here.run("run_dir=runs/whole", PATH="/nonexistent")
