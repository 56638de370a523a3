"""Losses and gradients that are refused in whole runs: data that is noise, a rank whose gradient is no number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.e2e.test_faults import SHORT, TWO
from tinyllama.data.loader import Loader, window_start
from tinyllama.data.manifest import Manifest
from tinyllama.engine.checkpoint import found, sha256_of
from tinyllama.launch.runs import thaw
from tinyllama.plan.plan import make_plan
from tinyllama.tasks import mixture_stages, sizes
from tinyllama.tracking.journal import read

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def two(here: Here) -> str:
    """A run of two ranks to which nothing happens."""
    here.run("run_dir=runs/calm", *TWO)
    return "runs/calm"


def poison(run_dir: Path, data: Path, steps: list[int]) -> None:
    """Write noise over the training tokens of these steps, and the new hashes into the manifest."""
    frozen = thaw(run_dir)
    manifest, context = Manifest.load(data), frozen.config.model.context
    planned = make_plan(frozen.config, measured_tokens=sizes(manifest))
    stages = mixture_stages(planned)
    loader = Loader(manifest, data, stages=stages, unique_tokens={}, context=context, seed=frozen.config.seed)
    noise = np.random.default_rng(0)
    for step in steps:
        where = loader.mixture.locate(planned.sequences_of(step))
        for source, window in zip(where.source.tolist(), where.window.tolist(), strict=True):
            split = manifest.sources[loader.mixture.names[source]].train
            [shard] = split.shards
            tokens = np.memmap(data / shard.file, dtype=manifest.tokenizer.dtype, mode="r+")
            first = window_start(window, tokens=split.tokens, context=context)
            tokens[first : first + context + 1] = noise.integers(3, 1024, context + 1)
            tokens.flush()
    raw = (data / "manifest.json").read_text()
    for name in manifest.sources:
        [shard] = manifest.sources[name].train.shards
        raw = raw.replace(shard.sha256, sha256_of(data / shard.file))
    (data / "manifest.json").write_text(raw)


@pytest.fixture
def poisoned(here: Here, two: str) -> Iterator[str]:
    """Data in which the samples of steps 50, 70 and 71 are noise."""
    original = next((here.folder / "datasets").iterdir())
    data = here.folder / "poisoned" / original.name
    shutil.copytree(original, data)
    poison(here.folder / two, data, [50, 70, 71])
    yield "data_dir=poisoned"
    shutil.rmtree(data)


def test_poisoned_batches_are_left_out_and_the_run_can_be_replayed(here: Here, poisoned: str) -> None:
    """One is skipped; after two in a row the weights are suspected: back to the checkpoint, and past all since."""
    line = [*SHORT, poisoned, "spikes.window=20", "spikes.threshold=8", "train.log_every=1"]
    here.run("run_dir=runs/poisoned", *line)
    lines = read(here.folder / "runs/poisoned/metrics.jsonl")
    told = [
        (one["kind"], one["step"], one["samples"], one["to"]) for one in lines if one["kind"] in ("skip", "rollback")
    ]
    batch = 32
    # after the first skip all later samples stand one batch earlier
    assert told == [
        ("skip", 50, [[50 * batch, 51 * batch]], None),
        ("skip", 69, [[70 * batch, 71 * batch]], None),
        ("rollback", 69, [[61 * batch, 72 * batch]], 60),
    ]
    skipped = here.result("runs/poisoned")["skipped"]
    assert skipped == [[50 * batch, 51 * batch], [61 * batch, 72 * batch]]
    losses = here.losses("runs/poisoned")
    assert list(losses) == list(range(1, 99)), "it takes as many steps as were planned"
    assert max(abs(losses[step + 1] - losses[step]) for step in range(30, 98)) < 1

    replay = f"spikes.skip={json.dumps(skipped)}".replace(" ", "")
    here.run("run_dir=runs/replayed", *line, replay)
    assert here.final_hashes("runs/replayed") == here.final_hashes("runs/poisoned")
    assert here.losses("runs/replayed") == losses

    # the journal is lost after the last checkpoint but one: what was left out is in the checkpoint, too
    bare = here.folder / "runs/bare"
    shutil.copytree(
        here.folder / "runs/poisoned", bare, ignore=lambda *_: {"metrics.jsonl", "result.json", "curve.png"}
    )
    shutil.rmtree(found(bare / "checkpoints")[-1])
    here.run("run_dir=runs/bare", *line)
    assert here.result("runs/bare")["resumed_at"] == 80
    assert here.result("runs/bare")["skipped"] == skipped
    assert here.final_hashes("runs/bare") == here.final_hashes("runs/poisoned")

    refusal = here.run("run_dir=runs/bound", *line, "spikes.max_skips=0", expect=1)
    assert "spikes.max_skips=0" in refusal
    assert "task=inspect inspect.at_step=50" in refusal


def test_one_gradient_of_one_rank_that_is_no_number_is_refused_by_both(here: Here, two: str) -> None:
    """In a whole run, whose samples of that step are then left out: it is the run that left them out from the start."""
    spoilt, folder = here.folder / "runs/spoilt", here.folder / two
    shutil.copytree(folder, spoilt, ignore=lambda *_: {"checkpoints", "metrics.jsonl", "result.json"})
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    done = subprocess.run(
        [*ranks, "--rdzv-endpoint=localhost:0", Path(__file__).with_name("nan_on_rank_1.py"), "runs/spoilt", "30"],
        cwd=here.folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    [skip] = [line for line in read(spoilt / "metrics.jsonl") if line["kind"] in ("skip", "rollback")]
    batch = 32
    assert (skip["kind"], skip["step"], skip["samples"]) == ("skip", 30, [[30 * batch, 31 * batch]])
    assert skip["loss"] < 8, "the losses were all finite"
    assert skip["reason"]["grad_norm"] == "inf", "what DeepSpeed makes of it"
    here.run("run_dir=runs/unspoilt", *TWO, f"spikes.skip=[[{30 * batch},{31 * batch}]]")
    assert here.final_hashes("runs/unspoilt") == here.final_hashes("runs/spoilt") != here.final_hashes(two)
