"""A run goes out to Hugging Face's format and comes back, by command lines."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import Here
from tests.evaluate import local_tasks

GREEDY = ["generate.temperature=0", "generate.max_tokens=40", "generate.prompt='import '"]


@pytest.fixture(scope="module")
def out(here: Here, whole: str) -> Path:
    assert "exported step 245 of runs/whole, 205,120 parameters in fp32, to models/whole" in here.run(
        "task=export", "export.run=runs/whole", "export.out=models/whole"
    )
    return here.folder / "models/whole"


@pytest.fixture(scope="module")
def imported(here: Here, out: Path) -> str:
    return here.run("task=import", "hf.source=models/whole", "hf.out=runs/imported")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_run_export_import_and_transformers_write_the_same_text(here: Here, out: Path, imported: str) -> None:
    ours = {
        place: here.run("task=generate", f"generate.run={place}", *GREEDY)
        for place in ("runs/whole", "models/whole", "runs/imported")
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer("import ", return_tensors="pt")
    theirs = tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    assert set(ours.values()) == {theirs + "\n"}
    assert len(theirs) > 60


def test_an_export_of_an_import_of_an_export_is_the_same_to_the_byte(here: Here, out: Path, imported: str) -> None:
    here.run("task=export", "export.run=runs/imported", "export.out=models/again")
    assert contents(here.folder / "models/again") == contents(out)


def test_an_import_is_trained_on_from_with_the_line_that_it_prints(here: Here, imported: str) -> None:
    [line] = re.findall(r"^    python main.py (.*)$", imported, flags=re.MULTILINE)
    rest = [word for word in here.command() if "=" in word and not word.startswith(("model", "data.tokenizer"))]
    run = ["run_dir=runs/further", "budget.tokens=50K", "optimizer.lr=1e-6", "seed=2", "tracking=journal"]
    here.run(*shlex.split(line), *rest, *run, base=[])
    started, learnt = here.losses("runs/further"), here.losses("runs/whole")
    assert started[1] < learnt[1] - 2, "it begins where the other ended, not at random"


THEIRS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
model = {"pretrained": sys.argv[1], "dtype": "float32", "device": "cpu"}
tasks = TaskManager(include_path="tasks", include_defaults=False)
found = simple_evaluate("hf", model_args=model, tasks=sys.argv[2:], task_manager=tasks, batch_size=8, bootstrap_iters=0)
json.dump(found["results"], open("theirs.json", "w"), default=str)
"""
"""The harness' own backend on an export, as its user would call it."""


def test_the_harness_scores_a_run_and_its_export_alike(here: Here, out: Path, imported: str) -> None:
    local_tasks.write(here.folder / "tasks")
    names = ["local_sums", "local_texts", "local_words"]
    line = [f"evaluate.tasks=[{','.join(names)}]", "evaluate.tasks_dir=tasks", "evaluate.held_out=false"]
    ours = {}
    for place, written in {
        "runs/whole": "whole",
        "models/whole": "evaluate-whole-*",
        "runs/imported": "imported",
    }.items():
        here.run("task=evaluate", f"evaluate.run={place}", *line)
        [folder] = (here.folder / "runs").glob(written)
        ours[place] = json.loads((folder / "result.json").read_text())["tasks"]
    command = [sys.executable, "-W", "ignore", "-c", THEIRS, str(out), *names]
    subprocess.run(command, cwd=here.folder, check=True, capture_output=True, timeout=300)
    theirs = json.loads((here.folder / "theirs.json").read_text())
    metrics = {"local_sums": ("acc", "acc_norm"), "local_texts": ("bits_per_byte",), "local_words": ("exact_match",)}
    for name, wanted in metrics.items():
        for metric in wanted:
            scores = [one[name][metric] for one in ours.values()]
            assert scores == pytest.approx([theirs[name][f"{metric},none"]] * 3, rel=1e-6), (name, metric)
    assert ours["runs/whole"]["local_sums"]["questions"] == local_tasks.ITEMS >= 200
    assert 0.1 < ours["runs/whole"]["local_sums"]["acc"] < 0.9, "not all alike"


def test_two_ranks_at_zero_3_export_what_one_does(here: Here) -> None:
    few = ["budget.tokens=80K", "tracking=journal", "checkpoint.every=1000"]
    here.run("run_dir=runs/on-one", *few)
    here.run("run_dir=runs/on-two", "parallelism=zero3", "parallelism.device=cpu", "parallelism.gpus=2", *few)
    for name in ("on-one", "on-two"):
        here.run("task=export", f"export.run=runs/{name}", f"export.out=models/{name}")
    one, two = (load_file(here.folder / f"models/{name}/model.safetensors") for name in ("on-one", "on-two"))
    start = load_file(here.folder / "models/whole/model.safetensors")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert float((weight - two[name]).norm() / weight.norm()) < 1e-4, name
    assert float((one["lm_head.weight"] - start["lm_head.weight"]).norm()) > 1, "other weights would show"
    assert torch.isfinite(one["lm_head.weight"]).all()


def test_what_cannot_be_exported_or_imported_is_refused(here: Here, out: Path, imported: str) -> None:
    def refused(*line: str) -> str:
        return here.run(*line, expect=2)

    assert "export.out: models/whole is there already" in refused(
        "task=export", "export.run=runs/whole", "export.out=models/whole"
    )
    assert "hf.out: runs/whole is there already" in refused(
        "task=import", "hf.source=models/whole", "hf.out=runs/whole"
    )
    assert "export.at_step: runs/whole has no checkpoint of step 7; there is: 240, 245" in refused(
        "task=export", "export.run=runs/whole", "export.out=models/other", "export.at_step=7"
    )
    assert "export.out: runs/whole/config.json/out cannot be made" in refused(
        "task=export", "export.run=runs/whole", "export.out=runs/whole/config.json/out"
    )
    assert "runs/none holds no run" in refused("task=export", "export.run=runs/none", "export.out=models/other")
    assert (
        "export.run: models/whole is an export itself: import it first, task=import hf.source=models/whole"
        in refused("task=export", "export.run=models/whole", "export.out=models/other.gguf", "export.format=gguf")
    )
    assert "generate.run: models holds no run (" in refused("task=generate", "generate.run=models")
    assert "hf.source: runs/whole cannot be read as a model:" in refused(
        "task=import", "hf.source=runs/whole", "hf.out=runs/other"
    )
    here.kill_after_checkpoint("runs/not-finished", 40)
    says = refused("task=export", "export.run=runs/not-finished", "export.out=models/other")
    assert re.search(
        r"export.run: runs/not-finished has not finished: let it, or name a step, export.at_step=\d+; there is: ", says
    )
    assert not (here.folder / "models/other").exists()
    step = re.findall(r"at_step=(\d+)", says)[0]
    here.run("task=export", "export.run=runs/not-finished", "export.out=models/part", f"export.at_step={step}")
    assert f"in {step} of 245 steps" in (here.folder / "models/part/README.md").read_text()
