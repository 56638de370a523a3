"""A benchmark's own code in a process of its own, with something in it spoilt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ran(script: str, call: str, out: Path, *, patch: str, expect: int, timeout: int = 120) -> str:
    """What a script of benchmarks/ prints; `call` is what it is called for, with `out`, and gives the exit status."""
    code = f"import sys\nfrom pathlib import Path\nfrom benchmarks import {script}\nout = Path(sys.argv[1])\n{patch}\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{code}sys.exit({script}.{call})", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr
