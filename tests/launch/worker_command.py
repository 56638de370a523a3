"""What a test's worker does: it says what its job file holds, and ends as that says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tinyllama.launch.signals import requests
from tinyllama.launch.workers import serve


def do(job: Path) -> int:
    word, number = job.read_text().split()
    print("says", job.stem, flush=True)
    subprocess.run(["echo", "child of", job.stem], check=True)
    print("to err", job.stem, file=sys.stderr)
    if word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if word in ("wait", "deaf"):
        (job.parent / "waits").touch()
        time.sleep(60)
    if word == "die":
        os._exit(int(number))
    if word == "asked":
        requests._asked = True  # while its ranks take their last step
    (job.parent / f"{job.stem}.pid").write_text(f"{os.getpid()} {os.environ['PART']}")
    return int(number)


assert sys.argv[1::2] == ["--jobs", "--parent"]
sys.exit(serve(int(sys.argv[2]), do, parent=int(sys.argv[4])))
