"""The main job: from a bare folder to a tracked result, stopped and resumed, on two machines.

One file, so that one process makes the run that the others are compared with.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyllama.data.manifest import Manifest
from tinyllama.data.shards import TokenStream
from tinyllama.tracking.folder import is_kept

if TYPE_CHECKING:
    from .conftest import Here


def test_a_run_prepares_trains_evaluates_and_tells(here: Here, whole: str) -> None:
    result = here.result("runs/whole")
    assert result["status"] == "finished"
    assert result["tokens"] == 245 * 2048
    assert (result["batch_tokens"], result["learning_rate"]) == (2048, 1e-2)
    assert result["environment"]["packages"]["deepspeed"]
    for name, source in result["held_out"].items():
        assert f"{source['loss']:.3f}" in re.search(rf"^ {name} .*$", whole, flags=re.MULTILINE)[0]  # type: ignore[index]
        manifest = Manifest.load(next((here.folder / "datasets").iterdir()))
        assert source["tokens"] == manifest.sources[name].held_out.tokens, "all held-out text is scored"
    for shown in (
        "training a tokenizer",
        "step 245/245",
        "tokens/s",
        "a sample:",
        "run folder: runs/whole",
        "mlflow ui",
    ):
        assert shown in whole
    files = {path.name for path in (here.folder / "runs/whole").iterdir()}
    assert files >= {"config.json", "config.yaml", "plan.json", "metrics.jsonl", "result.json", "curve.png"}
    assert "failure.txt" not in files


def test_it_learns(here: Here, whole: str) -> None:
    """Held-out loss ends at least a nat below what the tokens' frequencies alone would give."""
    folder = next((here.folder / "datasets").iterdir())
    manifest = Manifest.load(folder)
    for name, source in manifest.sources.items():
        streams = {
            split: TokenStream(folder, split=getattr(source, split), tokenizer=manifest.tokenizer)
            for split in ("train", "held_out")
        }
        counts = {
            split: np.bincount(stream.windows(np.array([0]), length=len(stream))[0], minlength=1024)
            for split, stream in streams.items()
        }
        # add-one smoothing, so that a token never seen in training does not cost infinity
        frequencies = (counts["train"] + 1) / (counts["train"].sum() + 1024)
        unigram = -(counts["held_out"] * np.log(frequencies)).sum() / counts["held_out"].sum()
        assert here.result("runs/whole")["held_out"][name]["loss"] < unigram - 1
        assert unigram < math.log(1024)


def test_the_same_line_again_trains_nothing(here: Here, whole: str) -> None:
    journal = here.folder / "runs/whole/metrics.jsonl"
    before = journal.read_bytes()
    again = here.run("run_dir=runs/whole")
    assert "has finished already" in again
    assert "training a tokenizer" not in again
    assert "a sample:" in again
    assert journal.read_bytes() == before


def test_mlflow_holds_the_run(here: Here, whole: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{here.folder / 'runs/mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'tinyllama'")
    [run] = client.search_runs([experiment.experiment_id], filter_string="attributes.run_name = 'whole'")
    assert run.info.status == "FINISHED"
    assert run.data.params["model.d_model"] == "64"
    assert run.data.tags["model"] == "nano"
    assert run.data.tags["budget"] == "tokens"
    history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert history == here.losses("runs/whole")
    assert run.data.metrics["tokens"] == 245 * 2048
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "plan.json", "result.json", "curve.png"}
    assert not (here.folder / "mlruns").exists()


def test_generate_continues_a_text(here: Here, whole: str) -> None:
    text = here.run("task=generate", "generate.run=runs/whole", 'generate.prompt="import "', "generate.temperature=0")
    assert text.startswith("import ")
    assert len(text.strip()) > len("import ")


def test_generate_continues_several_texts(here: Here, whole: str) -> None:
    line = ["task=generate", "generate.run=runs/whole", "generate.prompt=['import ','','日本']", "generate.samples=2"]
    text = here.run(*line, "generate.top_p=0.9", "generate.stop=[e]")
    blocks = text.split("--- ")[1:]
    heads = [f"prompt {i} of 3, sample {j} of 2" for i in (1, 2, 3) for j in (1, 2)]
    assert [block.partition("\n")[0] for block in blocks] == heads
    texts = [block.partition("\n")[2][:-1] for block in blocks]
    prompts = ["import ", "import ", "", "", "日本", "日本"]
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    assert not any("e" in text for text in texts), "none of the prompts has one either"
    assert here.run(*line, "generate.top_p=0.9", "generate.stop=[e]") == text
    long = "a\n" * 70
    refusal = here.run("task=generate", "generate.run=runs/whole", f"generate.prompt=[a,{long!r}]", expect=2)
    assert "refused generate.prompt 2 of 2: " in refusal
    assert "tokens fill the context of 64: shorten it" in refusal


def test_a_run_can_start_from_the_weights_of_another(here: Here, whole: str) -> None:
    line = ["init_from=runs/whole", "budget.tokens=50K", "optimizer.lr=1e-6", "seed=2", "tracking=journal"]
    here.run("run_dir=runs/more", *line)
    started, learnt = here.losses("runs/more"), here.losses("runs/whole")
    assert started[1] < learnt[1] - 2, "it begins where the other ended, not at random"
    refusal = here.run("run_dir=runs/other", "init_from=runs/whole", "model.n_layers=3", expect=2)
    assert "init_from: runs/whole has another model.n_layers" in refusal
    assert not (here.folder / "runs/other").exists()


def test_a_changed_run_in_a_named_folder_is_refused(here: Here, whole: str) -> None:
    refusal = here.run("run_dir=runs/whole", "optimizer.lr=2e-2", "parallelism.micro_batch=8", expect=2)
    assert "run_dir: runs/whole holds a run with another optimizer.lr: " in refusal


def test_a_run_that_has_taken_more_steps_than_are_planned_is_refused_and_stays_whole(here: Here, whole: str) -> None:
    shutil.copytree(here.folder / "runs/whole", here.folder / "runs/shrunk")
    names = ("config.json", "config.yaml", "plan.json", "result.json")
    before = [(here.folder / "runs/shrunk" / name).read_bytes() for name in names]
    refusal = here.run("run_dir=runs/shrunk", "resume=force", "budget.tokens=100K", expect=2)
    assert "budget: runs/shrunk has taken 245 steps, more than 49: raise it" in refusal
    assert [(here.folder / "runs/shrunk" / name).read_bytes() for name in names] == before


def test_the_runs_of_one_line_share_no_process_and_one_failure_stops_no_other(here: Here, whole: str) -> None:
    out = here.run("-m", "optimizer.lr=1e30,1e-3", "budget.tokens=50K", "tracking=journal", expect=1)
    assert "the weights are at fault, and there is no checkpoint left to go back to: lower optimizer.lr" in out
    runs = {path.parent.name for path in (here.folder / "runs").glob("nano-stdlib-*/result.json")}
    states = {name: here.result(f"runs/{name}")["status"] for name in runs}
    assert sorted(states.values()) == ["failed", "finished"]
    from tinyllama.tracking.journal import read

    pids = {read(Path(here.folder / "runs" / name / "metrics.jsonl"))[0]["pid"] for name in runs}
    assert len(pids) == 2


def test_killed_twice_equals_uninterrupted_bit_for_bit(here: Here, whole: str) -> None:
    here.kill_after_checkpoint("runs/killed", 40)
    here.kill_after_checkpoint("runs/killed", 120)
    assert here.result("runs/killed")["status"] == "running", "nobody was left to say otherwise"
    here.run("run_dir=runs/killed")
    assert here.result("runs/killed")["resumed_at"] >= 120
    assert here.final_hashes("runs/killed") == here.final_hashes("runs/whole")
    ours, theirs = here.losses("runs/killed"), here.losses("runs/whole")
    assert len(theirs) > 40
    assert {step: ours[step] for step in theirs} == theirs
    held_out = here.result("runs/whole")["held_out"]
    assert here.result("runs/killed")["held_out"] == held_out


def test_interrupted_says_so_and_lets_nobody_else_in(here: Here, whole: str) -> None:
    """Ctrl-C reaches the launcher and the ranks; while they run a second process is refused."""
    running = subprocess.Popen(
        here.command("run_dir=runs/interrupted"),
        cwd=here.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    here.wait_for_checkpoint("runs/interrupted", 40, running)
    refusal = here.run("run_dir=runs/interrupted", expect=2)
    assert "run_dir: another process is training in runs/interrupted" in refusal
    os.killpg(running.pid, signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130, out
    assert "stopped by Ctrl-C: the same command goes on where this one stopped" in out
    assert "Traceback" not in out
    assert here.result("runs/interrupted")["status"] == "stopped"


def test_a_seed_makes_another_run(here: Here, whole: str) -> None:
    """The comparison above can fail."""
    here.run("run_dir=runs/seeded", "seed=3", "budget.tokens=50K", "tracking=journal")
    assert here.losses("runs/seeded")[10] != here.losses("runs/whole")[10]


def test_two_machines_meet_and_train_the_same_model(here: Here, whole: str) -> None:
    """Two launchers on loopback, one rank each: the same samples in each step, so the same losses but for rounding."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = here.command(
        "run_dir=runs/nodes", "parallelism.nodes=2", f"parallelism.rendezvous=localhost:{port}", "budget.tokens=100K"
    )
    alone = here.run("run_dir=runs/alone", "budget.tokens=100K", "tracking=journal")
    both = [
        subprocess.Popen(line, cwd=here.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    while not is_kept(here.folder / "runs/nodes"):
        assert both[0].poll() is None
    # from now on: before the ranks have met, too
    other = ("parallelism.nodes=2", "parallelism.rendezvous=localhost:29377")
    for stranger in ((), other):
        refusal = here.run("run_dir=runs/nodes", "budget.tokens=100K", *stranger, expect=2)
        assert "run_dir: another process is training in runs/nodes" in refusal
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert alone.count("step 49/49") >= 1
    one, two = here.losses("runs/alone"), here.losses("runs/nodes")
    assert one.keys() == two.keys()
    # fp32 sums in another order, amplified by 49 steps of Adam; another sample anywhere moves a loss by over 1e-2
    assert all(abs(two[step] - loss) < 2e-3 for step, loss in one.items())
    measured = here.result("runs/nodes")["held_out"]
    for name, source in here.result("runs/alone")["held_out"].items():
        assert measured[name]["tokens"] == source["tokens"]
        assert abs(measured[name]["loss"] - source["loss"]) < 2e-3
