"""The benchmark of starts tells nothing where a command did not do what it is timed for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.benchmarks import patched

ran = partial(patched.ran, "startup")

ANOTHER_MODEL = "startup.PLAN[1] = 'model=300m'\n"
NEVER_LATE = "startup.checkpoint.write_state = lambda *_, **__: None\n"


def test_it_measures_what_answers_at_once(tmp_path: Path) -> None:
    said = ran("run(['show', 'plan'], rounds=2, quick=True, out=out)", tmp_path / "out.json", patch="", expect=0)
    told = json.loads((tmp_path / "out.json").read_text())
    assert {what: len(seconds) for what, seconds in told["seconds"].items()} == {"show": 2, "plan": 2}
    for what in ("show", "plan"):
        assert 0 < told["spread"][what]["min"] == min(told["seconds"][what])
    assert "1.5" in said, "the goal"


@pytest.mark.faults
def test_it_measures_runs(tmp_path: Path) -> None:
    call = "run(startup.CASES[2:], rounds=1, quick=True, out=out)"
    ran(call, tmp_path / "out.json", patch="startup.LATE = 5_000\n", expect=0, timeout=600)
    told = json.loads((tmp_path / "out.json").read_text())
    assert set(told["seconds"]) == {"first step", "second point", "resume early", "resume late"}
    assert told["spread"]["late over early"]["median"] > 0


def test_another_plan_is_seen(tmp_path: Path) -> None:
    said = ran("run(['plan'], rounds=1, quick=True, out=out)", tmp_path / "out.json", patch=ANOTHER_MODEL, expect=1)
    assert "task=plan says" in said and "nothing is told" in said
    assert not (tmp_path / "out.json").exists()


@pytest.mark.faults
def test_a_resume_at_another_step_is_seen(tmp_path: Path) -> None:
    call = "run(['resume'], rounds=1, quick=True, out=out)"
    said = ran(call, tmp_path / "out.json", patch=f"startup.LATE = 5_000\n{NEVER_LATE}", expect=1, timeout=600)
    assert "nothing is told" in said
    assert not (tmp_path / "out.json").exists()
