"""The model card says what the weights are, and nothing of the machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from omegaconf import OmegaConf

from tinyllama.config.load import essence
from tinyllama.config.schema import RunConfig
from tinyllama.exchange.card import card
from tinyllama.plan.plan import make_plan

LINE = (
    "model=1.1b",
    "data=slimpajama_starcoder",
    "data.sources.slimpajama.raw=/data/secret/slim",
    "data.tokenizer.model=/data/secret/tokenizer.model",
    "init_from=/data/secret/run",
    "budget.tokens=3B",
    "runs_dir=/data/secret/runs",
    "plan.strict=false",
)
HELD_OUT = {"loss": 2.25, "bits_per_byte": 0.8125, "gzip_bits_per_byte": 2.5, "tokens": 1000}
PIQA = {"acc": 0.7, "acc_stderr": 0.01, "questions": 1838.0, "shots": 0.0}


def written(run: RunConfig, **changed: Any) -> str:
    plan = make_plan(run).as_dict()
    what: dict[str, Any] = {
        "plan": plan,
        "result": {
            "held_out": {"slimpajama": HELD_OUT},
            "tasks": {"piqa": {"acc": 0.7, "acc_stderr": 0.01, "questions": 1838.0, "shots": 0.0}},
        },
        "step": plan["steps"],
        "tokens": plan["tokens"],
        "end": "</s>",
    }
    return card(run, **what | changed)


def test_it_says_what_was_trained_on_what(config: Callable[..., RunConfig]) -> None:
    run = config(*LINE)
    text = written(run)
    plan = make_plan(run)
    assert "1,100,048,384 parameters" in text
    assert f"{plan.tokens:,} tokens" in text
    for name, source in plan.sources.items():
        assert f"| {name} | {source.share:.1%} | {source.tokens:,} |" in text
    assert "| slimpajama | 2.2500 | 0.8125 | 2.5000 |" in text
    [row] = [line for line in text.splitlines() if line.startswith("| piqa")]
    assert row == "| piqa | acc | 0.7000 | 0.0100 | 1,838 | 0 |"
    assert "2401.02385" in text


def test_its_front_is_what_the_hub_reads(config: Callable[..., RunConfig]) -> None:
    text = written(config(*LINE))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["datasets"] == ["bigcode/starcoderdata", "cerebras/SlimPajama-627B"]
    assert "datasets" not in yaml.safe_load(written(config(), result=None).split("---\n")[1])


def test_its_configuration_is_all_that_determines_the_run(config: Callable[..., RunConfig]) -> None:
    run = config("budget.tokens=3M")
    [block] = re.findall(r"```yaml\n(.*?)```", written(run, result=None), flags=re.DOTALL)
    whole = OmegaConf.to_container(OmegaConf.create(block))
    assert isinstance(whole, dict)
    for section in ("model", "data", "budget"):
        assert whole[section].pop("name") == getattr(run, section).name
    assert whole == essence(run)


def test_paths_of_this_machine_stay_out(config: Callable[..., RunConfig]) -> None:
    text = written(config(*LINE))
    assert "secret" not in text
    assert "tokenizer.model" in text


def test_an_intermediate_checkpoint_says_so(config: Callable[..., RunConfig]) -> None:
    text = written(config(), result=None, step=40, tokens=1234)
    assert "on 1,234 tokens" in text
    assert "in 40 of " in text
    assert "An intermediate checkpoint: not measured on all held-out text." in text
