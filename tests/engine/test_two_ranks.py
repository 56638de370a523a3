"""A fault of one rank is all ranks' fault: none goes on without the other, none waits for ever, none is taken for hung.

`two_ranks.py` makes the faults, all in one launch; the tests here read what both ranks came to.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.launched import measured
from tests.engine.two_ranks import SLOW

OWN = {"full": "OSError: [Errno 28] No space left on device", "memory": "MemoryError: out of memory"}
OTHER = "OSError: [Errno 5] another rank could not write its share of a checkpoint, and says why"


def both(what: str) -> tuple[Any, Any]:
    """Rank 0's and rank 1's."""
    first, second = measured("two_ranks.py", ranks=2)
    return first[what], second[what]


@pytest.mark.parametrize("heard", ["finish", "next save", "training"])
@pytest.mark.parametrize("fault", OWN)
@pytest.mark.parametrize("memory", ["beside", "parts", "parts on rank 1"])
def test_what_rank_1_cannot_write_is_named_by_none(memory: str, fault: str, heard: str) -> None:
    """The last checkpoint stays, and later ones have both shares."""
    key = f"{memory}, {fault}, {heard}"
    after = [["latest", "step-000000001"], 6, [2.0]]
    assert [found[key] for found in both("saves")] == [[OTHER, *after], [OWN[fault], *after]]


def test_what_rank_0_cannot_name_is_named_by_none() -> None:
    left = ["latest", "step-000000001"]
    assert [found["unnamed"] for found in both("saves")] == [[OWN["full"], left], [OTHER, left]]


@pytest.mark.parametrize("when", ["saving, beside", "saving, parts on rank 1", "hashing"])
def test_a_slow_disk_is_no_hang(when: str) -> None:
    """While it waits for rank 1, rank 0 gives signs of life; rank 1 does from one of three files to the next."""
    waiting, slow = (found[when] for found in both("silences"))
    assert waiting < SLOW * 2 / 3
    assert SLOW * 0.9 < slow < SLOW * 2, "the disk was slow"


@pytest.mark.parametrize("what", ["damaged", "bad sector", "no state"])
def test_what_rank_1_finds_damaged_is_taken_by_none(what: str) -> None:
    aside = ["damaged-step-000000002", "latest", "step-000000001"]
    assert [found[what] for found in both("starts")] == [[[1], "", aside, told, [2.0]] for told in (1, 0)]
    assert both("starts")[0]["whole"] == [[2], "", ["latest", "step-000000001", "step-000000002"], 0, [2.0]]


@pytest.mark.parametrize(
    ("what", "own"),
    [
        ("stale", "OSError: [Errno 116] HERE/step-000000002 cannot be reached (OSError(116, 'no'))"),
        ("no folder", "FileNotFoundError: [Errno 2] HERE-elsewhere/step-000000002 cannot be reached ("),
    ],
)
def test_what_rank_1_cannot_reach_is_refused_by_both_and_stays(what: str, own: str) -> None:
    first, second = (found[what] for found in both("starts"))
    assert first[1] == (
        "OSError: [Errno 5] HERE/step-000000002 cannot be reached (another rank says why): see that every machine has "
        "its disk, and run the same line again; nothing was changed"
    )
    assert second[1].startswith(own)
    for step, _, there, told, in_step in (first, second):
        assert (step, there, told, in_step) == ([], ["latest", "step-000000001", "step-000000002"], 0, [2.0])


@pytest.mark.parametrize(
    ("damaged", "to", "measured_again"), [("none", 2, [[3, 3]]), ("one", 1, [[2, 3]])], ids=["whole", "damaged"]
)
def test_a_run_goes_back_to_what_is_whole_and_says_so(damaged: str, to: int, measured_again: list[list[int]]) -> None:
    """Journal, checkpoints and ranks agree, also where the checkpoint that comes first is damaged: step 1 is then taken
    again on its samples, and step 2 on the same as without that."""
    first, second = (found[damaged] for found in both("back"))
    assert first == second
    assert (first["steps"], first["seated"], first["said"]) == ([3, to], [to], "")
    assert first["kept"] == [[float(to)], [[8, 20]]]
    assert first["samples"] == [[[4, 8]], [[20, 24]]]
    steps = [f"step-{step:09d}" for step in range(1, to + 1)]
    assert first["there"] == [*["damaged-step-000000002"][: to == 1], "latest", *steps]
    told = [["skip", None, [[12, 16]]], ["rollback", to, [[8, 20]]]]
    assert both("back")[0][f"{damaged}, told"] == [told, measured_again]


def test_a_run_that_has_nothing_whole_to_go_back_to_keeps_the_later_checkpoint() -> None:
    first, second = (found["all"] for found in both("back"))
    assert first["said"].startswith("Damaged: ") and second["said"].startswith("Damaged: ")
    assert first["there"] == ["damaged-step-000000001", "damaged-step-000000002", "latest", "step-000000003"]
    assert both("back")[0]["all, told"] == [[["skip", None, [[12, 16]]]], []]


def test_rank_0_says_for_both_when_a_checkpoint_is_due() -> None:
    """Its clock goes 25 s a step, and it is asked before a step whether to save after it; rank 1's goes a year."""
    assert both("due") == ([4, 8, 12, 13], [4, 8, 12, 13])
