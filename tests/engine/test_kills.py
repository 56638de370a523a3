"""Saving on a machine that fails: killed at any moment, and on a disk that fills up while it writes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyllama.engine import checkpoint
from tinyllama.engine.checkpoint import Checkpoint

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]

SAVE_FOR_EVER = """
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from tests.engine.saves import OneRank, saver
from tinyllama.engine import checkpoint, room

def shares(step):
    for part in checkpoint.PARTS:
        yield part, {f"{i}.weight": torch.full((300_000,), float(step)) for i in range(3)}

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
folder, step = Path(sys.argv[1]), int(sys.argv[2])
if "claims" in sys.argv:  # that a checkpoint needs next to nothing, so that the disk itself has to say it is full
    room.SLACK = 0
one = saver(folder, OneRank(lambda: shares(step), share_bytes=1), keep=2)
while True:
    step += 1
    one.save(step, meta={"losses": []})
    print(step, flush=True)
    one.finish()
"""


def test_killed_at_twenty_moments_of_a_save_it_always_resumes(tmp_path: Path) -> None:
    """From the checkpoint that was being written, or the one before it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    moments = random.Random(5)
    step, half_written = 0, 0
    for _ in range(20):
        saving = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path), str(step)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert saving.stdout is not None
        begun = int(saving.stdout.readline())
        time.sleep(moments.uniform(0, 0.3))
        saving.send_signal(signal.SIGKILL)
        begun = max([begun, *map(int, saving.stdout.read().split())])
        saving.wait()
        saving.stdout.close()
        half_written += bool(list(tmp_path.glob(".step-*.partial")))
        places = checkpoint.found(tmp_path)
        for place in places:
            Checkpoint.at(place).verify()
        now = checkpoint.step_of(places[-1]) if places else 0
        # it may have been named in the moment between its saving and the next line
        assert begun - 1 <= now <= begun + 1
        if places:
            assert (Checkpoint.at(places[-1]).tensors("weights")["2.weight"] == now).all()
        step = now
    assert step >= 10
    assert half_written >= 5, "the moments lie within saves"


def test_a_disk_that_fills_up_while_it_is_written_to(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a filesystem of his own")
    script = (
        f"mount -t tmpfs -o size=25m tmpfs {tmp_path} && {{ "
        f"{sys.executable} -c '{SAVE_FOR_EVER}' {tmp_path} 0 claims; ls -A {tmp_path}; "
        f"{sys.executable} -c 'import sys; from pathlib import Path; from tinyllama.engine import checkpoint as c; "
        f'one = c.Checkpoint.at(c.found(Path("{tmp_path}"))[-1]); one.verify(); print("whole", one.step)\'; }}'
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "OSError: [Errno 28]" in done.stderr, done.stderr[-3000:]
    assert done.stdout.split() == ["1", "2", "3", "latest", "step-000000001", "step-000000002", "whole", "2"] or (
        done.stdout.split() == ["1", "2", "latest", "step-000000001", "whole", "1"]
    ), done.stdout
