"""Saving: what is named is whole, what fails leaves nothing, what is old goes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor

from tests.engine.saves import OneRank, save, saver, share, shares
from tinyllama.engine import checkpoint, saving
from tinyllama.engine.checkpoint import Checkpoint


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoint.found(folder)]


@pytest.mark.parametrize("memory", [10**9, 0], ids=["beside the training", "part by part"])
def test_a_checkpoint_is_the_same_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(saving, "_memory_left", lambda: memory)
    held: list[str] = []

    def watched() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for part, tensors in shares(3):
            held.append(" ".join(sorted(path.name for path in tmp_path.glob(".step-*/*.safetensors"))))
            yield part, tensors

    one = saver(tmp_path, OneRank(watched))
    one.save(3, meta={})
    one.finish()
    Checkpoint.at(tmp_path / "step-000000003").verify()
    names = [f"{part}-00000.safetensors" for part in ("exp_avg", "exp_avg_sq")]
    assert sorted(os.listdir(tmp_path / "step-000000003")) == [*names, "state.json", "weights-00000.safetensors"]
    if not memory:
        assert held == ["", "weights-00000.safetensors", "exp_avg-00000.safetensors weights-00000.safetensors"]


def test_it_is_named_when_all_have_written_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    write = saving.save_file
    monkeypatch.setattr(saving, "save_file", lambda *what: (slow.wait(10), write(*what)))
    one = saver(tmp_path, OneRank(lambda: shares(1)))
    one.save(1, meta={})
    assert not one.written
    assert steps(tmp_path) == []
    slow.set()
    while not one.written:
        pass
    assert steps(tmp_path) == []
    one.commit()
    assert steps(tmp_path) == [1]
    assert not one.written, "nothing is begun"


def test_the_newest_and_every_so_many_are_kept(tmp_path: Path) -> None:
    one = saver(tmp_path, OneRank(lambda: shares(1)), keep=2, keep_every=3)
    for step in (*range(1, 8), 1_000_000_000):
        one.save(step, meta={})
        assert step == 1 or (tmp_path / "latest").readlink() == checkpoint.found(tmp_path)[-1].relative_to(tmp_path)
    one.finish()
    assert steps(tmp_path) == [3, 6, 7, 1_000_000_000]
    assert (tmp_path / "latest").readlink() == Path("step-1000000000")


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    (place / "weights-00000.safetensors").write_bytes(b"damaged")
    save(tmp_path, 1)
    Checkpoint.at(place).verify()
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-000000001"]


def test_what_an_earlier_process_left_half_written_goes(tmp_path: Path) -> None:
    half = tmp_path / ".step-000000009.partial"
    half.mkdir(parents=True)
    (half / "weights-00000.safetensors").write_bytes(b"half")
    saver(tmp_path, OneRank(lambda: shares(1)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("memory", [10**9, 0], ids=["beside the training", "part by part"])
@pytest.mark.parametrize("broken", ["save_file", "sync"])
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, memory: int
) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "_memory_left", lambda: memory)
    monkeypatch.setattr(saving, broken, full)
    taken: list[str] = []

    def counted() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for part, tensors in shares(2):
            taken.append(part)
            yield part, tensors

    one = saver(tmp_path, OneRank(counted))
    one.save(2, meta={})
    while not one.failed:
        assert not one.written
    with pytest.raises(OSError, match="No space left") as refused:
        one.finish()
    assert refused.value.errno == errno.ENOSPC
    assert taken == list(checkpoint.PARTS), "other ranks take all parts"
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-000000001"]
    Checkpoint.at(tmp_path / "step-000000001").verify()


def test_a_disk_that_is_full_when_the_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    one = saver(tmp_path, OneRank(lambda: shares(2)))
    one.save(2, meta={})
    while not one.written:
        pass
    one.commit()
    assert one.failed, "which is for all ranks to hear of first"
    assert not one.written
    with pytest.raises(OSError, match="No space left"):
        one.finish()
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-000000001"]


def test_room_is_looked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    one = saver(tmp_path, OneRank(lambda: shares(1), share_bytes=13_200_000_000))
    with pytest.raises(OSError, match=r"a checkpoint takes 13.2 GB and the disk of .* has 1 GB left: free some"):
        one.save(1, meta={})
    assert os.listdir(tmp_path) == []


def test_a_library_that_speaks_of_a_full_disk_in_words_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise saving.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(saving, "save_file", full)
    one = saver(tmp_path, OneRank(lambda: shares(1)))
    one.save(1, meta={})
    with pytest.raises(OSError, match="os error 28") as refused:
        one.finish()
    assert refused.value.errno == errno.ENOSPC


def test_a_discarded_checkpoint_is_gone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    saver(tmp_path, OneRank(lambda: shares(1))).discard(2)
    assert steps(tmp_path) == [1]
    assert (tmp_path / "latest").readlink() == Path("step-000000001")


def test_a_rank_without_a_share_writes_no_file(tmp_path: Path) -> None:
    mine = {"weights": share("weights", 1), "exp_avg": {}, "exp_avg_sq": {}}
    one = saver(tmp_path, OneRank(lambda: iter(mine.items())))
    one.save(1, meta={})
    one.finish()
    assert list(Checkpoint.at(tmp_path / "step-000000001").sha256) == ["weights-00000.safetensors"]


def test_steps_are_those_that_are_there(tmp_path: Path) -> None:
    assert saver(tmp_path, OneRank(lambda: shares(1))).steps() == []
    save(tmp_path, 3)
    save(tmp_path, 12)
    assert saver(tmp_path, OneRank(lambda: shares(1))).steps() == [3, 12]
