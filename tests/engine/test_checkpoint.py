"""A checkpoint on disk: what is read back, and that every kind of damage is found."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.engine.saves import save, share
from tinyllama.engine import checkpoint
from tinyllama.engine.checkpoint import Checkpoint, Damaged


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    place = save(tmp_path, 7)
    one = Checkpoint.at(place)
    one.verify()
    assert (one.step, one.meta) == (7, {"tokens": 70})
    for part in checkpoint.PARTS:
        tensors = one.tensors(part)
        assert set(tensors) == {"a.weight", "b.weight"}
        assert len(tensors) == 2
        for name, tensor in share(part, 7).items():
            assert torch.equal(tensors[name], tensor)
    assert torch.equal(checkpoint.latest_weights(tmp_path)["a.weight"], share("weights", 7)["a.weight"])


def test_they_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (999_999_999, 1_000_000_000, 2):
        (tmp_path / checkpoint.name_of(step)).mkdir()
    for other in ("damaged-step-000000003", ".step-000000004.partial", "step-x"):
        (tmp_path / other).mkdir()
    assert [int(path.name[5:]) for path in checkpoint.found(tmp_path)] == [2, 999_999_999, 10**9]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Of state.json all, of each file of tensors some in its header and some in its numbers."""
    place = save(tmp_path, 1)
    files = sorted(place.iterdir())
    assert [path.name.partition("-")[0] for path in files] == ["exp_avg", "exp_avg_sq", "state.json", "weights"]
    for path in files:
        raw = path.read_bytes()
        step = 1 if path.name == checkpoint.STATE else max(1, len(raw) // 23)
        for position in range(0, len(raw), step):
            flipped = bytearray(raw)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            with pytest.raises(Damaged, match=path.name):
                Checkpoint.at(place).verify()
        path.write_bytes(raw)
    Checkpoint.at(place).verify()


def test_what_is_missing_or_cut_is_found(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    victim = place / "exp_avg-00000.safetensors"
    raw = victim.read_bytes()
    victim.write_bytes(raw[:-4])
    with pytest.raises(Damaged, match=r"exp_avg-00000\.safetensors is not what was written: its sha256 differs"):
        Checkpoint.at(place).verify()
    victim.unlink()
    with pytest.raises(Damaged, match=r"exp_avg-00000\.safetensors is missing"):
        Checkpoint.at(place).verify()
    Checkpoint.at(place).verify("weights")
    (place / checkpoint.STATE).write_text('{"state": {"step": 1')
    with pytest.raises(Damaged, match=r"state\.json cannot be read"):
        Checkpoint.at(place)


def test_shares_of_the_hashing_cover_every_file(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    for victim in Checkpoint.at(place).files():
        raw = victim.read_bytes()
        victim.write_bytes(raw[:-1] + b"x")
        finders = []
        for rank in range(2):
            try:
                Checkpoint.at(place).verify(share=(rank, 2))
            except Damaged:
                finders.append(rank)
        assert len(finders) == 1
        victim.write_bytes(raw)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path("PWNED"),)


@pytest.mark.parametrize("name", ["weights-00000.safetensors", "state.json"])
def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not even one whose hash somebody has put in its place."""
    monkeypatch.chdir(tmp_path)
    place = save(tmp_path / "checkpoints", 1)
    (place / name).write_bytes(pickle.dumps(Bomb()))
    if name != checkpoint.STATE:
        whole = json.loads((place / checkpoint.STATE).read_text())["state"]
        whole["files"][name] = checkpoint.sha256_of(place / name)
        checkpoint.write_state(place, **whole)
        Checkpoint.at(place).verify()
    with pytest.raises(Damaged, match=name):
        checkpoint.latest_weights(tmp_path / "checkpoints")
    assert not (tmp_path / "PWNED").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "PWNED").exists(), "the bomb is a real one"
