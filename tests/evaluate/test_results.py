"""What is written down and shown of scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tinyllama.config.schema import RunConfig
from tinyllama.evaluate.loss import SourceLoss
from tinyllama.evaluate.notes import Notes
from tinyllama.evaluate.paper import HOW_ASKED, MEAN, PUBLISHED, mean, shown
from tinyllama.evaluate.results import as_record, render_tasks, score_line
from tinyllama.tracking import store
from tinyllama.tracking.journal import Journal, read
from tinyllama.tracking.record import write_json

SEVEN = {task: {"acc": 0.4, "acc_norm": 0.5, "acc_stderr": 0.01, "questions": 1000, "shots": 0} for task in PUBLISHED}


def printed(tasks: Any) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        for part in render_tasks(tasks):
            console.print(part)
    return capture.get()


def test_the_papers_figures_stand_beside_scores() -> None:
    text = printed(SEVEN)
    assert "hellaswag" in text and "50.0%" in text and "59.20%" in text
    assert "mean of the paper's seven" in text and "52.99%" in text and "48.30%" in text
    # two of the seven are of acc
    assert mean(SEVEN) == pytest.approx((5 * 0.5 + 2 * 0.4) / 7)
    assert sum(figure.percent for figure in PUBLISHED.values()) / 7 == pytest.approx(MEAN, abs=0.02)


def test_what_the_paper_has_not_is_shown_alone() -> None:
    text = printed({"local": {"acc": 0.25, "acc_stderr": 0.125, "questions": 12}})
    assert "paper" not in text
    assert text.splitlines()[1].split() == ["local", "25.0%", "12.5%", "acc", "12"]
    six = {task: found for task, found in SEVEN.items() if task != "piqa"}
    assert mean(six) is None
    assert "mean" not in printed(six)
    assert printed({}) == ""


@pytest.mark.parametrize(
    ("task", "metrics", "metric"),
    [
        ("boolq", ["acc_norm", "acc"], "acc"),
        ("other", ["acc", "acc_stderr", "acc_norm"], "acc_norm"),
        ("other", ["f1_stderr", "acc"], "acc"),
        ("other", ["questions", "f1_stderr", "f1"], "f1"),
        ("other", ["questions"], None),
        ("other", ["shots", "questions"], None),
        ("other", ["shots", "questions", "f1"], "f1"),
    ],
)
def test_one_metric_is_shown(task: str, metrics: list[str], metric: str | None) -> None:
    assert shown(task, dict.fromkeys(metrics, 0.5)) == metric


def test_a_line_of_scores() -> None:
    tasks = {"sums": {"acc_norm": 0.592}, "texts": {"bits_per_byte": 1.25}, "none": {}}
    assert score_line(tasks) == "sums 59.2% acc_norm  texts 1.250 bits_per_byte"


def test_scores_are_metrics_of_mlflow(config: Callable[..., RunConfig]) -> None:
    how = config().evaluate
    record = {"kind": "tasks", "time": 1.5, "step": 3, "tokens": 96, **as_record(SEVEN, {"bad": "KeyError: x"}, how)}
    points = store.points(record)
    assert points["tasks/hellaswag/acc_norm"] == 0.5
    assert points["tokens"] == 96
    assert all(key == "tokens" or key.count("/") == 2 for key in points)
    assert not any(word in key for key in points for word in (*HOW_ASKED, "bad"))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ([], "one"),
        (["evaluate.shots=0"], "one-0shot"),
        (["evaluate.limit=10"], "one-limit10"),
        (["evaluate.shots=5", "evaluate.limit=10"], "one-5shot-limit10"),
    ],
)
def test_a_score_is_called_by_how_it_was_asked_for(
    config: Callable[..., RunConfig], line: list[str], name: str
) -> None:
    record = as_record({"one": {"acc": 0.5, "questions": 10}}, {"one": "KeyError: x"}, config(*line).evaluate)
    assert record == {"scores": {f"{name}/acc": 0.5}, "reason": {name: "KeyError: x"}}


@pytest.fixture
def notes(tmp_path: Path, config: Callable[..., RunConfig]) -> Callable[..., Notes]:
    place = tmp_path / "run"
    with Journal(place / "metrics.jsonl") as journal:
        journal.write("train", step=7, tokens=700, loss=1.0)
    write_json(place / "result.json", {"status": "finished", "held_out": "its own", "sample": "text"})
    return lambda *line, step=7: Notes(place, config(*line).evaluate, step=step, tokens=step * 100)


def result(notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((notes.place / "result.json").read_text())
    return found


def lines(notes: Notes) -> list[dict[str, Any]]:
    return [record for record in read(notes.place / "metrics.jsonl") if record["kind"] == "tasks"]


def test_scores_are_noted_once_and_the_rest_stays(notes: Callable[..., Notes]) -> None:
    for _ in range(2):
        notes().tasks({"one": {"acc": 0.5, "questions": 4}}, {"bad": "KeyError: x"})
    assert result(notes()) == {
        "status": "finished",
        "held_out": "its own",
        "sample": "text",
        "tasks": {"one": {"acc": 0.5, "questions": 4}},
        "tasks_at": {"step": 7, "tokens": 700, "failed": {"bad": "KeyError: x"}},
    }
    [line] = lines(notes())
    assert line["scores"] == {"one/acc": 0.5} and line["reason"] == {"bad": "KeyError: x"}
    assert (line["step"], line["tokens"]) == (7, 700)
    notes().tasks({"one": {"acc": 0.5 + 1e-9}, "two": {"acc": 0.25}}, {})
    assert lines(notes())[1:] == [lines(notes())[1] | {"scores": {"two/acc": 0.25}}], "rounding is no other score"
    notes().tasks({"one": {"acc": 0.75}}, {})
    assert lines(notes())[2]["scores"] == {"one/acc": 0.75}


def test_what_was_asked_differently_is_another_series(notes: Callable[..., Notes]) -> None:
    """Each keeps its last word: going back and forth between two ways to ask adds nothing."""
    for _ in range(2):
        notes().tasks({"one": {"acc": 0.5}}, {})
        notes("evaluate.limit=2").tasks({"one": {"acc": 1.0}}, {})
    assert [line["scores"] for line in lines(notes())] == [{"one/acc": 0.5}, {"one-limit2/acc": 1.0}]


def test_only_the_last_word_on_a_score_counts(notes: Callable[..., Notes]) -> None:
    for score in (0.5, 0.75, 0.5, 0.5):
        notes().tasks({"one": {"acc": score}}, {})
    assert [line["scores"]["one/acc"] for line in lines(notes())] == [0.5, 0.75, 0.5]


def test_a_score_that_is_no_number_is_noted_once(notes: Callable[..., Notes]) -> None:
    for _ in range(2):
        notes().tasks({"one": {"acc": 0.5, "acc_stderr": math.nan}}, {})
    [line] = lines(notes())
    assert line["scores"] == {"one/acc": 0.5, "one/acc_stderr": None}
    assert line["reason"] == {"scores.one/acc_stderr": "nan"}
    assert result(notes())["tasks"] == {"one": {"acc": 0.5, "acc_stderr": None}}
    notes().tasks({"one": {"acc": 0.5, "acc_stderr": 0.125}}, {})
    assert lines(notes())[1]["scores"] == {"one/acc_stderr": 0.125}


def test_what_failed_is_what_fails_now(notes: Callable[..., Notes]) -> None:
    notes().tasks({}, {"one": "KeyError: x", "group": "KeyError: y", "two": "KeyError: z"})
    notes().tasks({"one": {"acc": 0.5}}, {})
    notes().tasks({"part": {"acc": 0.5}}, {}, asked=["group"])
    assert result(notes())["tasks_at"]["failed"] == {"two": "KeyError: z"}
    notes().tasks({}, {"one": "OSError: w"})
    assert set(result(notes())["tasks_at"]["failed"]) == {"one", "two"}
    notes().tasks({"two": {"acc": 0.5}, "one": {"acc": 0.5}}, {})
    assert result(notes())["tasks_at"] == {"step": 7, "tokens": 700}


def test_results_of_another_model_or_step_do_not_stay(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    measured = {"web": SourceLoss(loss=2.0, bits_per_byte=1.0, tokens=10)}
    data: Any = SimpleNamespace(sources={"web": SimpleNamespace(held_out=SimpleNamespace(gzip_bits_per_byte=2.5))})

    def of(model: str, step: int | None = None) -> Notes:
        return Notes(tmp_path / "place", config().evaluate, step=step, tokens=None, model=model)

    assert of("/models/a").held_out(measured, data)
    of("/models/a").tasks({"one": {"acc": 0.5}}, {})
    assert set(result(of(""))) == {"status", "model", "held_out", "held_out_at", "tasks", "tasks_at"}
    of("/models/b").tasks({"two": {"acc": 0.5}}, {})
    assert result(of("")) == {
        "status": "evaluated",
        "model": "/models/b",
        "tasks": {"two": {"acc": 0.5}},
        "tasks_at": {"step": None, "tokens": None},
    }
    run = Notes(tmp_path / "run", config().evaluate, step=7, tokens=700)
    assert run.held_out(measured, data)
    with Journal(tmp_path / "run/metrics.jsonl") as journal:
        journal.write("train", step=9, tokens=900, loss=1.0)
    Notes(tmp_path / "run", config().evaluate, step=9, tokens=900).tasks({"one": {"acc": 0.5}}, {})
    assert "held_out" not in result(run) and result(run)["tasks_at"]["step"] == 9


def test_a_model_without_steps_writes_no_journal(notes: Callable[..., Notes], config: Callable[..., RunConfig]) -> None:
    place = notes().place
    Notes(place, config().evaluate, step=None, tokens=None).tasks({"one": {"acc": 0.5}}, {})
    assert lines(notes()) == []


def test_tasks_that_were_asked_of_one_step_stand_together(notes: Callable[..., Notes]) -> None:
    """However many of their questions: each says it itself."""
    notes().tasks({"one": {"acc": 0.5}}, {})
    notes().tasks({"two": {"acc": 0.25}}, {})
    assert set(result(notes())["tasks"]) == {"one", "two"}
    notes("evaluate.limit=2").tasks({"three": {"acc": 1.0, "questions": 2}}, {})
    assert set(result(notes())["tasks"]) == {"one", "two", "three"}
    assert result(notes())["tasks"]["three"]["questions"] == 2
    notes(step=9).tasks({"four": {"acc": 1.0}}, {})
    assert set(result(notes())["tasks"]) == {"four"}


def test_scores_of_steps_that_are_taken_again_do_not_count(notes: Callable[..., Notes]) -> None:
    notes().tasks({"one": {"acc": 0.5}}, {})
    with Journal(notes().place / "metrics.jsonl") as journal:
        journal.write("resume", step=6)
    assert lines(notes()) == []


def test_a_finished_run_keeps_the_losses_of_its_end(notes: Callable[..., Notes]) -> None:
    measured = {"web": SourceLoss(loss=2.0, bits_per_byte=1.0, tokens=10)}
    data: Any = SimpleNamespace(sources={"web": SimpleNamespace(held_out=SimpleNamespace(gzip_bits_per_byte=2.5))})
    assert not notes().held_out(measured, data), "nothing was written"
    assert result(notes())["held_out"] == "its own"
    (notes().place / "result.json").unlink()
    assert notes().held_out(measured, data)
    assert result(notes()) == {
        "status": "evaluated",
        "held_out": {"web": {"loss": 2.0, "bits_per_byte": 1.0, "tokens": 10, "gzip_bits_per_byte": 2.5}},
        "held_out_at": {"step": 7, "tokens": 700},
    }


def test_what_is_no_result_is_left_alone(notes: Callable[..., Notes]) -> None:
    (notes().place / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result.json is no result .*: move it away"):
        notes().tasks({}, {})
