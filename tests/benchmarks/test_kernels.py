"""The kernels' benchmark checks before it times, and says so where it measured nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

WRONG = """
import sys
from pathlib import Path
from benchmarks import kernels
from tinyllama.kernels import select

def one_lost(ops):
    def swiglu(x):
        y = ops.swiglu(x)
        return y * (y != y.flatten()[7])  # one value of it is zero
    return ops._replace(swiglu=swiglu)

kernels.select = lambda *names, **how: one_lost(select(*names, **how))
sys.exit(kernels.run(only="swiglu", quick=True, out=Path(sys.argv[1])))
"""


def ran(*command: str, expect: int) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def implementations(path: Path, op: str) -> dict[str, Any]:
    [case] = [case for case in json.loads(path.read_text())["cases"] if case["op"] == op]
    found: dict[str, Any] = case["implementations"]
    return found


def test_without_a_gpu_everything_is_checked_and_nothing_measured(tmp_path: Path) -> None:
    told = ran("benchmarks/kernels.py", "--quick", "--out", str(tmp_path / "out.json"), expect=0)
    assert told.endswith("checked; nothing is measured without a GPU\n")
    for op in ("add_rms_norm", "rope", "swiglu", "attention", "linear_cross_entropy"):
        ours = implementations(tmp_path / "out.json", op)["tinyllama"]
        assert (ours["status"], ours["check"]) == ("not measured", "right")
        assert ours["figures"] is None


def test_a_kernel_that_is_wrong_is_not_timed(tmp_path: Path) -> None:
    told = ran("-c", WRONG, str(tmp_path / "out.json"), expect=1)
    assert "1.1b swiglu: check failed: output 0: " in told
    assert implementations(tmp_path / "out.json", "swiglu")["tinyllama"]["status"].startswith("check failed")
