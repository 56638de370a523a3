"""Tasks that a run is asked while it trains and after it, and the held-out text it is measured on again."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import TINY, Here
from tests.evaluate import local_tasks
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.tracking.folder import alone
from tinyllama.tracking.journal import read

TASKS = ("evaluate.tasks_dir=tasks", "evaluate.limit=12")
BOTH = "evaluate.tasks=[local_sums,local_missing]"


@pytest.fixture(scope="module", autouse=True)
def folder(here: Here) -> Path:
    return local_tasks.broken(here.folder / "tasks")


@pytest.fixture(scope="module")
def output(here: Here) -> str:
    """Of the run that `whole` is, but that it is asked tasks, one of which fails, at steps 100, 200 and the last."""
    return here.run("run_dir=runs/examined", *TASKS, BOTH, "evaluate.every=100")


def told(here: Here, run_dir: str) -> list[dict[str, Any]]:
    return [record for record in read(here.folder / run_dir / "metrics.jsonl") if record["kind"] == "tasks"]


def metrics(here: Here, name: str) -> dict[str, dict[int, float]]:
    """What MLflow has of the tasks of a run of this name, of which there has to be one."""
    database = sqlite3.connect(here.folder / "runs" / "mlflow.db")
    [[run]] = database.execute("select run_uuid from runs where name = ?", [name]).fetchall()
    rows = database.execute("select key, step, value from metrics where run_uuid = ? and key like 'tasks/%'", [run])
    found: dict[str, dict[int, float]] = {}
    for key, step, value in rows:
        assert step not in found.setdefault(key, {}), "twice"
        found[key][step] = value
    return found


def test_a_run_that_is_asked_is_the_run_that_is_not(here: Here, whole: str, output: str) -> None:
    assert here.final_hashes("runs/examined") == here.final_hashes("runs/whole")
    assert "local_sums" in output and "local_sums" not in whole


def test_its_scores_are_everywhere(here: Here, output: str) -> None:
    lines, result = told(here, "runs/examined"), here.result("runs/examined")
    assert [line["step"] for line in lines] == [100, 200, 245]
    assert [line["tokens"] for line in lines] == [204_800, 409_600, 501_760]
    assert result["status"] == "finished"
    assert result["tasks"]["local_sums"]["questions"] == 12
    assert result["tasks"]["local_sums"]["acc_norm"] == lines[-1]["scores"]["local_sums-limit12/acc_norm"]
    assert result["tasks_at"]["step"] == 245
    series = metrics(here, "examined")["tasks/local_sums-limit12/acc_norm"]
    assert series == {line["step"]: line["scores"]["local_sums-limit12/acc_norm"] for line in lines}


def test_a_task_that_fails_is_told_and_stops_nothing(here: Here, output: str) -> None:
    assert output.count("warning: step 200: local_missing could not be asked: FileNotFoundError") == 1
    for line in told(here, "runs/examined"):
        assert line["reason"]["local_missing-limit12"].startswith("FileNotFoundError")
    assert set(here.result("runs/examined")["tasks_at"]["failed"]) == {"local_missing"}


def test_it_is_evaluated_again_as_it_was(here: Here, output: str) -> None:
    """The same scores and losses, on one process without DeepSpeed; more tasks beside them, twice."""
    before = here.result("runs/examined")
    line = ("task=evaluate", "evaluate.run=runs/examined", *TASKS, "evaluate.tasks=[local_sums,local_words]")
    texts = [here.run(*line) for _ in range(2)]
    after = here.result("runs/examined")
    assert after["tasks"]["local_sums"] == before["tasks"]["local_sums"]
    assert after["tasks"]["local_words"]["questions"] == 12
    assert {key: after[key] for key in before if not key.startswith("tasks")} == {
        key: before[key] for key in before if not key.startswith("tasks")
    }
    for name, loss in before["held_out"].items():
        row = [f"{loss['loss']:.3f}", f"{loss['bits_per_byte']:.3f}", f"{loss['tokens']:,}"]
        assert [name, *row] in [printed.split() for printed in texts[0].splitlines()]
    assert [line["step"] for line in told(here, "runs/examined")] == [100, 200, 245, 245]
    assert all("result.json keeps the held-out losses of the run's end" in text for text in texts)
    assert "2 of" in texts[0] and "0 of" in texts[1], "numbers that MLflow lacked"
    assert metrics(here, "examined")["tasks/local_words-limit12/exact_match"].keys() == {245}


def test_what_fails_is_a_refusal_once_the_rest_is_written(here: Here, output: str) -> None:
    text = here.run("task=evaluate", "evaluate.run=runs/examined", *TASKS, "evaluate.tasks=[local_columns]", expect=2)
    assert "refused evaluate.tasks: local_columns: UndefinedError" in text
    assert "bits per byte" in text
    assert "local_sums" in here.result("runs/examined")["tasks"]


@pytest.fixture(scope="module")
def places(here: Here, output: str) -> tuple[str, str]:
    """An export of the run, and an import of that."""
    here.run("task=export", "export.run=runs/examined", "export.out=models/asked")
    here.run("task=import", "hf.source=models/asked", "hf.out=runs/adopted")
    return "models/asked", "runs/adopted"


def test_an_export_and_an_import_are_measured_as_the_run_is(here: Here, places: tuple[str, str]) -> None:
    """On the embedded text in the model's own tokenizer, without a word of it on the command line."""
    run = here.result("runs/examined")
    for place in places:
        here.run("task=evaluate", f"evaluate.run={place}", *TASKS, "evaluate.tasks=[local_sums]")
    [beside] = here.folder.glob("runs/evaluate-asked-*")
    exported, imported = here.result(str(beside)), here.result("runs/adopted")
    assert exported["model"] == str((here.folder / "models/asked").resolve())
    assert imported["status"] == "imported"
    for result in (exported, imported):
        assert result["held_out"].keys() == run["held_out"].keys()
        for name, source in run["held_out"].items():
            assert result["held_out"][name] == pytest.approx(source, rel=1e-5)
        assert result["tasks"]["local_sums"] == run["tasks"]["local_sums"]
    assert not (beside / "metrics.jsonl").exists() and not (here.folder / "runs/adopted/metrics.jsonl").exists()
    here.run("task=sync")


def test_what_an_export_cannot_be_measured_on_is_refused(here: Here, places: tuple[str, str]) -> None:
    def refused(*line: str) -> str:
        return here.run("task=evaluate", "evaluate.run=models/asked", *line, expect=2)

    journal = (here.folder / "runs/examined/metrics.jsonl").read_bytes()
    assert "refused run_dir: runs/examined is the folder of another run than models/asked" in refused(
        "run_dir=runs/examined"
    )
    assert (here.folder / "runs/examined/metrics.jsonl").read_bytes() == journal
    text = refused("data=slimpajama_starcoder")
    assert "refused data: data set slimpajama_starcoder is not prepared" in text
    assert "data.tokenizer.model=models/asked/tokenizer.model" in text
    train_tokenizer([Path(__file__).read_text()], vocab_size=512, path=here.folder / "other.model")
    text = refused("data.tokenizer.model=other.model")
    assert "data.tokenizer.model=other.model is another tokenizer" in text
    assert "leave data.tokenizer.model out, or set evaluate.held_out=false" in text


def test_a_run_that_is_in_training_is_refused(here: Here, output: str) -> None:
    with alone(here.folder / "runs/examined"):
        text = here.run("task=evaluate", "evaluate.run=runs/examined", expect=2)
    assert "refused evaluate.run: runs/examined is in training: let it end" in text


@pytest.mark.parametrize("task", ["task=train", "task=evaluate"])
def test_names_nobody_has_are_refused_first(here: Here, task: str) -> None:
    text = here.run(
        task, "run_dir=runs/never", "evaluate.run=runs/never", *TASKS, "evaluate.tasks=[local_sum]", expect=2
    )
    assert "refused evaluate.tasks: local_sum is no task of the harness nor of tasks; did you mean local_sums" in text
    text = here.run(task, "run_dir=runs/never", "evaluate.run=runs/never", "evaluate.tasks_dir=nowhere", expect=2)
    assert "refused evaluate.tasks_dir: nowhere is no folder" in text
    assert not (here.folder / "runs" / "never").exists()


def test_two_ranks_answer_together(here: Here) -> None:
    """At stage 3, where no rank has a whole weight."""
    base = [*TINY, "parallelism.gpus=2", "parallelism.micro_batch=8", "budget.tokens=40K", "schedule.warmup_steps=5"]
    layout = ("parallelism.zero_stage=3", "train.eval_every=10")
    tasks = (*TASKS, "evaluate.tasks=[local_sums,local_words,local_missing]", "evaluate.every=10")
    here.run("run_dir=runs/two", *layout, *tasks, base=base)
    here.run("run_dir=runs/plain", *layout, base=base)
    assert here.losses("runs/two") == here.losses("runs/plain")
    assert [line["step"] for line in told(here, "runs/two")] == [10, 20]
    scores = here.result("runs/two")["tasks"]
    line = ("task=evaluate", "evaluate.run=runs/two", *TASKS, "evaluate.tasks=[local_sums,local_words]")
    here.run(*line, "evaluate.held_out=false")
    assert here.result("runs/two")["tasks"] == scores, "one process scores alike"


@pytest.mark.faults
def test_a_request_to_stop_is_heard_while_tasks_are_asked(here: Here) -> None:
    """On both ranks, in a long evaluation; the same command then goes on from there."""
    layout = ("parallelism.gpus=2", "parallelism.micro_batch=8")
    line = ("run_dir=runs/stopped", "budget.tokens=40K", "schedule.warmup_steps=5", *layout)
    tasks = ("evaluate.tasks_dir=tasks", "evaluate.tasks=[local_sums]", "evaluate.every=5")
    running = subprocess.Popen(
        here.command(*line, *tasks, "evaluate.batch=1"),
        cwd=here.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert running.stdout is not None
    assert any("step 5: asking local_sums" in said for said in running.stdout)
    asked = time.monotonic()
    running.send_signal(signal.SIGTERM)
    rest = running.communicate(timeout=60)[0]
    assert running.returncode == 75, rest
    assert time.monotonic() - asked < 20
    assert told(here, "runs/stopped") == []
    assert here.result("runs/stopped")["status"] == "stopped"
    here.run(*line, *tasks, "evaluate.limit=4")
    assert [line["step"] for line in told(here, "runs/stopped")] == [10, 15, 20]
