"""What stands for `main.py --job FILE`: counts to a number, keeps the count as its checkpoint, and stops when asked."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

asked = False


def ask(*_: object) -> None:
    global asked
    asked = True


for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, ask)

job = Path(sys.argv[sys.argv.index("--job") + 1])
wanted = json.loads(job.read_text())
task = os.environ["SLURM_PROCID"]
count = Path(f"{job.stem}.{task}.count")
step = int(count.read_text()) if count.exists() else 0
told = [job.stem, task, step, os.environ["SLURM_JOB_ID"], os.environ["SLURM_CPUS_PER_TASK"], *sys.argv[3:]]
with Path("starts").open("a") as starts:
    starts.write(" ".join(map(str, told)) + "\n")
while step < wanted["steps"]:
    time.sleep(0.1)
    step += 1
    count.write_text(str(step))
    # it stops once by itself, as at a time limit of its own
    if asked or (step == wanted.get("stops_at") and "SLURM_RESTART_COUNT" not in os.environ):
        print("stopped at", step, flush=True)
        sys.exit(75)
print("counted to", step)
sys.exit(wanted.get("status", 0))
