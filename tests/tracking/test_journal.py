"""The journal: what a crash may do to it, and which of its lines count."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import pytest

from tinyllama.tracking.journal import (
    Journal,
    finite,
    has,
    last_measured,
    measured,
    read,
    read_both,
    read_kinds,
    superseded,
)


def steps(path: Path, *, kind: str = "train") -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read(path) if record["kind"] == kind]


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with Journal(path) as journal:
        start = journal.write("start", digest="abc")
        line = journal.write("eval", step=3, tokens=96, losses={"code": 1.5})
        assert read(path) == [start, line], "a line must be in the file before write returns"
    assert line["kind"] == "eval"
    assert line["time"] >= start["time"] > 1.7e9


@pytest.mark.parametrize("torn", [b'{"kind": "tr', b'{"kind": "train", "step": 3}', b"\0\0\0"])
def test_a_torn_last_line_is_cut_and_the_next_line_starts_clean(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        journal.write("train", step=1, tokens=32, loss=2.0)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert steps(path) == [(1, 2.0)], "a reader leaves an unfinished line out"
    with Journal(path) as journal:
        assert path.read_bytes() == whole
        journal.write("train", step=2, tokens=64, loss=1.0)
    assert steps(path) == [(1, 2.0), (2, 1.0)]


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "start"}\n{"kind": "tr\n{"kind": "end"}\n')
    with pytest.raises(
        ValueError, match=r"metrics.jsonl, line 2: '\{\"kind\": \"tr' is no JSON object with a kind; rest"
    ):
        read(path)


def test_lines_that_a_resume_took_again_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        for step in (1, 2, 3, 4):
            journal.write("train", step=step, tokens=step, loss=float(step))
        journal.write("eval", step=4, tokens=4, loss=4.0)
        journal.write("checkpoint", step=4)
        journal.write("resume", step=2)
        for step in (3, 4):
            journal.write("train", step=step, tokens=step, loss=10.0 + step)
        journal.write("resume", step=3)
        journal.write("train", step=4, tokens=4, loss=24.0)
    assert steps(path) == [(1, 1.0), (2, 2.0), (3, 13.0), (4, 24.0)]
    assert steps(path, kind="eval") == []
    kinds = [record["kind"] for record in read(path)]
    assert kinds == ["train", "train", "checkpoint", "resume", "train", "resume", "train"]


def test_a_rollback_supersedes_as_a_resume_does(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        journal.write("start", step=0)
        for step in (1, 2, 3, 4):
            journal.write("train", step=step, tokens=step, loss=float(step))
        journal.write("skip", step=4, samples=[32, 40], loss=9.0)
        journal.write("rollback", step=4, to=1, samples=[8, 40], loss=9.0)
        journal.write("train", step=2, tokens=2, loss=12.0)
        journal.write("resume", step=2)
        journal.write("train", step=3, tokens=3, loss=13.0)
        assert steps(path) == [(1, 1.0), (2, 12.0), (3, 13.0)]
        journal.write("start", step=0)
    assert steps(path) == []
    assert [record["kind"] for record in read(path)] == ["start", "skip", "rollback", "resume", "start"]
    assert superseded(path) == [(2, 4), (1, 3)], "the resume at 2 took nothing again"


def test_the_short_ways_say_what_reading_all_says(tmp_path: Path) -> None:
    """Over journals that go back at random, with lines of other hands' spacing among them."""
    random = Random(0)
    for number in range(30):
        path, step, last = tmp_path / f"{number}.jsonl", 0, 0
        with Journal(path) as journal:
            journal.write("start", step=0)
            for _ in range(60):
                step += random.randrange(3)
                match random.randrange(12):
                    case 0:
                        step = random.randrange(step + 1)
                        journal.write("resume", step=step)
                    case 1:
                        back = random.randrange(step + 1)
                        journal.write("rollback", step=step, to=back, samples=[step, step + 8])
                        step = back
                    case 2:
                        journal.write("skip", step=step, samples=[step, step + 8], note="a rollback")
                    case 3:
                        with path.open("a") as file:
                            file.write(json.dumps({"step": step, "kind": "train", "loss": 1.0}, separators=(",", ":")))
                            file.write("\n")
                    case _:
                        journal.write(random.choice(["train", "eval", "checkpoint"]), step=step, tokens=step)
            records, stretches = read_both(path)
            last = last_measured(records)
        assert measured(path) == (last, stretches)
        assert stretches, "it has gone back"
        for kinds in (["skip", "rollback"], ["skip"], ["tasks"]):
            assert read_kinds(path, kinds) == [record for record in records if record["kind"] in kinds]
        assert has(path, lambda record: record["kind"] == "start")
        assert not has(path, lambda record: record["kind"] == "end")


@pytest.mark.parametrize("broken", ['{"kind": "skip", "step"', '{"kind": "resume", "st', "rollback", '["skip"]'])
def test_the_short_ways_refuse_a_line_that_they_need(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "train", "time": 1.5, "step": 1, "tokens": 1}}\n{broken}\n')
    with pytest.raises(ValueError, match=r"line 2: .* is no JSON object with a kind"):
        measured(path)
    if "skip" in broken:
        with pytest.raises(ValueError, match=r"line 2: .* is no JSON object with a kind"):
            read_kinds(path, ["skip"])


def test_a_rollback_that_says_not_where_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "start"}\n{"kind": "rollback", "step": 4}\n')
    with pytest.raises(ValueError, match=r"line 2: .* is no JSON object with a kind"):
        read(path)


def test_a_non_finite_number_is_an_absence_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        line = journal.write(
            "eval", step=1, tokens=32, losses={"code": math.nan, "text": 2.0}, rate=-math.inf, parts=(1.0, math.inf)
        )
        known = journal.write("train", step=1, loss=math.nan, mfu=None, reason={"mfu": "no peak"})
    assert line["losses"] == {"code": None, "text": 2.0}
    assert line["reason"] == {"losses.code": "nan", "rate": "-inf", "parts.1": "inf"}
    assert known["reason"] == {"mfu": "no peak", "loss": "nan"}
    for text in path.read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_finite_numbers_are_left_alone() -> None:
    values = {"loss": 0.0, "step": 3, "ok": True, "none": None, "list": [1.5]}
    assert finite(values) == values
