"""The plan of several runs: a line each, and what they take, alone and where they share trunks."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tinyllama import study
from tinyllama.config.load import as_dict, digest, run_folder
from tinyllama.config.schema import RunConfig
from tinyllama.launch.runs import DataIdentity, Frozen, write_down

BATCH = 2048
LINE = ("task=plan", "model.context=64", f"train.batch_tokens={BATCH}", "parallelism.micro_batch=16")
WSD = ("schedule=wsd", "schedule.warmup_steps=5", "schedule.decay_fraction=0.2")
RATE = ("parallelism=single", "hardware=a100", "plan.mfu=1e-6", "hardware.price_per_hour=2")
Grid = Callable[..., list[RunConfig]]


@pytest.fixture
def grid(tmp_path: Path, config: Callable[..., RunConfig]) -> Grid:
    """Runs of so many steps each."""

    def of(*line: str, steps: list[int]) -> list[RunConfig]:
        return [config(*LINE, f"runs_dir={tmp_path}", *line, f"budget.tokens={n * BATCH}") for n in steps]

    return of


def told(configs: list[RunConfig]) -> dict[str, list[str]]:
    """The table's lines by their first word, as 80 columns show them."""
    out = io.StringIO()
    study.plan(configs, console=Console(file=out, width=80, soft_wrap=True, highlight=False, markup=False))
    rows = [line.rstrip() for line in out.getvalue().splitlines() if not line.startswith(("rate", "loss", "each wr"))]
    assert max(map(len, rows)) <= 80
    lines: dict[str, list[str]] = {}
    for line in out.getvalue().splitlines():
        if words := line.split():
            lines.setdefault("written" if words[:2] == ["each", "written"] else words[0], words)
    return lines


def begun(config: RunConfig) -> None:
    run_folder(config).mkdir()
    identity = DataIdentity(folder="data", manifest_sha256="a", tokenizer_sha256="b")
    write_down(run_folder(config), Frozen(config=config, digest=digest(config), data=identity))


def test_what_trunks_save_is_taken_off_the_total(grid: Grid) -> None:
    lines = told(grid(*WSD, *RATE, steps=[100, 200]))
    tokens = 300 * BATCH
    assert lines["each"][:5] == ["each", "alone", "2", f"{tokens / 1e3:.3g}K", lines["each"][4]]
    assert lines["trunks"][:4] == ["trunks", "shared", "2", f"{(tokens - 80 * BATCH) / 1e3:.3g}K"]
    assert lines["each"][7] == "hours"
    for number in (4, 5, 6, 8):  # FLOPs, GPU-hours, hours in turn and dollars
        alone, shared = (float(lines[which][number].replace(",", "")) for which in ("each", "trunks"))
        assert shared / alone == pytest.approx(220 / 300, rel=0.02), number
    both = told(grid(*WSD, *RATE, "study.at_a_time=2", steps=[100, 150]))
    one, two = float(told(grid(*WSD, *RATE, steps=[100, 150]))["each"][6]), float(both["each"][6])
    assert two == pytest.approx(max(one / 2, one * 150 / 250), rel=0.03), "no sooner than the longest"
    assert "still" not in lines
    assert "done" not in lines["point"]


def test_nothing_is_shared_where_the_schedule_has_no_plateau(grid: Grid) -> None:
    lines = told(grid("schedule.warmup_steps=5", steps=[100, 200]))
    assert lines["all"][1:3] == ["2", f"{300 * BATCH / 1e3:.3g}K"]
    assert {"each", "trunks", "still"}.isdisjoint(lines)
    assert "written" in lines
    assert lines["rate:"][:3] == ["rate:", "not", "known"]


def test_what_is_behind_a_run_is_not_still_to_do(grid: Grid) -> None:
    configs = grid(*WSD, steps=[100, 200, 400])
    begun(configs[0])
    (run_folder(configs[0]) / "result.json").write_text(json.dumps({"status": "finished"}))
    begun(configs[2])
    (run_folder(configs[2]) / "checkpoints/step-000000200").mkdir(parents=True)
    lines = told(configs)
    # the second goes on from the first's 80 steps, the third from its own 200, as its trunk's 160 are fewer
    assert lines["still"] == ["still", "to", "do", "2", f"{(120 + 200) * BATCH / 1e3:.3g}K", lines["still"][5]]
    assert lines["trunks"][2:4] == ["3", f"{(700 - 80 - 160) * BATCH / 1e3:.3g}K"]
    assert [lines[point][-1] == "yes" for point in lines if point.startswith("tokens=")] == [True, False, False]
    again = told([replace(config, resume="never") for config in configs])
    assert "done" not in again["point"]
    assert "still" not in again
    others = told([replace(config, run_dir=str(run_folder(configs[0]))) for config in configs])
    assert [others[point][-1] == "yes" for point in others if point.startswith("tokens=")] == [True, False, False]
    assert {"each", "trunks", "still"} <= others.keys(), "other runs, of one folder"
    assert others["not"][:2] == ["not", "written"]


def test_the_same_run_on_other_hardware_is_compared_and_not_added_up(
    tmp_path: Path, config: Callable[..., RunConfig]
) -> None:
    line = (
        f"runs_dir={tmp_path}",
        "task=plan",
        "model=1.1b",
        "data=slimpajama_starcoder",
        "budget.tokens=1B",
        "parallelism=single",
    )
    lines = told([config(*line, f"hardware={name}", "parallelism.micro_batch=8") for name in ("h200", "a100_40gb")])
    assert lines["hardware=h200"][1:6] == ["1.1B", "1B", "0.9", "44.12", "GB"]
    assert lines["hardware=a100_40gb"] == ["hardware=a100_40gb", "1.1B", "1B", "0.9", "44.12", "GB", "11.58", "3.162"]
    assert lines["too"] == ["too", "much"]
    assert lines["points"][:4] == ["points", "are", "the", "same"]
    assert {"all", "each", "trunks", "still", "written"}.isdisjoint(lines)
    assert not list(tmp_path.iterdir()), "a plan of which of them"
    assert lines["rate"][:4] == ["rate", "of", "1:", "assumed:"]


def test_what_would_make_a_point_fit_is_told(config: Callable[..., RunConfig], capsys: pytest.CaptureFixture) -> None:
    line = ("task=plan", "model=1.1b", "data=slimpajama_starcoder", "parallelism=single", "hardware=a100_40gb")
    points = [config(*line, "parallelism.micro_batch=8", f"budget.tokens={tokens}") for tokens in ("1B", "2B")]
    study.plan(points, console=Console(soft_wrap=True))
    assert "tokens=1B does not fit: set parallelism.micro_batch=4" in capsys.readouterr().out.splitlines()


def test_repeats_are_told_by_the_law_that_counts_them(config: Callable[..., RunConfig]) -> None:
    line = ("task=plan", "model=60m", "data=slimpajama_starcoder", "hardware=a100", "parallelism=zero1")
    unseen, repeated = (
        told([config(*line, f"budget.tokens={tokens}", *more) for tokens in ("1B", "2B")])
        for more in ([], [f"+data.sources.{name}.unique_tokens=100M" for name in ("slimpajama", "starcoder")])
    )
    assert unseen["loss:"][2] == "Hoffmann"
    assert repeated["loss:"][2] == "Muennighoff"
    assert float(repeated["tokens=2B"][-1]) > float(unseen["tokens=2B"][-1])


def test_jobs_side_by_side_are_planned_with_their_part_of_the_cores(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    alone, _ = grid(steps=[100, 200])
    begun(replace(alone, parallelism=replace(alone.parallelism, threads=4)))
    result = {"status": "finished", "tokens_per_s": 1e4, "mfu": 0.2}
    config = as_dict(replace(alone, parallelism=replace(alone.parallelism, threads=4)))
    (run_folder(alone) / "result.json").write_text(json.dumps(result | {"config": config}))
    assert told(grid(steps=[100, 200]))["rate:"][1] == "not", "it had half of the cores"
    lines = told(grid("study.at_a_time=2", steps=[100, 200]))
    assert lines["rate:"][:3] == ["rate:", "measured", "in"]


def test_points_are_called_by_what_tells_them_apart(grid: Grid) -> None:
    lines = told([*grid("model=14m", *WSD, steps=[100]), *grid("model=300m", *WSD, steps=[250])])
    assert [line[:2] for line in lines.values() if line[0].startswith("model=")] == [
        ["model=14m", "3.15M"],  # of a small vocabulary
        ["model=300m", "245M"],
    ]
