"""The published layouts, from raw files to a staged run: prepared in parts, inspected, trained on over two stages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.data.layouts import write_slimpajama, write_starcoder

if TYPE_CHECKING:
    from .conftest import Here

SETTINGS = [
    "model=nano",
    "model.context=64",
    "model.d_model=32",
    "model.n_layers=1",
    "model.d_ff=64",
    "data=slimpajama_starcoder",
    "data.tokenizer.vocab_size=512",
    "data.tokenizer.sample_bytes=200K",
    "data.sources.starcoder.held_out=0.1",
    "budget.tokens=80K",
    "train.batch_tokens=1024",
    "train.eval_tokens=1K",
    "schedule.warmup_steps=2",
    "parallelism.micro_batch=8",
    "parallelism.threads=1",
    "generate.max_tokens=5",
    "hardware.peak_tflops=0.1",
    "tracking=journal",
    "stages=[{tokens:16K,weights:{slimpajama:1}},{ramp:8K,batch_tokens:2048}]",
]


@pytest.fixture(scope="module")
def raw(here: Here) -> list[str]:
    """The settings with the raw files' folders."""
    write_slimpajama(here.folder / "raw/slimpajama")
    write_starcoder(here.folder / "raw/starcoder")
    folders = [f"data.sources.{name}.raw=raw/{name}" for name in ("slimpajama", "starcoder")]
    return [*SETTINGS, *folders]


def test_raw_files_become_a_staged_run(here: Here, raw: list[str]) -> None:
    told = here.run("task=train", base=raw, expect=2)
    assert "is not prepared" in told and "python main.py task=prepare model=nano" in told

    told = here.run("-m", "task=prepare", "prepare.parts=2", "prepare.part=range(2)", "prepare.workers=1", base=raw)
    assert "part 0 of 2 is done; 1 of 2 units are left to others" in told
    assert re.search(r"slimpajama: 200 documents read, 70 filtered out; [\d,]+ tokens to train on", told)
    assert "data set: datasets/slimpajama_starcoder-" in told
    again = here.run("task=prepare", base=raw)
    assert "read" not in again and "data set: datasets/slimpajama_starcoder-" in again

    told = here.run("task=inspect", "inspect.samples=1", base=raw)
    assert re.search(r"slimpajama +[\d.]+% ", told)
    assert "train/chunk" in told and "-of-00004.parquet:" in told
    # of 48 steps the first 16 are of the first stage
    first, later = (here.run("task=inspect", f"inspect.at_step={step}", base=raw) for step in (15, 25))
    assert first.count("sequence ") == 16 and "starcoder" not in first
    assert later.count("sequence ") == 32 and "starcoder, epoch" in later and "slimpajama, epoch" in later
    refused = here.run("task=inspect", "inspect.at_step=99", base=raw, expect=2)
    assert refused.startswith("refused inspect.at_step: 99 is none of the run's steps, 0 to 47")

    told = here.run("run_dir=runs/staged", base=raw)
    assert "48/48" in told
    result = here.result("runs/staged")
    assert result["status"] == "finished" and result["tokens"] == 16 * 1024 + 32 * 2048
    assert set(result["held_out"]) == {"slimpajama", "starcoder"}


def test_killed_in_the_middle_of_a_ramp_it_ends_the_same(here: Here, raw: list[str]) -> None:
    # steps 16 to 19 are the ramp's
    every = [*raw, "checkpoint.every=18"]
    here.kill_after_checkpoint("runs/ramp", 18, base=every)
    here.run("run_dir=runs/ramp", base=every)
    assert here.result("runs/ramp")["resumed_at"] == 18
    assert here.final_hashes("runs/ramp") == here.final_hashes("runs/staged")


def test_a_stage_too_short_for_its_sources_is_refused_at_once(here: Here) -> None:
    line = ["stages=[{tokens:1K},{ramp:512,batch_tokens:1024}]", "model.context=256", "parallelism.micro_batch=4"]
    told = here.run("task=plan", *line, base=[], expect=2)
    assert told == (
        "refused stages: stage 2 has a ramp of 2 samples; the least for 2 sources is 4: make it longer, or 0\n"
    )
