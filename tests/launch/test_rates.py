"""Whose rate a plan goes by."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from tinyllama.config.load import as_dict, run_folder
from tinyllama.config.schema import RunConfig
from tinyllama.launch.rates import measured_rate
from tinyllama.plan.cost import Measured, OtherModel
from tinyllama.plan.count import count_flops, count_parameters

Config = Callable[..., RunConfig]
LINE = ("model=nano", "model.context=64", "train.batch_tokens=2048", "parallelism.micro_batch=16")
TWO = ("parallelism.gpus=2", "parallelism.micro_batch=2")
ELSE = {
    "another-gpu": ["hardware=h100"],
    "another-precision": ["train.precision=bf16"],
    "another-mask": ["train.mask_documents=true"],
    "other-kernels": ["kernels=torch"],
    "compiled": ["kernels.compile=true"],
    "recomputed": ["parallelism.recompute=true"],
    "offloaded": ["parallelism=zero2", "parallelism.offload=optimizer"],
    "one-rank-alone": ["parallelism.gpus=1"],
    "other-threads": ["parallelism.threads=3"],
}
"""Runs that compute otherwise."""


class Left(Protocol):
    def __call__(
        self, name: str, *line: str, age: int, status: str = "finished", speed: float | None = 100.0
    ) -> None: ...


@pytest.fixture
def left(tmp_path: Path, config: Config) -> Left:
    """Leaves the result of a run of a line behind."""

    def leave(name: str, *line: str, age: int, status: str = "finished", speed: float | None = 100.0) -> None:
        path = tmp_path / name / "result.json"
        path.parent.mkdir()
        path.write_text(
            json.dumps({"status": status, "tokens_per_s": speed, "mfu": 0.25, "config": as_dict(config(*LINE, *line))})
        )
        os.utime(path, (10**9 - age, 10**9 - age))

    return leave


def test_the_rate_is_that_of_the_newest_finished_run_of_the_model(tmp_path: Path, config: Config, left: Left) -> None:
    asked = config(*LINE, *TWO, f"runs_dir={tmp_path}", "budget.tokens=9M", "seed=3")
    assert measured_rate(asked) is None
    left("old", *TWO, age=9, speed=70.0)
    left(run_folder(asked).name, *TWO, age=1, speed=70.0)  # its own
    left("right", *TWO, "model.name=other", "model.rope_theta=5e5", age=8)
    left("no-step-left", *TWO, age=7, speed=None)
    left("unfinished", *TWO, age=6, status="failed")
    left("another-model", *TWO, "model.n_layers=3", age=3)
    for name, line in ELSE.items():
        left(name, *TWO, *line, age=3)
    for name, text in {
        "cut": '{"status": "fini',
        "strange": "[1]",
        "older": '{"status": "finished"}',
        "foreign": '{"status": "finished", "tokens_per_s": 1, "config": {"model": []}}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    found = measured_rate(asked)
    assert found == Measured(tokens_per_s=50.0, run=str(tmp_path / "right"), mfu=0.25), "100 tokens/s on two ranks"
    planned = measured_rate(replace(asked, task="plan"))
    assert planned is not None
    assert planned.tokens_per_s == 35, "what came of a run is asked by its plan, but not where it trains"
    gpus = ["parallelism=single", "hardware=a100"]
    left("one-gpu", *gpus, age=2)
    asked = config(*LINE, *gpus, "parallelism.gpus=2", f"runs_dir={tmp_path}")
    found = measured_rate(asked)
    assert found == Measured(tokens_per_s=100.0, run=str(tmp_path / "one-gpu"), mfu=0.25), "each has a GPU of its own"


def test_where_none_of_its_model_is_there_it_is_that_of_the_nearest_in_size(
    tmp_path: Path, config: Config, left: Left
) -> None:
    asked = config(*LINE, *TWO, f"runs_dir={tmp_path}", "model.n_layers=8")
    for name, line in ELSE.items():
        left(name, *TWO, *line, age=3)
    assert measured_rate(asked) is None
    for layers in (2, 7, 30):
        left(f"of-{layers}", *TWO, f"model.n_layers={layers}", age=layers)
    seven = config(*LINE, "model.n_layers=7").model
    other = OtherModel(count_parameters(seven).total, count_flops(seven).causal)
    assert measured_rate(asked) == Measured(tokens_per_s=50.0, run=str(tmp_path / "of-7"), mfu=0.25, other=other)
    left("itself", *TWO, "model.n_layers=8", age=99)
    assert measured_rate(asked) == Measured(tokens_per_s=50.0, run=str(tmp_path / "itself"), mfu=0.25)


def test_a_run_from_before_a_choice_was_there_counts(tmp_path: Path, config: Config, left: Left) -> None:
    left("early", age=1)
    result = json.loads((tmp_path / "early/result.json").read_text())
    for section, key in (("kernels", "compile"), ("parallelism", "offload"), ("study", "per_gpu")):
        del result["config"][section][key]
    (tmp_path / "early/result.json").write_text(json.dumps(result))
    asked = config(*LINE, f"runs_dir={tmp_path}")
    assert measured_rate(asked) == Measured(tokens_per_s=100.0, run=str(tmp_path / "early"), mfu=0.25)
