"""Time, money and disk, against TinyLlama's own figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tinyllama.config.schema import RunConfig
from tinyllama.engine import room
from tinyllama.plan.cost import MFU_CONVENTION, Measured, OtherModel, mfu
from tinyllama.plan.count import count_flops, count_parameters
from tinyllama.plan.plan import make_plan

V1 = ("experiment=tinyllama_v1", "task=plan")


def test_the_papers_hours_come_out(config: Callable[..., RunConfig]) -> None:
    whole = make_plan(config(*V1)).cost
    assert whole is not None
    assert f"{whole.hours / 24:.1f}" == "90.4"  # "90 days on 16 A100s"
    short = make_plan(config(*V1, "budget.tokens=300B")).cost
    assert short is not None
    assert short.gpu_hours == pytest.approx(3456, rel=0.01)
    assert short.hours == short.gpu_hours / 16
    assert (short.dollars, short.kwh) == pytest.approx((short.gpu_hours * 1.8, short.gpu_hours * 0.4))


def test_mfu_names_its_convention(config: Callable[..., RunConfig]) -> None:
    flops = count_flops(config(*V1).model)
    assert flops.conventions[MFU_CONVENTION] == flops.causal
    assert f"{mfu(24_000, flops_per_token=flops.causal, peak_flops=312e12):.2%}" == "52.01%"


def test_what_was_measured_comes_before_what_is_assumed(config: Callable[..., RunConfig]) -> None:
    measured = Measured(tokens_per_s=20_000.0, run="runs/earlier", mfu=0.1)
    rate = make_plan(config(*V1), measured_rate=measured).rate
    assert rate is not None
    assert (rate.tokens_per_s, rate.source) == (20_000, "measured in runs/earlier")
    assert rate.mfu is not None
    assert f"{rate.mfu:.2%}" == "43.34%"
    asked = make_plan(config(*V1, "plan.mfu=0.6"), measured_rate=measured).rate
    assert asked is not None
    assert (asked.mfu, asked.source) == (0.6, "assumed: plan.mfu")
    assert asked.tokens_per_s * count_flops(config(*V1).model).causal == pytest.approx(0.6 * 312e12)


def test_what_gpus_do_in_bf16_is_assumed_of_nothing_else(config: Callable[..., RunConfig]) -> None:
    assert make_plan(config(*V1, "train.precision=fp32")).rate is None
    on_the_processor = make_plan(config("hardware=a100"))
    assert on_the_processor.rate is None
    assert on_the_processor.warnings[-1].startswith("hardware=a100 is a GPU, and parallelism.device=cpu trains on the")
    told = make_plan(config("hardware.peak_tflops=0.1", "plan.mfu=0.5")).rate
    assert told is not None
    assert (told.mfu, told.source) == (0.5, "assumed: plan.mfu"), "whoever says so knows"
    earlier = Measured(tokens_per_s=1000.0, run="runs/earlier", mfu=0.1)
    unknown = make_plan(config("plan.mfu=0.5"), measured_rate=earlier)
    assert unknown.rate is not None
    assert unknown.rate.source == "measured in runs/earlier"
    assert "plan.mfu=0.5 is of a peak that is not known: set hardware.peak_tflops for it to count" in unknown.warnings


def test_nothing_is_made_up_where_nothing_is_known(config: Callable[..., RunConfig]) -> None:
    plan = make_plan(config())
    assert (plan.rate, plan.cost) == (None, None)
    here = make_plan(config(), measured_rate=Measured(tokens_per_s=1000.0, run="runs/earlier", mfu=0.3))
    assert here.rate is not None
    assert here.cost is not None
    assert here.rate.mfu == 0.3, "of the peak that the run measured"
    assert {here.cost.dollars, here.cost.kwh} == {None}
    assert here.cost.hours * 3600 == here.tokens / 1000


def test_a_rate_of_large_models_is_said_to_be_one(config: Callable[..., RunConfig]) -> None:
    for model, says_so in (("14m", True), ("300m", True), ("1.1b", False)):
        rate = make_plan(config(*V1, f"model={model}")).rate
        assert rate is not None
        assert rate.source.endswith("; models as small as this reach less") == says_so


def test_where_nothing_else_is_known_another_model_says_how_fast_the_machine_is(
    config: Callable[..., RunConfig],
) -> None:
    flops, size = count_flops(config().model).causal, count_parameters(config().model).total
    other = OtherModel(parameters=4 * size, flops_per_token=2 * flops)
    twice = Measured(tokens_per_s=1000.0, run="runs/nano", mfu=0.3, other=other)
    rate = make_plan(config(), measured_rate=twice).rate
    assert rate is not None
    assert (rate.tokens_per_s, rate.mfu) == (2000, 0.3)
    assert rate.source == "assumed: the FLOPs a second of a model 4 times larger, measured in runs/nano"
    smaller = replace(twice, other=OtherModel(parameters=size // 23_000, flops_per_token=flops))
    rate = make_plan(config(), measured_rate=smaller).rate
    assert rate is not None
    assert " of a model 2.3" in rate.source
    assert " times smaller, measured" in rate.source
    known = make_plan(config(*V1), measured_rate=twice).rate
    assert known is not None
    assert known.source.startswith("assumed: TinyLlama 1.1B on A100s"), "a known GPU's rate is of large models"
    set_by_hand = make_plan(config(*V1, "plan.mfu=0.6"), measured_rate=twice).rate
    assert set_by_hand is not None
    assert set_by_hand.source == "assumed: plan.mfu"


def test_jobs_that_share_a_gpu_share_its_hours(config: Callable[..., RunConfig]) -> None:
    line = ("task=plan", "model=14m", "data=slimpajama_starcoder", "budget.tokens=1B", "parallelism=single")
    shared = (*line, "hardware=a100", "study.at_a_time=4", "study.per_gpu=4")
    alone, assumed = make_plan(config(*line, "hardware=a100")), make_plan(config(*shared))
    assert alone.cost is not None
    assert assumed.cost is not None
    assert assumed.cost.hours == pytest.approx(4 * alone.cost.hours), "each has a quarter of it"
    for part in ("gpu_hours", "dollars", "kwh"):
        assert getattr(assumed.cost, part) == pytest.approx(getattr(alone.cost, part)), part
    measured = Measured(tokens_per_s=1e6, run="runs/earlier", mfu=None)
    known = make_plan(config(*shared), measured_rate=measured)
    assert known.cost is not None
    assert known.rate is not None
    assert known.rate.tokens_per_s == 1e6, "a job's own, beside as many others"
    assert known.cost.gpu_hours == known.cost.hours / 4 == pytest.approx(known.tokens / 4e6 / 3600)


def test_disk(config: Callable[..., RunConfig]) -> None:
    plan = make_plan(config(*V1))
    assert plan.disk.checkpoint == room.BYTES * plan.parameters.total == 12 * 1_100_048_384
    # two newest, one being written, and those of every 50,000 of 1,430,512 steps
    assert plan.disk.checkpoints == (2 + 1 + 28) * plan.disk.checkpoint
    assert plan.disk.data == 2 * 950 * 10**9
    short = make_plan(config("checkpoint.every=100", "checkpoint.keep=8", "budget.tokens=1.5M"))
    assert short.steps == 184
    assert short.disk.checkpoints == 2 * short.disk.checkpoint, "after 100 steps and at the end"
    wide = "data.tokenizer.vocab_size=70_000 model.vocab_size=70_000 data.tokenizer.sha256=null"
    assert make_plan(config(*V1, *wide.split())).disk.data == 4 * 950 * 10**9
    unknown = ["budget.tokens=1.5M", "~data.sources.code.tokens"]
    assert make_plan(config(*unknown)).disk.data is None
