"""The plan of several runs: a line each, and what they take, alone and where they share trunks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tinyllama import study
from tinyllama.config.load import run_folder
from tinyllama.config.schema import RunConfig

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
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines() if not line.startswith(("rate", "how"))) <= 80
    lines: dict[str, list[str]] = {}
    for line in out.getvalue().splitlines():
        if words := line.split():
            lines.setdefault(words[0], words)
    return lines


def test_what_trunks_save_is_taken_off_the_total(grid: Grid) -> None:
    lines = told(grid(*WSD, *RATE, steps=[100, 200]))
    tokens = 300 * BATCH
    assert lines["each"][:5] == ["each", "alone", "2", f"{tokens / 1e3:.3g}K", lines["each"][4]]
    assert lines["trunks"][:4] == ["trunks", "shared", "2", f"{(tokens - 80 * BATCH) / 1e3:.3g}K"]
    assert lines["each"][7] == "hours"
    for number in (4, 5, 6, 8):  # FLOPs, GPU-hours, hours in turn and dollars
        alone, shared = (float(lines[which][number].replace(",", "")) for which in ("each", "trunks"))
        assert shared / alone == pytest.approx(220 / 300, rel=0.02), number
    assert "still" not in lines
    assert "done" not in lines["point"]


def test_nothing_is_shared_where_the_schedule_has_no_plateau(grid: Grid) -> None:
    lines = told(grid("schedule.warmup_steps=5", steps=[100, 200]))
    assert lines["all"][1:3] == ["2", f"{300 * BATCH / 1e3:.3g}K"]
    assert lines["each"][1] == "written", "not alone"
    assert {"trunks", "still"}.isdisjoint(lines)
    assert lines["how"][:4] == ["how", "long:", "not", "known"]


def test_what_is_behind_a_run_is_not_still_to_do(grid: Grid) -> None:
    configs = grid(*WSD, steps=[100, 200, 400])
    (run_folder(configs[0])).mkdir()
    (run_folder(configs[0]) / "result.json").write_text(json.dumps({"status": "finished"}))
    (run_folder(configs[2]) / "checkpoints/step-000000200").mkdir(parents=True)
    lines = told(configs)
    # the second goes on from the first's 80 steps, the third from its own 200, as its trunk's 160 are fewer
    assert lines["still"] == ["still", "to", "do", "2", f"{(120 + 200) * BATCH / 1e3:.3g}K", lines["still"][5]]
    assert lines["trunks"][2:4] == ["3", f"{(700 - 80 - 160) * BATCH / 1e3:.3g}K"]
    assert [lines[point][-1] == "yes" for point in lines if point.startswith("tokens=")] == [True, False, False]


def test_points_are_called_by_what_tells_them_apart(grid: Grid) -> None:
    lines = told([*grid("model=14m", *WSD, steps=[100]), *grid("model=300m", *WSD, steps=[250])])
    assert [line[:2] for line in lines.values() if line[0].startswith("model=")] == [
        ["model=14m", "3.15M"],  # of a small vocabulary
        ["model=300m", "245M"],
    ]
