"""What a run will take, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tinyllama.config.load import ConfigError
from tinyllama.config.schema import RunConfig
from tinyllama.plan.memory import gigabytes
from tinyllama.plan.plan import Plan, make_plan
from tinyllama.plan.render import render, short

ROOT = Path(__file__).parents[2]


def printed(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=100)
    for part in render(plan, title="a run"):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(plan: Plan) -> str:
    """What is printed, on one line, with one space between any two words."""
    return " ".join(printed(plan).split())


def refusal(run: RunConfig) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole text is compared by the caller
        make_plan(run)
    return str(refused.value)


@pytest.fixture(scope="session")
def tinyllama(config: Callable[..., RunConfig]) -> Plan:
    return make_plan(config("experiment=tinyllama_v1", "task=plan"))


def test_the_papers_run_comes_out(tinyllama: Plan) -> None:
    [stage] = tinyllama.stages
    assert stage.sequences_per_step == 1024
    assert len(tinyllama.sequences_of(0)) * tinyllama.context == 2_097_152
    assert tinyllama.world_size == 16
    assert tinyllama.accumulation(stage) == 8
    assert tinyllama.steps == 1_430_512
    assert tinyllama.tokens == 3_000_001_101_824
    assert f"{tinyllama.tokens_per_param:.2f}" == "2727.15"
    assert f"{tinyllama.chinchilla_multiple:.2f}" == "136.36"
    slimpajama, starcoder = tinyllama.sources["slimpajama"], tinyllama.sources["starcoder"]
    assert (slimpajama.share, starcoder.share) == (0.693584, 0.306416)
    assert (slimpajama.unique_tokens, starcoder.unique_tokens) == (659 * 10**9, 291 * 10**9)
    assert abs(slimpajama.tokens + starcoder.tokens - tinyllama.tokens) <= 1
    # the weights are the natural sizes, rounded: 3.158 epochs of 950B, within a thousandth for each source
    assert [f"{source.epochs:.4f}" for source in (slimpajama, starcoder)] == ["3.1574", "3.1589"]
    assert tinyllama.warnings == ()


@pytest.mark.parametrize(
    ("line", "steps"),  # model=nano with a vocabulary of 4,096 has 1,787,008 parameters
    [
        ("budget.tokens=2M", 245),  # 2,000,000 / 8,192 = 244.14
        ("budget.tokens=2_457_600", 300),  # 300 x 8,192
        ("budget.tokens=2_457_601", 301),
        ("budget.tokens=2_457_599", 300),
        ("budget=epochs", 379),  # 3,100,000 / 8,192 = 378.42
        ("budget=epochs budget.epochs=0.5", 190),  # 189.21
        ("budget=three_epochs", 1136),  # 9,300,000 / 8,192 = 1,135.25
        ("budget=tokens_per_param", 21_815),  # 178,700,800 / 8,192 = 21,814.06
        ("budget=chinchilla", 4363),  # 35,740,160 / 8,192 = 4,362.81
        ("budget=flops budget.flops=1e15", 11_385),  # 1e15 / (6 x 1,787,008) = 93,265,765.27; / 8,192 = 11,384.98
        ("budget=chinchilla train.batch_tokens=16K model.context=250", 2234),  # 35,740,160 / 16,000 = 2,233.76
    ],
)
def test_a_budget_is_rounded_up_to_whole_steps(config: Callable[..., RunConfig], line: str, steps: int) -> None:
    plan = make_plan(config("train.batch_tokens=8192", *line.split()))
    assert plan.steps == steps
    assert plan.tokens == plan.tokens_by(steps) == steps * plan.tokens_by(1)


# in floating point both are a little more than what was written, and a step more would come out
@pytest.mark.parametrize(("epochs", "steps"), [("0.1", 100), ("1.1", 1100)])
def test_a_budget_is_exact(config: Callable[..., RunConfig], epochs: str, steps: int) -> None:
    run = config("budget=epochs", f"budget.epochs={epochs}", "train.batch_tokens=8192")
    assert make_plan(run, measured_tokens={"text": 4_096_000, "code": 4_096_000}).steps == steps


def test_every_source_must_have_a_size_where_the_budget_is_in_epochs(config: Callable[..., RunConfig]) -> None:
    line = "budget=three_epochs ~data.sources.code.tokens ~data.sources.text.tokens"
    assert refusal(config(*line.split())) == (
        "budget.epochs: 3 needs the size of every source, and that of text, code is not known: "
        "prepare the data (task=prepare) or declare data.sources.text.tokens"
    )


def test_an_unknown_size_leaves_epochs_unknown(config: Callable[..., RunConfig]) -> None:
    plan = make_plan(config("budget.tokens=2M", "~data.sources.code.tokens"))
    assert plan.sources["code"].unique_tokens is plan.sources["code"].epochs is None
    assert plan.sources["code"].tokens == 602_112
    assert printed(plan).count("not known") == 5  # its worth too, and the time and the disk of this machine's run


def test_the_batch_follows_the_compute(config: Callable[..., RunConfig]) -> None:
    # 0.292 x (6 x 1,787,008 x 1.5M)^0.3271 = 6,100 tokens: 23.8 sequences of 256, nearest to 32
    assert make_plan(config()).tokens_by(1) == 8192
    assert make_plan(config("budget.tokens=150M")).tokens_by(1) == 32_768  # 100^0.3271 = 4.51 times as many
    large = make_plan(config("task=plan", "model=1.1b", "data=slimpajama_starcoder", "budget=3t"))
    assert large.tokens_by(1) == 4_194_304  # 5.7M, 2,781 sequences of 2,048
    assert make_plan(config("budget.tokens=2K", "schedule.warmup_steps=0")).tokens_by(1) == 1024  # 702: too few


AUTO = ("optimizer.lr=auto", "train.batch_tokens=auto")


def test_the_rules_of_rate_and_batch_come_out(config: Callable[..., RunConfig]) -> None:
    # at C = 1e18 exactly 10^-2.25 = 0.0056234 and 10^5.8878 = 772,325 (but for N, which the tokens are rounded by)
    plan = make_plan(config(*AUTO, "budget=flops", "budget.flops=1e18"))
    assert plan.learning_rate == pytest.approx(0.3118 * 0.005623413252, rel=1e-9)
    assert plan.tokens_by(1) == 262_144  # 0.292 x 772,325 = 225,519: 880.9 sequences of 256, nearest to 1,024
    assert (plan.learning_rate_beyond, plan.batch_beyond) == (1, 1)
    assert "peak learning rate 0.00175 by the rule of arXiv 2401.02954 steps" in words(plan)
    far = make_plan(config(*AUTO, "budget=flops", "budget.flops=1e15"))
    assert far.learning_rate / plan.learning_rate == pytest.approx(1000**0.125, rel=1e-9)
    assert far.learning_rate_beyond == far.batch_beyond == pytest.approx(100, rel=1e-9)
    assert words(far).count("by the rule of arXiv 2401.02954, 100 times beyond its range") == 2
    rule = make_plan(config("optimizer.lr=2e-3"))
    assert (rule.learning_rate, rule.learning_rate_beyond) == (2e-3, None)
    assert "peak learning rate 0.002 as optimizer.lr says steps" in words(rule)


def test_with_wsd_the_rules_ask_the_size_alone(config: Callable[..., RunConfig]) -> None:
    # C = 120 x 1,787,008^2 = 10^14.583434: 0.3118 x 10^-1.822929 = 0.00468756,
    # and 0.292 x 10^4.770241 = 17,204: 67 sequences, nearest to 64
    wsd = [make_plan(config(*AUTO, "schedule=wsd", f"budget.tokens={budget}")) for budget in ("1M", "400M")]
    assert [plan.tokens_by(1) for plan in wsd] == [16_384, 16_384]
    assert [plan.learning_rate for plan in wsd] == pytest.approx([0.00468756] * 2, rel=1e-5)
    assert wsd[0].learning_rate == wsd[1].learning_rate
    cosine = [make_plan(config(*AUTO, f"budget.tokens={budget}")).learning_rate for budget in ("1M", "400M")]
    assert cosine[0] / cosine[1] == pytest.approx(400**0.125, rel=1e-9)
    # Chinchilla's own length is where both schedules ask the same
    assert make_plan(config(*AUTO, "budget=chinchilla")).learning_rate == pytest.approx(wsd[0].learning_rate, rel=1e-9)


def test_everything_that_is_wrong_is_told_at_once(config: Callable[..., RunConfig]) -> None:
    run = config(
        *("model=1.1b", "data=slimpajama_starcoder", "parallelism=single", "hardware=a100_40gb"),
        *("train.batch_tokens=100_000", "budget.tokens=90K", "data.sources.starcoder.tokens=2048"),
        *("+data.sources.slimpajama.max_epochs=1e-9", "parallelism.micro_batch=8"),
    )
    assert refusal(run).splitlines() == [
        "train.batch_tokens: 100000 is not a multiple of 16384 = model.context 2048 x parallelism.micro_batch 8 x 1 "
        "ranks: use 98304",
        "data.sources.starcoder: 2,048 training tokens are too few for one sequence, which takes model.context + 1 = "
        "2,049: give it more documents or use a smaller model.context",
        "budget: 90,000 tokens are less than one step of 100,000: raise it or lower train.batch_tokens",
        "schedule.warmup_steps: 20 must be fewer than the run's steps, 1: lower it, raise the budget or lower "
        "train.batch_tokens=100000",
        "data.sources.slimpajama.max_epochs: the run would repeat it 0.00 times, more than 1e-09: lower the budget or "
        "its weight, or raise the limit",
        "parallelism.micro_batch: 8 needs 44.12 GB on a rank, which has 39.00 GB for tensors: set "
        "parallelism.micro_batch=6, or plan.strict=false to try",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "parallelism.gpus=3 train.batch_tokens=8192",
            "train.batch_tokens: 8192 is not a multiple of 3072 = model.context 256 x parallelism.micro_batch 4 x 3 "
            "ranks: use 9216, or fewer ranks",
        ),
        (
            "parallelism.gpus=3 parallelism.micro_batch=auto",
            "train.batch_tokens: auto makes it 8192, which is not a multiple of 768 = model.context 256 x 3 ranks: "
            "use 8448, or fewer ranks",
        ),
        (
            "stages=[{tokens:100K},{batch_tokens:1000}]",
            "stages.1.batch_tokens: 1000 is not a multiple of 1024 = model.context 256 x parallelism.micro_batch 4 x 1 "
            "ranks: use 1024",
        ),
        (
            "parallelism=single parallelism.micro_batch=auto",
            "parallelism.micro_batch: auto needs to know the GPU: choose hardware=a100 or the like, or set "
            "hardware.memory_gb",
        ),
        (
            "budget.tokens=8191 schedule.warmup_steps=0 train.batch_tokens=8192",
            "budget: 8,191 tokens are less than one step of 8,192: raise it or lower train.batch_tokens",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused(config: Callable[..., RunConfig], line: str, told: str) -> None:
    assert refusal(config(*line.split())) == told


def test_a_batch_that_does_not_divide_hides_behind_no_other_mistake(config: Callable[..., RunConfig]) -> None:
    batch = (
        "train.batch_tokens: 8192 is not a multiple of 256000 = model.context 256 x parallelism.micro_batch 1000 x 1"
    )
    line = ("train.batch_tokens=8192", "parallelism.micro_batch=1000")
    for more in (
        ["data.sources.text.tokens=null", "budget=three_epochs"],
        ["+data.sources.text.unique_tokens=100"],
        [*(f"data.sources.{name}.weight=natural" for name in ("text", "code")), "data.sources.text.tokens=null"],
    ):
        assert [told.startswith(batch) for told in refusal(config(*line, *more)).splitlines()] == [True, False]


def test_what_does_not_fit_is_planned_but_not_trained(config: Callable[..., RunConfig]) -> None:
    line = [
        "model=1.1b",
        "data=slimpajama_starcoder",
        "parallelism=single",
        "hardware=h100",
        "parallelism.micro_batch=64",
    ]
    told = "parallelism.micro_batch: 64 needs "
    plan = make_plan(config(*line, "task=plan", "budget=3t"))
    assert plan.fit.fits is False
    assert plan.fit.remedy is not None
    assert f"it does not fit: {plan.fit.remedy}" in " ".join(printed(plan).split())
    assert refusal(config(*line, "budget=3t")).startswith(told)
    assert make_plan(config(*line, "budget=3t", "plan.strict=false")).fit == plan.fit
    assert make_plan(config(*line, "budget=3t", *plan.fit.remedy.split())).fit.fits


def test_half_a_micro_batch_still_divides_the_batch(config: Callable[..., RunConfig]) -> None:
    halves = []
    for micro_batch in (24, 8, 6, 2, 1):  # of 24 sequences
        plan = make_plan(config(f"parallelism.micro_batch={micro_batch}", "train.batch_tokens=6144"))
        halves.append(plan.half_micro_batch)
    assert halves == [12, 4, 3, 1, None]


def test_a_source_that_no_stage_uses_is_planned_with_nothing(config: Callable[..., RunConfig]) -> None:
    code = make_plan(config("stages=[{weights:{text:1}}]")).sources["code"]
    assert (code.share, code.tokens, code.epochs, code.effective_tokens) == (0, 0, 0, 0)


def test_the_same_comes_out_of_the_short_form(tinyllama: Plan) -> None:
    assert list(short(tinyllama)) == [
        "1,100,048,384 parameters, 3,000,001,101,824 tokens in 1,430,512 steps: 2,727.2 a parameter, 136.36 x "
        "Chinchilla",
        f"planned: {tinyllama.fit.needed.peak / 1e9:.2f} GB on each of 16 ranks of 39.00 GB; 90.4 days at 23,997 "
        "tokens/s a rank (assumed: TinyLlama 1.1B on A100s, 24k tokens/s each (arXiv 2401.02385))",
        "MFU counts 6N, no input embedding, causal attention",
    ]


def test_more_repeats_than_allowed_are_refused(config: Callable[..., RunConfig]) -> None:
    # 0.7 x 2,007,040 / 600,000 = 2.3415
    assert refusal(config("budget.tokens=2M", "+data.sources.text.max_epochs=2.34")) == (
        "data.sources.text.max_epochs: the run would repeat it 2.34 times, more than 2.34: "
        "lower the budget or its weight, or raise the limit"
    )
    assert make_plan(config("budget.tokens=2M", "+data.sources.text.max_epochs=2.342")).steps == 245


def test_warmup_ends_within_the_run(config: Callable[..., RunConfig]) -> None:
    assert refusal(config("budget.tokens=2M", "schedule.warmup_steps=245")) == (
        "schedule.warmup_steps: 245 must be fewer than the run's steps, 245: "
        "lower it, raise the budget or lower train.batch_tokens=8192"
    )
    assert make_plan(config("budget.tokens=2M", "schedule.warmup_steps=244")).steps == 245


def test_warnings_say_what_is_unwise(config: Callable[..., RunConfig]) -> None:
    assert make_plan(config()).warnings == ()
    assert make_plan(config("budget.tokens=200K")).warnings == (
        "0.11 tokens for each parameter: far too few to learn from "
        "(budget=chinchilla gives 20, budget=three_epochs what the paper had)",
    )
    plan = make_plan(config("budget.tokens=10M"))
    assert plan.warnings == ("text is repeated 11.7 times: past 4 epochs repeats teach less and less",)
    assert f"warning: {plan.warnings[0]}" in printed(plan)


def test_what_was_measured_takes_over_from_what_was_declared(config: Callable[..., RunConfig]) -> None:
    run = config("budget=three_epochs", "schedule.warmup_steps=2", "train.batch_tokens=8192")
    declared, measured = make_plan(run), make_plan(run, measured_tokens={"text": 8192, "code": 40_960})
    assert (declared.steps, measured.steps) == (1136, 18)
    assert {name: source.unique_tokens for name, source in measured.sources.items()} == {"text": 8192, "code": 40_960}
    assert f"{measured.sources['text'].epochs:.3f}" == "12.600"  # 0.7 x 18
    assert not any(source.measured for source in declared.sources.values())
    assert all(source.measured for source in measured.sources.values())
    assert "about 600,000" in printed(declared)
    assert "about" not in printed(measured)


V1_1 = ("experiment=tinyllama_v1_1", "task=plan")


def test_the_second_papers_stages_come_out(config: Callable[..., RunConfig]) -> None:
    plan = make_plan(config(*V1_1))
    text, all_three, cooldown = plan.stages
    # 1.5e12 / 1,835,008 = 817,435.22; 350e9 / 1,835,008 = 190,734.86; the rest of 2e12 / 7,340,032 = 20,435.5
    assert [stage.steps for stage in plan.stages] == [817_436, 190_735, 20_436]
    assert [stage.sequences_per_step for stage in plan.stages] == [896, 896, 3584]
    assert [plan.accumulation(stage) for stage in plan.stages] == [7, 7, 28]
    assert all_three.ramp == 2_929_688  # 6e9 / 2,048
    assert text.weights == {"slimpajama": 1, "starcoder": 0, "proofpile": 0}
    assert cooldown.weights == all_three.weights == {"slimpajama": 0.75, "starcoder": 0.15, "proofpile": 0.1}
    # all that comes after the first stage, less half of the ramp
    later = (190_735 * 896 + 20_436 * 3584) * 2048 - 3_000_000_512
    assert plan.sources["starcoder"].tokens == round(0.15 * later)
    assert sum(source.tokens for source in plan.sources.values()) == plan.tokens
    told = [part for part in render(plan, title="a run") if isinstance(part, str)]
    assert told[0] == ("stage 1: 817,436 steps of 1,835,008 tokens, 1,500,001,599,488 in all: slimpajama 100.0%")
    assert told[1] == (
        "stage 2: 190,735 steps of 1,835,008 tokens, 350,000,250,880 in all: slimpajama 75.0%, starcoder 15.0%, "
        "proofpile 10.0%, after a ramp of 6,000,001,024 tokens"
    )
    assert told[2].startswith("stage 3: 20,436 steps of 7,340,032 tokens, ")


def test_steps_take_sequences_in_order_whatever_their_stage(config: Callable[..., RunConfig]) -> None:
    line = "budget.tokens=100K schedule.warmup_steps=1 stages=[{tokens:20K},{tokens:30K,batch_tokens:16_384},{}]"
    plan = make_plan(config("train.batch_tokens=8192", *line.split()))
    assert [(stage.first_step, stage.steps) for stage in plan.stages] == [(0, 3), (3, 2), (5, 6)]
    taken = [plan.sequences_of(step) for step in range(plan.steps)]
    assert [len(step) for step in taken] == [32] * 3 + [64] * 2 + [32] * 6
    assert [k for step in taken for k in step] == list(range(plan.tokens // 256))
    assert [plan.tokens_by(step) for step in (0, 3, 5, 11)] == [0, 24_576, 57_344, 106_496]
    changes = [step for step in range(11) if plan.changes_mixture(taken[step].start, taken[step].stop)]
    assert changes == [0, 3, 5]
    # 40 samples left out before: the second stage's mixture begins within what is now step 1
    assert [k for k in range(11) if plan.changes_mixture(taken[k].start + 40, taken[k].stop + 40)] == [1, 4]
    assert refusal(config("budget.tokens=20K", "stages=[{tokens:1M},{}]", "train.batch_tokens=8192")) == (
        "stages.1: the budget of 20,000 tokens ends before this stage begins, after 1,007,616: "
        "raise the budget or leave the stage out"
    )


def test_a_ramp_ends_within_its_stage(config: Callable[..., RunConfig]) -> None:
    stages = "stages=[{tokens:500K,weights:{code:1}},{ramp:4M,weights:{text:1}}]"
    assert refusal(config("budget.tokens=1M", stages)) == (
        "stages.1.ramp: 4,000,000 tokens are more than the 499,712 of its stage: shorten the ramp or raise the budget"
    )


def test_natural_weights_are_sizes(config: Callable[..., RunConfig]) -> None:
    natural = ("data.sources.text.weight=natural", "data.sources.code.weight=natural")
    plan = make_plan(config(*natural), measured_tokens={"text": 300_000, "code": 700_000})
    assert [source.share for source in plan.sources.values()] == pytest.approx([0.3, 0.7], rel=1e-15)
    assert plan.sources["text"].epochs == pytest.approx(plan.sources["code"].epochs, rel=1e-15)
    assert refusal(config(*natural, "~data.sources.code.tokens")) == (
        "data.sources.code.weight: natural needs the source's size, which is not known: prepare the data "
        "(task=prepare) or declare data.sources.code.tokens"
    )


def test_a_part_of_a_source(config: Callable[..., RunConfig]) -> None:
    part = ("data.sources.text.unique_tokens=100K", "data.sources.text.weight=natural")
    line = (*part, "data.sources.code.weight=natural", "budget=epochs", "budget.epochs=3")
    known = {"text": 700_000, "code": 256_000}
    plan = make_plan(config(*line), measured_tokens=known)
    assert plan.sources["text"].unique_tokens == 390 * 256, "whole sequences"
    assert plan.sources["text"].epochs == pytest.approx(plan.sources["code"].epochs, rel=1e-12)
    assert plan.tokens == pytest.approx(3 * (390 * 256 + 256_000), rel=0.01)
    assert plan.disk.data == 2 * sum(known.values()), "all of it is prepared"
    for tokens, told in (
        ("700K", "700,000 are not fewer than the 700,000 training tokens it has: lower it, or null for all"),
        ("255", "255 are less than one sequence of model.context=256: raise it"),
    ):
        with pytest.raises(ConfigError) as refused:
            make_plan(config(f"data.sources.text.unique_tokens={tokens}"), measured_tokens=known)
        assert str(refused.value) == f"data.sources.text.unique_tokens: {told}"


def test_the_plan_is_json(tinyllama: Plan) -> None:
    plain: dict[str, Any] = json.loads(json.dumps(tinyllama.as_dict()))
    assert plain.keys() == {field.name for field in dataclasses.fields(Plan)} | {"training_flops"}
    assert plain["parameters"] == {
        "embedding": 65_536_000,
        "attention": 207_618_048,
        "mlp": 761_266_176,
        "norms": 92_160,
        "head": 65_536_000,
        "total": 1_100_048_384,
        "without_input_embedding": 1_034_512_384,
        "without_embeddings": 968_976_384,
    }
    assert plain["flops_per_token"]["6N, all parameters, no attention"] == 6_600_290_304
    assert plain["training_flops"]["6N, all parameters, no attention"] == 6_600_290_304 * 3_000_001_101_824
    assert plain["training_flops"].keys() == plain["flops_per_token"].keys()
    assert plain["sources"]["starcoder"]["unique_tokens"] == 291 * 10**9


def test_every_number_of_the_plan_is_printed(tinyllama: Plan) -> None:
    text, plain = printed(tinyllama), tinyllama.as_dict()
    whole = [*plain["parameters"].values(), *plain["flops_per_token"].values()]
    whole += [tinyllama.tokens_by(1), len(tinyllama.sequences_of(0)), tinyllama.steps, tinyllama.tokens]
    whole += [source[name] for source in plain["sources"].values() for name in ("tokens", "unique_tokens")]
    words = [f"{number:,}" for number in whole]
    words += [f"{flops:.3e}" for flops in plain["training_flops"].values()]
    words += ["8 x 8 accumulated on each of 16 ranks", "2,727.2 a parameter", "136.36 x Chinchilla"]
    words += ["69.4%", "30.6%", "3.157", "3.159"]
    words += [f"{one.loss:.3f}" for one in tinyllama.forecasts]
    assert [word for word in words if word not in text] == []
    assert "worse than chance" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text


def test_a_loss_worse_than_chance_is_none(config: Callable[..., RunConfig]) -> None:
    tiny = make_plan(config("task=plan", "data.tokenizer.vocab_size=4096"))
    assert f"{tiny.chance_loss:.3f}" == "8.318"
    assert {one.loss > tiny.chance_loss for one in tiny.forecasts} == {True}
    text = words(tiny)
    assert "Hoffmann et al. 2022 - size 39.2 times" in text
    assert "- : worse than chance, 8.318 nats" in text
    assert not any(f"{one.loss:.3f}" in text for one in tiny.forecasts)


def test_memory_is_printed_for_every_stage_with_the_runs_own_marked(config: Callable[..., RunConfig]) -> None:
    line = ("task=plan", "model=1.1b", "data=slimpajama_starcoder", "budget.tokens=1B", "hardware=rtx4090")
    plan = make_plan(config(*line, "parallelism=single", "parallelism.zero_stage=2", "parallelism.recompute=true"))
    text = printed(plan)
    rows = [line.split() for line in text[text.index("memory of a rank") :].splitlines()]
    assert rows[0] == ["memory", "of", "a", "rank,", "micro-batch", "4", "ZeRO", "1", "ZeRO", "2", "*", "ZeRO", "3"]
    kept, again = ([choice for choice in plan.fit.choices if choice.recompute is which] for which in (False, True))
    for label, choices, size in (
        ("weights", kept, lambda one: gigabytes(one.needed.weights)),
        ("gradients", kept, lambda one: gigabytes(one.needed.gradients)),
        ("fp32 weights and two moments", kept, lambda one: gigabytes(one.needed.optimizer)),
        ("activations", kept, lambda one: gigabytes(one.needed.activations)),
        ("recomputed", again, lambda one: gigabytes(one.needed.activations + one.needed.recomputed)),
        ("logits, the loss, their gradients", kept, lambda one: gigabytes(one.needed.logits)),
        ("buffers to reduce and to gather", kept, lambda one: gigabytes(one.needed.buffers)),
        ("at its most: not all at one time", kept, lambda one: gigabytes(one.needed.peak)),
        ("recomputed *", again, lambda one: gigabytes(one.needed.peak)),
        ("largest micro-batch", kept, lambda one: str(one.largest_micro_batch)),
        ("recomputed *", again, lambda one: str(one.largest_micro_batch)),
    ):
        assert [*label.split(), *(word for one in choices for word in size(one).split())] in rows, label
    assert "does not fit: parallelism.micro_batch=2" in text
    offloaded = ("parallelism=single", "parallelism.zero_stage=2", "parallelism.offload=optimizer")
    text = printed(make_plan(config(*line, *offloaded)))
    assert "ZeRO 1" not in text
    assert "machine's own memory: 30.41 GB" in text


@pytest.mark.parametrize(
    "name",
    [
        *("context", "world_size"),
        *("steps", "tokens", "tokens_per_param", "chinchilla_multiple", "learning_rate"),
    ],
)
def test_another_number_prints_otherwise(tinyllama: Plan, name: str) -> None:
    other = dataclasses.replace(tinyllama, **{name: getattr(tinyllama, name) + 1})
    assert printed(other) != printed(tinyllama)


def test_planning_needs_no_torch() -> None:
    code = """
import sys
from pathlib import Path
from hydra import compose, initialize_config_dir
from tinyllama.config import resolvers
from tinyllama.config.load import load
from tinyllama.plan.plan import make_plan
from tinyllama.plan.render import render
resolvers.register()
with initialize_config_dir(str(Path("conf").absolute()), version_base="1.3"):
    plan = make_plan(load(compose("config", overrides=["experiment=tinyllama_v1", "task=plan"])))
list(render(plan, title="a run"))
print(plan.steps, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1430512", "False"]
