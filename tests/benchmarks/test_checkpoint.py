"""The checkpoint benchmark tells nothing where what is loaded is not what was saved."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tests.benchmarks import patched

ran = partial(patched.ran, "checkpoint", "run('nano', rounds=2, out=out)")

ONE_LOST = """
from dataclasses import replace

def lost(one):
    state = state_of(one)
    weights = {name: state.weights[name] for name in state.weights}
    weights["norm.weight"] = weights["norm.weight"] * 1.001
    return replace(state, weights=weights)

state_of, checkpoint.state_of = checkpoint.state_of, lost
"""


def test_it_measures_both(tmp_path: Path) -> None:
    assert "DeepSpeed's save_checkpoint" in ran(tmp_path / "out.json", patch="", expect=0)
    told = json.loads((tmp_path / "out.json").read_text())
    assert all(len(rounds) == 2 for rounds in told["seconds"].values())
    assert set(told["versions"]) == {"torch", "deepspeed", "safetensors"}


def test_what_is_lost_is_seen(tmp_path: Path) -> None:
    ran(tmp_path / "out.json", patch=ONE_LOST, expect=1)
    assert not (tmp_path / "out.json").exists()
