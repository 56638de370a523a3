"""Whether it fits, the micro-batch to take, and what to set where it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.config.schema import RunConfig
from tinyllama.plan import fit as fits
from tinyllama.plan.fit import LIBRARIES_BYTES, Fit, divisors, fit, usable_bytes
from tinyllama.plan.memory import CONTEXT_BYTES, Layout, memory
from tinyllama.plan.plan import make_plan

GPU = ("task=plan", "data=slimpajama_starcoder", "budget=3t", "parallelism=single")


@pytest.fixture
def fitted(config: Callable[..., RunConfig]) -> Callable[..., Fit]:
    """Of a line on one GPU."""
    return lambda *line: make_plan(config(*GPU, *line)).fit


def test_auto_takes_the_most_that_fits(fitted: Callable[..., Fit]) -> None:
    auto = fitted("model=1.1b", "hardware=h100", "parallelism.micro_batch=auto")
    assert auto.fits
    assert auto.micro_batch == auto.largest_micro_batch
    assert auto.micro_batch in (2, 4, 8, 16, 32)
    assert not fitted("model=1.1b", "hardware=h100", f"parallelism.micro_batch={2 * auto.micro_batch}").fits
    assert fitted("model=1.1b", "hardware=h200", "parallelism.micro_batch=auto").micro_batch == 2 * auto.micro_batch


def test_auto_divides_every_stages_batch(config: Callable[..., RunConfig]) -> None:
    run = config(*GPU, "model=14m", "hardware=h200", "parallelism.micro_batch=auto")
    assert fit(run, batches=[96, 36]).micro_batch == 12
    assert fit(replace(run, parallelism=replace(run.parallelism, gpus=4)), batches=[96, 36]).micro_batch == 3


@pytest.mark.parametrize("n", [0, 1, 2, 7, 36, 48, 97, 1024])
def test_divisors_are_those_of_trying_them_all(n: int) -> None:
    assert divisors(n) == ([d for d in range(1, n + 1) if n % d == 0] or [1])


def test_auto_falls_back_to_one_where_nothing_fits(fitted: Callable[..., Fit]) -> None:
    none = fitted("model=1.1b", "hardware=h100", "hardware.memory_gb=3", "parallelism.micro_batch=auto")
    assert (none.micro_batch, none.largest_micro_batch, none.fits) == (1, 0, False)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("hardware.memory_gb=80 parallelism.micro_batch=64", "parallelism.micro_batch=16"),
        ("hardware.memory_gb=24", "parallelism.recompute=true parallelism.zero_stage=2 parallelism.micro_batch="),
        ("hardware.memory_gb=28", "parallelism.micro_batch=1"),
        (
            "hardware.memory_gb=16",
            "parallelism.recompute=true parallelism.zero_stage=2 parallelism.offload=optimizer parallelism.micro_",
        ),
        ("hardware=rtx4090", "parallelism.recompute=true parallelism.zero_stage=2 parallelism.micro_batch=2"),
        ("hardware.memory_gb=8", "parallelism.recompute=true parallelism.zero_stage=3 parallelism.gpus="),
        (
            "hardware.memory_gb=8 parallelism.zero_stage=2 parallelism.offload=optimizer",
            "parallelism.recompute=true parallelism.zero_stage=3 parallelism.gpus=",
        ),
        ("hardware.memory_gb=15 parallelism=zero1", "parallelism.recompute=true parallelism.zero_stage="),
        ("hardware.memory_gb=3", None),
    ],
)
def test_what_would_make_it_fit(config: Callable[..., RunConfig], line: str, remedy: str | None) -> None:
    run = ["model=1.1b", *GPU, *line.split()]
    found = make_plan(config(*run)).fit
    assert found.fits is False
    assert found.problem is not None
    if remedy is None:
        assert found.remedy is None
        assert found.problem.endswith("no layout would do: choose a smaller model or more memory")
        return
    assert found.remedy is not None
    assert found.remedy.startswith(remedy)
    assert found.problem.endswith(f"set {found.remedy}")
    assert make_plan(config(*run, *found.remedy.split())).fit.fits  # the remedy does what it says


def test_more_processes_are_no_remedy_on_one_machine(config: Callable[..., RunConfig]) -> None:
    found = make_plan(config("task=plan", "model=1.1b", "data=slimpajama_starcoder", "hardware.memory_gb=8")).fit
    assert (found.fits, found.remedy) == (False, None)


@pytest.mark.parametrize(
    ("line", "stages"), [("", [1, 2, 3]), ("kernels.compile=true", [1, 2]), ("parallelism.offload=optimizer", [2, 3])]
)
def test_every_choice_is_what_a_run_of_it_is_planned_to_take(
    fitted: Callable[..., Fit], line: str, stages: list[int]
) -> None:
    common = ("model=300m", "hardware.memory_gb=8", "parallelism.gpus=2", "parallelism.micro_batch=2", *line.split())
    choices = fitted(*common, "parallelism.zero_stage=2").choices
    assert [(choice.zero_stage, choice.recompute) for choice in choices] == [
        (stage, recompute) for stage in stages for recompute in (False, True)
    ]
    assert [choice.own for choice in choices] == [
        (choice.zero_stage, choice.recompute) == (2, False) for choice in choices
    ]
    for choice in choices:
        how = f"parallelism.zero_stage={choice.zero_stage}", f"parallelism.recompute={choice.recompute}"
        run = fitted(*common, *how)
        assert (choice.needed, choice.largest_micro_batch) == (run.needed, run.largest_micro_batch), how
    assert len({choice.largest_micro_batch for choice in choices}) > 1, "they differ"


def test_a_gpu_nobody_knows_is_not_judged(fitted: Callable[..., Fit]) -> None:
    unknown = fitted("hardware=cpu")
    assert {unknown.usable, unknown.fits, unknown.largest_micro_batch, unknown.remedy, unknown.problem} == {None}
    assert {choice.largest_micro_batch for choice in unknown.choices} == {None}


def test_ranks_of_one_machine_share_its_memory(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ["parallelism.gpus=2", "parallelism.micro_batch=auto"]
    monkeypatch.setattr(fits, "_CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_bytes(config()) == whole - LIBRARIES_BYTES
    assert usable_bytes(config(*two)) == whole // 2 - LIBRARIES_BYTES
    for written, usable in {"max": whole - LIBRARIES_BYTES, "2000000000": 15 * 10**8, "1": 0}.items():
        (tmp_path / "memory.max").write_text(written)
        assert usable_bytes(config()) == usable
    assert usable_bytes(config("hardware.memory_gb=2")) == 2 * usable_bytes(config(*two, "hardware.memory_gb=2"))
    assert usable_bytes(config("hardware.memory_gb=2")) == 2 * 10**9
    assert usable_bytes(config("parallelism=single", "hardware=h100")) == 80 * 10**9 - CONTEXT_BYTES
    assert usable_bytes(config("parallelism=single", "hardware.memory_gb=0.5")) == 0


def test_jobs_at_a_time_share_a_machines_memory(config: Callable[..., RunConfig]) -> None:
    line = ("hardware.memory_gb=8", "parallelism.gpus=2", "parallelism.micro_batch=1", "study.at_a_time=2")
    assert usable_bytes(config(*line)) == 4 * 10**9, "a run alone"
    point = (*line, "study.folder=runs/study-test")
    assert usable_bytes(config(*point)) == 2 * 10**9
    assert usable_bytes(config(*point, "study.launcher=slurm")) == 4 * 10**9
    assert usable_bytes(config(*point[2:], "parallelism=single", "hardware=a100")) == 79 * 10**9
    many = config("study.folder=runs/study-test", "study.at_a_time=9", "hardware.memory_gb=0.4", "task=plan")
    assert make_plan(many).fit.remedy == "study.at_a_time=5 parallelism.micro_batch=1"


def test_more_gpus_than_a_machine_has_are_more_machines(config: Callable[..., RunConfig]) -> None:
    line = ["model=1.1b", "parallelism=zero3", "parallelism.gpus=4", "train.batch_tokens=1M"]
    told = fit(config(*line, "hardware=a100", "hardware.memory_gb=6"), batches=[512])
    assert told.remedy == "parallelism.recompute=true parallelism.gpus=8 parallelism.nodes=4 parallelism.micro_batch=2"


def test_the_layout_is_the_runs(config: Callable[..., RunConfig]) -> None:
    run = config(*GPU, "model=1.1b", "train.mask_documents=true", "kernels.attention=sdpa", "parallelism.gpus=4")
    layout = Layout.of(run, micro_batch=2, accumulation=3)
    assert (layout.backend, layout.precision, layout.itemsize) == ("triton", "bf16", 2)
    assert (layout.world_size, layout.accumulates, layout.masked_sdpa) == (4, True, True)
    assert Layout.of(config(), micro_batch=1, accumulation=1).backend == "torch"
    # each part of the memory answers to what it is of
    peak = memory(run.model, layout).peak
    for smaller in ({"micro_batch": 1}, {"zero_stage": 3}, {"recompute": True}, {"masked_sdpa": False}):
        assert memory(run.model, replace(layout, **smaller)).peak < peak, smaller


def test_a_billion_parameters_train_on_24_gigabytes(fitted: Callable[..., Fit]) -> None:
    """By recomputing, or by moving the optimizer's state to the machine's memory."""
    line = ("model=1.1b", "hardware=rtx4090", "parallelism.zero_stage=2")
    assert not fitted(*line).fits
    moved = fitted(*line, "parallelism.offload=optimizer", "parallelism.micro_batch=auto")
    assert moved.fits and moved.micro_batch == 4
    assert moved.needed.optimizer == 0
    assert 27 < moved.machine / moved.needed.weights * 2 < 28, "bytes a parameter: 18, in powers of two where pinned"
    assert fitted(*line, "parallelism.offload=optimizer", "parallelism.gpus=2").machine == pytest.approx(
        moved.machine, rel=0.01
    )
    assert fitted(*line).machine == 0


def test_pinned_memory_is_allocated_in_powers_of_two(config: Callable[..., RunConfig]) -> None:
    run = config("model=1.1b", "hardware=rtx4090", "parallelism=single", "parallelism.zero_stage=2")
    layout = replace(Layout.of(run, micro_batch=1, accumulation=2), offload=True)
    assert layout.pinned
    plain = memory(run.model, replace(layout, pinned=False)).machine
    n = 1_100_048_384
    assert memory(run.model, layout).machine - plain == 2 * (2**33 - 4 * n) + (2**32 - 2 * n)


def test_what_is_compiled_is_not_told_to_shard_its_parameters(config: Callable[..., RunConfig]) -> None:
    line = [*GPU, "model=1.1b", "hardware.memory_gb=8"]
    assert "zero_stage=3" in str(fit(config(*line), batches=[512]).remedy)
    remedy = str(fit(config(*line, "kernels.compile=true"), batches=[512]).remedy)
    assert "parallelism.zero_stage=2" in remedy
    config(*line, "kernels.compile=true", *remedy.split())


def test_where_jobs_share_a_gpu_fewer_of_them_are_the_remedy(config: Callable[..., RunConfig]) -> None:
    line = [*GPU, "model=300m", "hardware.memory_gb=24", "study.at_a_time=8"]
    found = fit(config(*line, "study.per_gpu=8"), batches=[512])
    assert found.fits is False and found.remedy is not None
    remedy = found.remedy.split()
    assert remedy[0].startswith("study.per_gpu=")
    assert fit(config(*line, *remedy), batches=[512]).fits
    sharers = int(remedy[0].partition("=")[2]) + 1
    assert not fit(config(*line, f"study.per_gpu={sharers}", "parallelism.micro_batch=1"), batches=[512]).fits


def test_jobs_that_share_a_gpu_share_its_memory(config: Callable[..., RunConfig]) -> None:
    line = [*GPU, "model=60m", "hardware=h200", "parallelism.micro_batch=auto", "study.at_a_time=4"]
    alone, shared = config(*line), config(*line, "study.per_gpu=4")
    assert usable_bytes(alone) == 141 * 10**9 - CONTEXT_BYTES
    assert usable_bytes(shared) == 141 * 10**9 // 4 - CONTEXT_BYTES
    batches = [4096]
    assert fit(shared, batches=batches).micro_batch < fit(alone, batches=batches).micro_batch
    assert 4 * (fit(shared, batches=batches).needed.peak + CONTEXT_BYTES) <= 141 * 10**9
