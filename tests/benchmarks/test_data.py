"""The data benchmark goes through its own code quickly, and times nothing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data, data_race
from benchmarks.data_peers import PeerError
from tinyllama.data.loader import Loader
from tinyllama.data.shards import ShardWriter
from tinyllama.data.words import Encoder


def quick(out: Path) -> tuple[int, dict[str, Any]]:
    status = data.run(quick=True, out=out)
    return status, json.loads(out.read_text())


def test_it_checks_and_times_without_peers(tmp_path: Path) -> None:
    status, told = quick(tmp_path / "data.json")
    assert status == 0
    assert told["checks"] == {"ids": True, "streams": True, "samples": True}
    assert {"date", "device", "cores", "load_before", "load_after", "versions", "commit", "seconds"} <= set(told)
    assert min(told["corpus"].values()) > 300_000 and told["tokens"]["ours"] > 0
    rows = {(row["what"], row["than"]): row for row in told["rows"]}
    assert len(rows) == len(told["rows"]) == 22
    for pair in (("encoder, cold", "SentencePiece"), ("1 worker", "encoder, cold"), ("2 workers", "1 worker")):
        row = rows[pair]
        assert row["status"] == "measured" and row["goal"] > 0
        assert row["ratio"]["median"] == pytest.approx(row["than_seconds"][0] / row["seconds"][0])
    for than in ("litgpt, 1", "datatrove, 1", "grain", "litdata, mixed"):
        row = next(row for row in told["rows"] if row["than"] == than)
        assert row["status"] == "not installed" and row["ratio"] is row["met"] is None
    assert rows["first batch at step 1,430,512", None]["rate"]["max"] > 0


def wrong_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, text: encode(self, text)[2:])


def lost_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    add, every = ShardWriter.add, iter(range(1_000_000))
    monkeypatch.setattr(ShardWriter, "add", lambda self, ids: add(self, ids) if next(every) != 7 else None)


def wrong_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda self, *given, **named: batch(self, *given, **named)[..., ::-1])


@pytest.mark.parametrize(
    ("broken", "check"), [(wrong_ids, "ids"), (lost_documents, "streams"), (wrong_samples, "samples")]
)
def test_it_refuses_to_time_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Any, check: str
) -> None:
    broken(monkeypatch)
    status, told = quick(tmp_path / "data.json")
    assert status == 1
    assert told["rows"] == [] and told["checks"][check] is False
    assert "refused: " in capsys.readouterr().out


def test_a_ratio_says_how_many_times_as_fast() -> None:
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [4.0, 4.0, 4.0], "slow": []}
    row = data_race.row(
        "part",
        "ours",
        "theirs",
        seconds,
        amount=8,
        unit="MB/s",
        failed={},
        goal=3.0,
        start={"ours": 0.5, "theirs": 1.0},
    )
    assert row["ratio"] == {"min": 1.0, "median": 2.0, "max": 4.0}
    assert row["rate"] == {"min": 2.0, "median": 4.0, "max": 8.0}
    assert row["ratio_without_start"] == {"min": 3 / 3.5, "median": 2.0, "max": 6.0}
    assert row["met"] is False
    failed = data_race.row("part", "ours", "slow", seconds, amount=8, unit="MB/s", failed={"slow": "failed: no"})
    assert failed["status"] == "failed: no" and failed["ratio"] is None


def test_who_fails_leaves_the_race() -> None:
    def fails() -> float:
        raise PeerError("no")

    failed: dict[str, str] = {}
    seconds = data_race.race({"a": lambda: 1.0, "b": fails}, rounds=3, failed=failed)
    assert seconds == {"a": [1.0, 1.0, 1.0], "b": []} and failed == {"b": "failed: no"}
