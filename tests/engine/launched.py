"""A script on real ranks, which measures many things at once: to start ranks takes longer than any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent


@cache
def measured(script: str, *, ranks: int) -> dict[str, Any]:
    """What a script of this folder, started as `torchrun ... SCRIPT OUT` on so many ranks, writes to OUT as JSON."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost"]
    alone = {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    with TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        done = subprocess.run(
            [*launcher, *meeting, str(HERE / script), str(out)],
            env=os.environ | alone,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, Any] = json.loads(out.read_text())
    return found
