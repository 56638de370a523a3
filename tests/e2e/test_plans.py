"""Plans by whole command lines: what is refused, chosen and set beside what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY, Here

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLANNED = "runs/of-plans/planned"
OWN = "runs_dir=runs/of-plans"
"""Where no other test has measured how fast the model is."""
LARGER = ["train.batch_tokens=4096", "budget.tokens=90K"]
CAUSAL = "6N, no input embedding, causal attention"
SHORT = ["budget.tokens=60K", "checkpoint.every=1000", "tracking=journal", "train.eval_every=1000"]


@pytest.fixture(scope="module")
def planned(here: Here) -> str:
    """A finished run of an automatic micro-batch, and what it said."""
    return here.run(OWN, f"run_dir={PLANNED}", *SHORT, "parallelism.micro_batch=auto")


def test_a_run_says_before_what_it_needs_and_after_what_it_took(here: Here, planned: str) -> None:
    micro_batch = json.loads((here.folder / PLANNED / "config.json").read_text())["config"]["parallelism"][
        "micro_batch"
    ]
    assert micro_batch == 32, "all of the batch fits"
    plan = json.loads((here.folder / PLANNED / "plan.json").read_text())
    assert plan["fit"]["micro_batch"] == 32
    assert f"planned: {plan['fit']['needed']['peak'] / 1e6:.1f} MB on one rank" in planned
    result = here.result(PLANNED)
    assert result["memory_bytes"] > 0
    [line] = [line for line in planned.splitlines() if line.strip().startswith("tokens/s")]
    assert line.split()[1:4] == [f"{result['tokens_per_s']:,.0f}", "not", "known"], "nothing was measured before"


def test_what_a_run_measured_is_what_the_next_one_is_planned_by(here: Here, planned: str) -> None:
    here.run(OWN, "task=plan", "run_dir=runs/next", *SHORT, "seed=7")
    plan = json.loads((here.folder / "runs/next/plan.json").read_text())
    assert plan["rate"]["tokens_per_s"] == here.result(PLANNED)["tokens_per_s"]
    assert plan["rate"]["source"] == f"measured in {PLANNED}"
    assert plan["cost"]["hours"] * 3600 * plan["rate"]["tokens_per_s"] == pytest.approx(plan["tokens"])
    here.run(OWN, "task=plan", "run_dir=runs/other", *SHORT, "model.n_layers=3")
    other = json.loads((here.folder / "runs/other/plan.json").read_text())
    done = here.result(PLANNED)["tokens_per_s"] * plan["flops_per_token"][CAUSAL]
    assert other["rate"]["tokens_per_s"] * other["flops_per_token"][CAUSAL] == pytest.approx(done)
    assert other["rate"]["source"].startswith("assumed: the FLOPs a second of a model 1.")
    assert other["rate"]["source"].endswith(f"er, measured in {PLANNED}")
    here.run(OWN, "task=plan", "run_dir=runs/bf16", *SHORT, "train.precision=bf16")
    assert json.loads((here.folder / "runs/bf16/plan.json").read_text())["rate"] is None, "it computes otherwise"


def test_a_grid_is_one_table_with_totals(here: Here, planned: str) -> None:
    grid = "budget.tokens=60K,80K"
    out = here.run("-m", "task=plan", *SHORT[1:], grid, "runs_dir=runs/grid", COLUMNS="80")
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["tokens=60K", "tokens=80K"]
    totals = [row.split()[:3] for row in out.splitlines() if row.startswith((" all", " still"))]
    assert totals == [["all", "2", "143K"]], "30 and 40 steps of 2,048"
    assert "rate: not known until a run has been measured here" in out
    here.run(*SHORT, "runs_dir=runs/grid")
    out = here.run("-m", "task=plan", *SHORT[1:], grid, "runs_dir=runs/grid", COLUMNS="80")
    assert out.splitlines()[2].split()[-1] == "yes"
    [left] = [row.split() for row in out.splitlines() if row.startswith(" still to do")]
    assert left[3:5] == ["1", "81.9K"]
    assert "rate: measured in runs/grid/nano-stdlib-" in out, "of both, the finished one too"
    for broken in (here.folder / "runs/grid").glob("*/result.json"):
        broken.write_text("{")
    out = here.run("-m", "task=plan", *SHORT[1:], grid, "runs_dir=runs/grid", expect=2)
    assert out.startswith("refused runs/grid/nano-stdlib-"), out
    assert "is no result of a run" in out


def test_a_runs_own_plan_stays(here: Here, planned: str) -> None:
    before = (here.folder / PLANNED / "plan.json").read_bytes()
    out = here.run(OWN, "task=plan", f"run_dir={PLANNED}", *SHORT, "budget.tokens=90K")
    assert f"{PLANNED}/plan.json stays that of the run there" in out
    assert (here.folder / PLANNED / "plan.json").read_bytes() == before


def test_what_does_not_fit_is_refused_and_leaves_nothing(here: Here) -> None:
    line = ["run_dir=runs/large", *SHORT, "hardware.memory_gb=0.02"]
    out = here.run(*line, expect=2)
    assert out.startswith(
        "refused parallelism.micro_batch: 16 needs 28.0 MB on a rank, which has 20.0 MB for tensors: set "
    )
    assert not (here.folder / "runs/large").exists()
    assert "step 30/30" in here.run(*line, "plan.strict=false")


def test_an_automatic_micro_batch_is_halved_once_where_memory_runs_out(here: Here) -> None:
    def run(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, HERE / "out_of_memory.py", "--config-path", ROOT / "conf", *TINY, *SHORT, *line],
            cwd=here.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    auto = run("run_dir=runs/auto", "parallelism.micro_batch=auto")
    assert auto.returncode == 0, auto.stdout
    assert "out of memory: once again with parallelism.micro_batch=16" in auto.stdout
    frozen = json.loads((here.folder / "runs/auto/config.json").read_text())
    assert frozen["config"]["parallelism"]["micro_batch"] == 16
    assert here.result("runs/auto")["status"] == "finished"
    (here.folder / "runs/auto/result.json").unlink()
    again = run("run_dir=runs/auto", "parallelism.micro_batch=auto")
    assert again.returncode == 0, again.stdout
    assert "out of memory" not in again.stdout, "it knows what was too much"
    several = run("run_dir=runs/several", "parallelism.micro_batch=auto", "parallelism.gpus=2", *LARGER)
    assert several.returncode == 0, several.stdout
    assert "out of memory: once again with parallelism.micro_batch=16" in several.stdout
    still = run("run_dir=runs/still", "parallelism.micro_batch=auto", *LARGER)
    assert still.returncode == 1, "64 and 32 are both too many"
    asked = run("run_dir=runs/asked", "parallelism.micro_batch=32")
    assert asked.returncode == 1
    assert "OutOfMemoryError: there is no room" in asked.stdout
    assert "once again" not in asked.stdout
