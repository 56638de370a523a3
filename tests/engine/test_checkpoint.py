"""Checkpoints are whole or absent, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tinyllama.engine import checkpoint
from tinyllama.engine.zero import TrainState


def state(step: int) -> TrainState:
    """Tensors that say which step they are of, strided ones too."""
    return TrainState(
        step,
        {"a.weight": torch.full((3, 2), float(step)), "b.weight": torch.arange(5.0) + step},
        {"a.weight": torch.randn(3, 2), "b.weight": torch.randn(5)},
        {"a.weight": torch.rand(3, 2), "b.weight": torch.rand(5)},
    )


def save(folder: Path, step: int, *, keep: int = 9) -> TrainState:
    one = state(step)
    checkpoint.save(folder, one, meta={"tokens": step * 10}, keep=keep)
    return one


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = save(tmp_path, 7)
    loaded, meta = checkpoint.load(checkpoint.found(tmp_path)[0])
    assert loaded.step == 7
    assert meta["tokens"] == 70
    for part in ("weights", "exp_avg", "exp_avg_sq"):
        for name, tensor in getattr(saved, part).items():
            assert torch.equal(getattr(loaded, part)[name], tensor)
    assert torch.equal(checkpoint.latest_weights(tmp_path)["a.weight"], saved.weights["a.weight"])


def test_they_are_ordered_by_number_and_the_last_are_kept(tmp_path: Path) -> None:
    for step in (999_999_999, 1_000_000_000, 2, 1_000_000_001):
        save(tmp_path, step)
    assert [int(path.name[5:]) for path in checkpoint.found(tmp_path)] == [2, 999_999_999, 10**9, 10**9 + 1]
    save(tmp_path, 10**9 + 2, keep=2)
    assert [int(path.name[5:]) for path in checkpoint.found(tmp_path)] == [10**9 + 1, 10**9 + 2]


@pytest.mark.parametrize("name", ["weights.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"])
def test_a_flipped_bit_is_found_and_the_one_before_is_taken(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    victim = tmp_path / "step-000000002" / name
    raw = bytearray(victim.read_bytes())
    raw[-3] ^= 16
    victim.write_bytes(raw)
    told: list[str] = []
    found = checkpoint.newest(tmp_path, report=told.append)
    assert found is not None
    assert found[0].step == 1
    assert told == [
        f"warning: {victim} is not what was written: its sha256 differs; going back to the checkpoint before it"
    ]


def test_a_missing_file_and_unreadable_counters_are_found(tmp_path: Path) -> None:
    save(tmp_path, 1)
    place = tmp_path / "step-000000001"
    (place / "exp_avg.safetensors").rename(place / "elsewhere")
    with pytest.raises(checkpoint.Damaged, match=r"exp_avg\.safetensors is missing"):
        checkpoint.load(place)
    (place / "state.json").write_text('{"step": 1')
    with pytest.raises(checkpoint.Damaged, match=r"state\.json cannot be read"):
        checkpoint.load(place)
    assert checkpoint.newest(tmp_path, report=lambda line: None) is None


def test_nothing_half_written_is_left_or_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere", report=lambda line: None) is None
