"""Who has trained a run's steps before its decay, and what sharing them saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama.config.schema import RunConfig
from tinyllama.engine.checkpoint import sha256_of, write_state
from tinyllama.launch import runs, trunk
from tinyllama.launch.runs import DataIdentity
from tinyllama.launch.trunk import Branch
from tinyllama.plan.plan import Plan, make_plan

Config = Callable[..., RunConfig]
BATCH = 2048
WSD = ["model=nano", "data=stdlib", f"train.batch_tokens={BATCH}", "schedule=wsd", "schedule.warmup_steps=5"]


@pytest.fixture
def data(tmp_path: Path) -> DataIdentity:
    return DataIdentity(folder=str(tmp_path), manifest_sha256="a" * 64, tokenizer_sha256="b" * 64)


@pytest.fixture
def of(config: Config, tmp_path: Path) -> Config:
    def made(*line: str, steps: int = 100) -> RunConfig:
        return config(*WSD, f"runs_dir={tmp_path / 'runs'}", f"budget.tokens={steps * BATCH}", *line)

    return made


def plans(configs: list[RunConfig]) -> list[Plan]:
    return [make_plan(config) for config in configs]


def trained(run: RunConfig, data: DataIdentity, *, steps: list[int], changed: bool = False, data_of: str = "a") -> Path:
    """A run's folder with checkpoints after these steps, as training leaves it."""
    folder = Path(run.runs_dir) / f"of-{run.budget.tokens}-{run.seed}-{len(list(Path(run.runs_dir).glob('*')))}"
    plan = make_plan(run)
    (folder / "checkpoints").mkdir(parents=True)
    whole = {"digest": "x", "changed": changed, "data": {"manifest_sha256": data_of * 64}, "config": as_plain(run)}
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "plan.json").write_text(json.dumps(plan.as_dict()))
    lines = [{"kind": "start", "step": 0, "time": 1.0}]
    for step in steps:
        place = folder / "checkpoints" / f"step-{step:09d}"
        place.mkdir()
        weights = place / "weights-0.safetensors"
        weights.write_bytes(f"weights of {step}".encode())
        meta = {"tokens": plan.tokens_by(step)}
        write_state(place, step=step, meta=meta, files={weights.name: sha256_of(weights)})
        lines.append({"kind": "train", "step": step, "time": 2.0, "tokens": plan.tokens_by(step), "loss": 1 / step})
    lines.append({"kind": "end", "time": 3.0, "status": "FINISHED"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def as_plain(run: RunConfig) -> dict[str, object]:
    from tinyllama.config.load import as_dict

    return as_dict(run)


def adopted(run: RunConfig, data: DataIdentity) -> Branch | None:
    return trunk.adopt(run, make_plan(run), run_dir=Path(run.runs_dir) / "ours", data=data)


def test_points_that_differ_in_budget_alone_are_one_job_the_shortest_first(of: Config) -> None:
    configs = [of(steps=400), of(steps=100), of("seed=2", steps=100), of("schedule=cosine"), of(steps=200)]
    configs += [of("schedule=cosine", steps=200), of("optimizer.lr=1e-3", steps=200)]
    assert trunk.jobs_of(configs, plans(configs)) == [[1, 4, 0], [2], [3], [5], [6]]
    alone = [of("study.share_trunks=false", steps=steps) for steps in (100, 200)]
    assert trunk.spared_tokens(alone, plans(alone)) == [0, 0]
    assert trunk.jobs_of(alone, plans(alone)) == [[0], [1]]


def test_the_shape_of_the_decay_is_no_part_of_the_trunk(of: Config) -> None:
    configs = [of(steps=100), of("schedule.decay_fraction=0.1", steps=100), of("schedule.min_ratio=0", steps=100)]
    assert trunk.jobs_of(configs, plans(configs)) == [[0, 2, 1]], "by where they branch off"
    assert trunk.spared_tokens(configs, plans(configs)) == [0, 80 * BATCH, 80 * BATCH]
    others = [of(), of("schedule.warmup_steps=6"), of("model.n_layers=2"), of("train.batch_tokens=4096")]
    assert len(trunk.jobs_of(others, plans(others))) == 4


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_k_budgets_cost_the_longest_trunk_and_the_decays(of: Config, fraction: float) -> None:
    steps = [50, 100, 200, 400, 800, 1600]
    configs = [of(f"schedule.decay_fraction={fraction}", steps=count) for count in reversed(steps)]
    planned = plans(configs)
    left = sum(plan.tokens for plan in planned) - sum(trunk.spared_tokens(configs, planned))
    assert left == BATCH * ((1 - fraction) * max(steps) + fraction * sum(steps))


def test_the_longest_trunk_that_both_come_to_is_taken(of: Config, data: DataIdentity) -> None:
    trained(of(steps=50), data, steps=[40, 50])
    long = trained(of(steps=200), data, steps=[60, 100, 160, 200])
    trained(of("seed=2", steps=100), data, steps=[80])
    assert adopted(of(steps=150), data) == Branch(run=str(long), step=100, tokens=100 * BATCH)
    ours = Path(of().runs_dir) / "ours"
    assert runs.checkpoints(ours) == [(100, ours / "checkpoints/step-000000100")]
    weights = "checkpoints/step-000000100/weights-0.safetensors"
    assert (ours / weights).read_bytes() == b"weights of 100"
    assert (ours / weights).stat().st_ino == (long / weights).stat().st_ino, "no second copy of it"
    told = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in told] == [("start", 0), ("train", 60), ("train", 100)]
    assert trunk.branch_of(ours) == Branch(run=str(long), step=100, tokens=100 * BATCH)


def test_what_comes_after_the_others_decay_began_is_not_taken(of: Config, data: DataIdentity) -> None:
    trained(of(steps=100), data, steps=[60, 80, 90, 100])
    branch = adopted(of(steps=1000), data)
    assert branch is not None
    assert branch.step == 80


@pytest.mark.parametrize(
    "line",
    [
        ["seed=2"],
        ["optimizer.lr=1e-4"],
        ["schedule.warmup_steps=6"],
        ["schedule=cosine"],
        ["resume=never"],
        ["study.share_trunks=false"],
        ["train.precision=bf16"],
        ["spikes.threshold=5"],
        ["init_from=runs/other"],
    ],
)
def test_another_run_takes_nothing(of: Config, data: DataIdentity, line: list[str]) -> None:
    trained(of(steps=200), data, steps=[100])
    assert adopted(of(*line, steps=400), data) is None
    assert not (Path(of().runs_dir) / "ours").exists()


def test_a_changed_run_and_other_data_are_no_trunk(of: Config, data: DataIdentity) -> None:
    trained(of(steps=200), data, steps=[100], changed=True)
    trained(of(steps=200), data, steps=[100], data_of="c")
    assert adopted(of(steps=400), data) is None


def test_one_that_begins_with_anothers_weights_is_no_trunk(of: Config, data: DataIdentity) -> None:
    """The folder may hold other weights by now."""
    trained(of("init_from=runs/base", steps=200), data, steps=[100])
    assert adopted(of("init_from=runs/base", steps=400), data) is None


@pytest.mark.parametrize("name", ["weights-0.safetensors", "state.json"])
def test_a_damaged_trunk_is_passed_over(of: Config, data: DataIdentity, name: str) -> None:
    longest = trained(of(steps=200), data, steps=[100, 160])
    shorter = trained(of(steps=100), data, steps=[80])
    for step, expected in ((160, str(longest)), (100, str(shorter)), (80, None)):
        folder = shorter if step == 80 else longest
        file = folder / f"checkpoints/step-{step:09d}" / name
        file.write_bytes(file.read_bytes()[:-3] + b"???")
        branch = adopted(of(steps=400), data)
        assert (branch and branch.run) == expected
        shutil.rmtree(Path(of().runs_dir) / "ours", ignore_errors=True)


def test_a_journal_that_cannot_be_read_is_passed_over(of: Config, data: DataIdentity) -> None:
    folder = trained(of(steps=200), data, steps=[100])
    (folder / "metrics.jsonl").write_text("no JSON\n")
    assert adopted(of(steps=400), data) is None


def test_a_run_that_has_begun_goes_its_own_way(of: Config, data: DataIdentity) -> None:
    trained(of(steps=200), data, steps=[100])
    (Path(of().runs_dir) / "ours/checkpoints/step-000000020").mkdir(parents=True)
    assert adopted(of(steps=400), data) is None


def test_what_was_cut_short_is_done_again(of: Config, data: DataIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(of(steps=200), data, steps=[100])

    def cut(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(trunk, "write_json", cut)
        with pytest.raises(OSError, match="killed"):
            adopted(of(steps=400), data)
    ours = Path(of().runs_dir) / "ours"
    assert runs.checkpoints(ours) == []
    branch = adopted(of(steps=400), data)
    assert branch is not None
    assert branch.step == 100
    assert not list((ours / "checkpoints").glob(".*"))
