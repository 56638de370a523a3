"""Where a run begins: at the newest checkpoint that is whole, and never anew without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.saves import OneRank, save, share
from tests.model.tiny import SHAPE
from tinyllama import kernels
from tinyllama.engine.checkpoint import Checkpoint, Damaged
from tinyllama.engine.start import newest_whole, starting_state
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

CPU = torch.device("cpu")


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    told: list[str] = []
    return newest_whole(folder, ranks=OneRank.ranks, device=CPU, report=told.append), told


def damage(place: Path, name: str) -> None:
    raw = bytearray((place / name).read_bytes())
    raw[len(raw) // 2] ^= 16
    (place / name).write_bytes(raw)


@pytest.mark.parametrize("name", ["weights-00000.safetensors", "exp_avg_sq-00000.safetensors", "state.json"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    place = save(tmp_path, 2)
    damage(place, name)
    one, told = newest(tmp_path)
    assert one is not None
    assert one.step == 1
    [line] = told
    assert line.startswith(f"warning: {place / name} ")
    assert line.endswith("; it is now damaged-step-000000002, and the one before it is taken")
    assert not place.exists(), "the newest is not to be counted among those that are kept"
    again, told = newest(tmp_path)
    assert again is not None
    assert (again.step, told) == (1, [])


def test_where_none_is_whole_the_run_does_not_begin_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        damage(save(tmp_path, step), "exp_avg-00000.safetensors")
    with pytest.raises(
        Damaged, match=r"step-000000001/exp_avg.* no checkpoint in .* is whole: restore one, or set resume=never"
    ):
        newest(tmp_path)
    with pytest.raises(Damaged, match=r"all were damaged, and no checkpoint in .* is whole"):
        newest(tmp_path)


def test_a_run_begins_at_random_or_from_another_and_goes_on_from_its_own(tmp_path: Path) -> None:
    model = Llama(SHAPE, ops=kernels.TORCH)
    random = initial_weights(model, seed=3)

    def start(origin: Path | None) -> tuple[int, torch.Tensor, Checkpoint | None]:
        state, resumed = starting_state(
            model, checkpoints=tmp_path / "own", origin=origin, seed=3, ranks=OneRank.ranks, device=CPU, report=print
        )
        return state.step, next(iter(state.weights.values())), resumed

    step, first, resumed = start(None)
    assert (step, resumed) == (0, None)
    assert torch.equal(first, random[next(iter(random))])
    save(tmp_path / "other", 9)
    step, first, resumed = start(tmp_path / "other")
    assert (step, resumed) == (0, None)
    assert torch.equal(first, share("weights", 9)["a.weight"])
    save(tmp_path / "own", 4)
    step, first, resumed = start(tmp_path / "other")
    assert (step, resumed is not None) == (4, True)
    assert torch.equal(first, share("weights", 4)["a.weight"])


def test_deepspeeds_start_loads_no_compiler() -> None:
    """Muon is compiled where it is imported, as DeepSpeed does for its own sake; see what that loads."""
    script = """
import sys
from tinyllama.engine.zero import import_deepspeed
if sys.argv[1] == "uncompiled":
    import_deepspeed("cpu")
import deepspeed.runtime.zero.muon.muon_optimizer
from deepspeed.runtime import compiler
assert compiler.compile.__module__ == "deepspeed.runtime.compiler", "put back"
print("torch._inductor.compile_fx" in sys.modules)
"""
    for how, loaded in (("uncompiled", False), ("compiled", True)):
        done = subprocess.run(
            [sys.executable, "-c", script, how],
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout.split()[-1] == str(loaded)
