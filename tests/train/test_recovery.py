"""What a checkpoint keeps of the samples left out, and what the judge remembers of an older checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinyllama.config.resilience import Spikes
from tinyllama.data.skips import Skips
from tinyllama.engine import room
from tinyllama.tracking.tracker import Tracker
from tinyllama.train.recovery import Recovery
from tinyllama.train.spikes import Decision, Judge, skips_of

SPIKES = Spikes(threshold=10.0, window=8, max_skips=20, skip=((3, 5),))
TAKEN = {10: 40, 20: 80, 30: 120}


def test_samples_left_out_outlive_the_journal() -> None:
    unused: Any = None
    skips = skips_of(SPIKES, []).adding([(40, 44)])
    recovery = Recovery(
        plan=unused, judge=Judge(SPIKES), skips=skips, engine=unused, saver=unused, tracker=Tracker(), report=print
    )
    kept = [list(left_out) for left_out in recovery.state()["skipped"]]  # as JSON gives it back
    assert skips_of(SPIKES, []) == Skips(((3, 5),)), "the journal is lost"
    assert skips_of(SPIKES, [], kept=kept) == skips
    assert skips_of(SPIKES, [refuse(Judge(SPIKES), 20, 80)], kept=kept) == skips.adding([(80, 84)]), (
        "and what came after"
    )


def refuse(judge: Judge, step: int, first: int) -> Decision:
    return judge.refused(step, loss=9.0, grad_norm=1.0, samples=[range(first, first + 4)], checkpoints=TAKEN)


def test_an_older_checkpoint_is_remembered_alike_by_this_process_and_the_next() -> None:
    judge = Judge(SPIKES, recent=[2.0] * 8)
    decided = [refuse(judge, 33, 132), refuse(judge, 33, 136)]
    assert decided[1].to == 30
    decided[1] = judge.further_back(decided[1], to=20)
    assert (decided[1].to, decided[1].samples) == (20, ((120, 140),))
    resumed = Judge(SPIKES, recent=[2.0] * 8, earlier=decided)
    for one in (judge, resumed):
        assert [refuse(one, 25, first).to for first in (140, 144)] == [None, 10], "it has gone back to 20 before"


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_a_launcher_looks_for_as_much_room_as_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, fits: bool
) -> None:
    free = 12 * 10**9 + room.SLACK + spare
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: type("Disk", (), {"free": free}))
    if fits:
        room.check_room(tmp_path, 12 * 10**9)
    else:
        with pytest.raises(OSError, match=r"a checkpoint takes 12 GB and the disk of .* has 12 GB left: free some, or"):
            room.check_room(tmp_path, 12 * 10**9)
