"""What freezes a run: written whole, by one launcher, and not at all where the run is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.config.schema import RunConfig
from tinyllama.launch import runs
from tinyllama.launch.runs import DataIdentity, freeze, settled_before, thaw
from tinyllama.plan.plan import make_plan, settled

Config = Callable[..., RunConfig]
BATCH = 2048
LINE = ("model=nano", "model.context=64", f"train.batch_tokens={BATCH}", "parallelism.micro_batch=16")


@pytest.fixture
def data(tmp_path: Path) -> DataIdentity:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return DataIdentity(folder=str(folder), manifest_sha256="a", tokenizer_sha256="b")


def of(config: Config, *line: str, steps: int) -> RunConfig:
    return config(*LINE, f"budget.tokens={steps * BATCH}", *line)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(run_dir: Path, config: RunConfig, data: DataIdentity, *, writes: bool = True) -> bool:
    return freeze(run_dir, config, data, make_plan(config), writes=writes)


def test_a_run_that_has_more_behind_it_than_is_planned_is_refused_and_stays_as_it_is(
    tmp_path: Path, config: Config, data: DataIdentity
) -> None:
    run_dir = tmp_path / "run"
    assert begin(run_dir, of(config, steps=200), data)
    (run_dir / "result.json").write_text(json.dumps({"status": "finished"}))
    for name in ("step-000000100", "step-000000200", "damaged-step-000000300"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
    before = contents(run_dir)
    fewer = of(config, "resume=force", f"run_dir={run_dir}", steps=199)
    with pytest.raises(ValueError, match=r"budget: .*/run has taken 200 steps, more than 199: raise it"):
        begin(run_dir, fewer, data)
    assert contents(run_dir) == before
    assert begin(run_dir, of(config, "resume=force", f"run_dir={run_dir}", steps=201), data)
    assert not (run_dir / "result.json").exists()


def test_one_launcher_writes_and_the_others_compare(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    run_dir = tmp_path / "run"
    assert begin(run_dir, of(config, steps=200), data, writes=False)
    assert not run_dir.exists(), "the first may still come"
    begin(run_dir, of(config, steps=200), data)
    (run_dir / "result.json").write_text(json.dumps({"status": "running"}))
    (run_dir / "failure.txt").write_text("of another machine")
    before = contents(run_dir)
    assert set(before) >= {"config.json", "config.yaml", "plan.json", "tokenizer.model"}
    assert begin(run_dir, of(config, steps=200), data, writes=False)
    assert contents(run_dir) == before
    with pytest.raises(ValueError, match=r"run_dir: .*/run holds a run with another seed"):
        begin(run_dir, of(config, "seed=7", steps=200), data, writes=False)


@pytest.mark.parametrize("name", ["tokenizer.model", "config.json", "config.yaml", "plan.json"])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, config: Config, data: DataIdentity, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The disk fills up while it is written: what is there is the former file, whole."""
    run_dir = tmp_path / "run"
    begin(run_dir, of(config, steps=200), data)
    before, sync, written = (run_dir / name).read_bytes(), os.fsync, []

    def fail(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            written.append(path.name)
            if name in path.name:
                raise OSError("disk full")
        sync(descriptor)

    (Path(data.folder) / "tokenizer.model").write_bytes(b"other pieces")
    monkeypatch.setattr(os, "fsync", fail)
    forced = of(config, "resume=force", f"run_dir={run_dir}", "name=other", steps=200)
    with pytest.raises(OSError, match="disk full"):
        begin(run_dir, forced, data)
    assert any(name in one for one in written)
    assert (run_dir / name).read_bytes() == before
    assert not [path for path in run_dir.iterdir() if path.name.endswith(".tmp")]


def test_the_newest_checkpoint_says_how_many_steps_were_taken(tmp_path: Path) -> None:
    assert runs.steps_taken(tmp_path) == 0
    for name in ("step-000000040", "step-000000120", "damaged-step-000000160", ".step-000000200.partial", "step-x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert runs.steps_taken(tmp_path) == 120


def test_what_was_frozen_is_read_back(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    whole = of(config, steps=200)
    begin(tmp_path / "run", whole, data)
    assert (thaw(tmp_path / "run").config, thaw(tmp_path / "run").data) == (whole, data)
    assert runs.tokenizer(tmp_path / "run").read_bytes() == b"pieces"


def test_a_halved_micro_batch_stays_halved_on_the_same_gpus(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    def on(*line: str) -> Config:
        return of(config, "parallelism.micro_batch=auto", f"run_dir={tmp_path / 'run'}", *line, steps=200)

    assert settled_before(on()) == on()
    begin(tmp_path / "run", settled(on(), 2), data)
    assert settled_before(on()) == settled(on(), 2)
    others = "resume=never", "parallelism.gpus=2", "parallelism.recompute=true", "hardware.memory_gb=90", "seed=7"
    for other in others:
        assert settled_before(on(other)) == on(other), other
    assert settled_before(on("parallelism.micro_batch=4")) == on("parallelism.micro_batch=4")


@pytest.mark.parametrize("text", ['{"stat', "[1]", "{}"])
def test_a_broken_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/result.json is no result of a run: .* move it away"):
        runs.finished(tmp_path)


def test_the_batches_behind_a_run_cannot_be_changed(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    run_dir = tmp_path / "run"
    begin(run_dir, of(config, steps=200), data)
    state = run_dir / "checkpoints/step-000000100/state.json"
    state.parent.mkdir(parents=True)
    seen = make_plan(of(config, steps=200)).tokens_by(100)
    state.write_text(json.dumps({"state": {"meta": {"tokens": seen}}}))
    before = contents(run_dir)
    batch = make_plan(of(config, steps=200)).batch_tokens
    forced = of(config, "resume=force", f"run_dir={run_dir}", f"train.batch_tokens={2 * batch}", steps=200)
    with pytest.raises(
        ValueError, match=rf"train.batch_tokens: the 100 steps .* saw {seen:,} tokens, .* {2 * seen:,}:"
    ):
        begin(run_dir, forced, data)
    assert contents(run_dir) == before
    state.write_text("{}")
    assert begin(run_dir, forced, data), "whoever resumes finds it damaged"


def test_a_run_that_is_forced_on_says_that_it_was_changed(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    run_dir = tmp_path / "run"
    begin(run_dir, of(config, steps=200), data)
    begin(run_dir, of(config, "resume=force", f"run_dir={run_dir}", steps=200), data)
    assert not thaw(run_dir).changed, "it is the same run"
    other = replace(data, manifest_sha256="f" * 64)
    begin(run_dir, of(config, "resume=force", f"run_dir={run_dir}", steps=200), other)
    assert thaw(run_dir).changed, "the data is another"
    begin(run_dir, of(config, f"run_dir={run_dir}", steps=200), other)
    assert thaw(run_dir).changed, "and stays so"


def test_a_run_that_began_before_a_knob_was_there_is_the_same_run(
    tmp_path: Path, config: Config, data: DataIdentity
) -> None:
    run = of(config, steps=100)
    begin(tmp_path, run, data)
    whole = json.loads((tmp_path / "config.json").read_text())
    del whole["config"]["study"]["point"]
    for source in whole["config"]["data"]["sources"].values():
        del source["unique_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert thaw(tmp_path).config == run
    assert "unique_tokens" not in json.dumps(runs.essence(run)), "or its digest would be another"


def test_a_run_from_before_a_choice_was_there_is_read(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    run = of(config, steps=100)
    begin(tmp_path, run, data)
    whole = json.loads((tmp_path / "config.json").read_text())
    for section, key in (("kernels", "compile"), ("parallelism", "offload"), ("study", "per_gpu")):
        del whole["config"][section][key]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert thaw(tmp_path).config == run


def test_what_another_version_froze_is_said_to_be_that(tmp_path: Path, config: Config, data: DataIdentity) -> None:
    begin(tmp_path, of(config, steps=100), data)
    whole = json.loads((tmp_path / "config.json").read_text())
    del whole["config"]["slurm"]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(
        ValueError, match=r"was written by another version of .* \(slurm: is missing.*\): use that version"
    ):
        thaw(tmp_path)
