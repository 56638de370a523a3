"""The frozen configuration: what it holds, what names it, how its counts are read."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tinyllama.config import data, resilience, schema, study, tasks
from tinyllama.config.kinds import parse_count, parse_duration
from tinyllama.config.load import as_dict, digest, load, near_miss, nearest_key, run_folder, validate
from tinyllama.config.schema import RunConfig

SLIM = "data.sources.slimpajama"

DETERMINES: list[dict[str, Any]] = [
    {"seed": 1},
    {"init_from": "runs/other"},
    {"model.vocab_size": 32001},
    {"model.context": 512},
    {"model.d_model": 256},
    {"model.n_layers": 5},
    {"model.n_heads": 8},
    {"model.n_kv_heads": 1},
    {"model.d_ff": 384},
    {"model.rope_theta": 500000.0},
    {"model.norm_eps": 1e-6},
    {"data.tokenizer.model": "llama/tokenizer.model"},
    {"data.tokenizer.sha256": "a" * 64, "data.tokenizer.model": "llama/tokenizer.model"},
    {"data.tokenizer.vocab_size": 31999},
    {"data.tokenizer.sample_bytes": 1},
    {f"{SLIM}.format": "parquet"},
    {f"{SLIM}.weight": 0.7},
    {f"{SLIM}.include": "**/*"},
    {f"{SLIM}.exclude": ["train/chunk1/*"]},
    {f"{SLIM}.held_out_include": []},
    {f"{SLIM}.filter.keep": ["RedPajamaC4"], f"{SLIM}.filter.not_in": None},
    {f"{SLIM}.text_field": "content"},
    {f"{SLIM}.filter.field": "meta.other"},
    {f"{SLIM}.filter.not_in": []},
    {f"{SLIM}.unique_tokens": 10**9},
    {"stages": [{"tokens": 1_000_000}, {}]},
    {f"{SLIM}.held_out": 0.001},
    {"budget.tokens": 2_000_001},
    {"budget.epochs": 1.0, "budget.tokens": None},
    {"budget.tokens_per_param": 20.0, "budget.tokens": None},
    {"budget.flops": 10**15, "budget.tokens": None},
    {"optimizer.lr": 0.001},
    {"optimizer.lr": "auto"},
    {"optimizer.betas": [0.9, 0.99]},
    {"optimizer.eps": 1e-7},
    {"optimizer.weight_decay": 0.0},
    {"optimizer.clip": 0.5},
    {"schedule.name": "wsd", "schedule.decay_fraction": 0.2},
    {"schedule.decay_fraction": 0.5, "schedule.name": "wsd"},
    {"schedule.warmup_steps": 21},
    {"schedule.min_ratio": 0.0},
    {"train.batch_tokens": 16_384},
    {"train.precision": "bf16"},
    {"train.mask_documents": True},
    {"spikes.threshold": None},
    {"spikes.window": 50},
    {"spikes.skip": [[8, 16]]},
]

DOES_NOT: list[dict[str, Any]] = [
    {"name": "other"},
    {"task": "plan"},
    {"runs_dir": "/runs"},
    {"run_dir": "/runs/this"},
    {"data_dir": "/data"},
    {"resume": "never"},
    {"time_limit": 60},
    {"model.name": "other"},
    {"data.name": "other"},
    {f"{SLIM}.raw": "/raw"},
    {f"{SLIM}.hub": "owner/other"},
    {f"{SLIM}.revision": "v2"},
    {f"{SLIM}.tokens": 1},
    {f"{SLIM}.max_epochs": 4.0},
    {"budget.name": "other"},
    {"parallelism.name": "other"},
    {"parallelism.device": "cuda"},
    {"parallelism.nodes": 2, "parallelism.rendezvous": "node1:29400"},
    {"parallelism.rendezvous": "node1:29400", "parallelism.nodes": 2},
    {"parallelism.gpus": 2},
    {"parallelism.zero_stage": 3},
    {"parallelism.offload": "optimizer", "parallelism.device": "cuda", "parallelism.zero_stage": 2},
    {"parallelism.micro_batch": 1},
    {"parallelism.recompute": True},
    {"parallelism.threads": 1},
    {"parallelism.max_restarts": 9},
    {"parallelism.hang_after": 60},
    {"kernels.backend": "torch"},
    {"kernels.attention": "triton"},
    {"kernels.compile": True},
    {"hardware.name": "other"},
    {"hardware.peak_tflops": 312.0},
    {"hardware.memory_gb": 80.0},
    {"hardware.price_per_hour": 1.0},
    {"hardware.watts": 400.0},
    {"hardware.mfu": 0.5},
    {"hardware.mfu_source": "a paper"},
    {"tracking.name": "journal"},
    {"tracking.uri": "http://host:5000"},
    {"tracking.experiment": "other"},
    {"train.log_every": 1},
    {"train.eval_every": 1},
    {"train.eval_tokens": 1024},
    {"checkpoint.every": 1},
    {"checkpoint.minutes": 1.0},
    {"checkpoint.keep": 1},
    {"checkpoint.keep_every": 100},
    {"spikes.max_skips": 0},
    {"study.name": "other"},
    {"study.folder": "runs/study-other"},
    {"study.point": "d_model=16"},
    {"study.launcher": "slurm"},
    {"study.at_a_time": 2},
    {"study.per_gpu": 2, "study.at_a_time": 2, "parallelism.device": "cuda"},
    {"slurm.partition": "gpu"},
    {"slurm.account": "us"},
    {"slurm.qos": "high"},
    {"slurm.gpus_per_node": 8},
    {"slurm.cpus_per_task": 8},
    {"slurm.memory_gb": 64},
    {"slurm.minutes": 1440},
    {"slurm.constraint": "a100"},
    {"slurm.extra": {"exclusive": True}},
    {"slurm.array_parallelism": 4},
    {"slurm.signal_seconds": 60},
    {"slurm.requeues": 1},
    {"study.share_trunks": False},
    {"fit.runs": "runs/*"},
    {"fit.source": "slimpajama"},
    {"fit.held_out": 0.1},
    {"fit.replicates": 1},
    {"fit.folder": "fits"},
    {"predict.fit": "runs/fit"},
    {"plan.strict": False},
    {"plan.mfu": 0.5},
    {"plan.inference_tokens": 10**12},
    {"prepare.workers": 1},
    {"prepare.parts": 2},
    {"prepare.part": 0},
    {"prepare.on_error": "skip"},
    {"inspect.samples": 1},
    {"inspect.characters": 1},
    {"inspect.at_step": 0},
    {"generate.run": "runs/other"},
    {"generate.prompt": "other"},
    {"generate.max_tokens": 1},
    {"generate.temperature": 0.0},
    {"generate.top_k": 1},
    {"generate.top_p": 0.9},
    {"generate.samples": 2},
    {"generate.stop": ["\n"]},
    {"evaluate.name": "other"},
    {"evaluate.run": "runs/other"},
    {"evaluate.held_out": False},
    {"evaluate.tasks": ["piqa"]},
    {"evaluate.tasks_dir": "tasks"},
    {"evaluate.shots": 5},
    {"evaluate.limit": 10},
    {"evaluate.batch": 1},
    {"evaluate.every": 100, "evaluate.tasks": ["piqa"]},
    {"export.run": "runs/other"},
    {"export.out": "models/other"},
    {"export.at_step": 100},
    {"export.dtype": "bf16"},
    {"export.shard_bytes": 10**6},
    {"export.format": "gguf"},
    {"hf.source": "models/other"},
    {"hf.out": "runs/other"},
    {"sync.run": "runs/other"},
]


@pytest.fixture(scope="session")
def plain(config: Callable[..., RunConfig]) -> dict[str, Any]:
    """A small model on TinyLlama's mixture, whose sources use every knob."""
    return as_dict(config("data=slimpajama_starcoder"))


def changed(plain: dict[str, Any], change: dict[str, Any]) -> RunConfig:
    """The configuration with some values replaced; every replaced key must exist and differ."""
    plain = deepcopy(plain)
    for key, value in change.items():
        *path, leaf = key.split(".")
        section = plain
        for part in path:
            section = section[part]
        assert section[leaf] != value
        section[leaf] = value
    return validate(plain)


def leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize(
    "line",
    [
        "",
        "experiment=tinyllama_v1 task=plan",
        "model=14m budget=chinchilla schedule=wsd",
        "seed=18446744073709551617 name=a.b-c",
    ],
)
def test_plain_data_goes_there_and_back(config: Callable[..., RunConfig], line: str) -> None:
    run = config(*line.split())
    written = json.dumps(as_dict(run))
    assert validate(json.loads(written)) == run
    assert json.dumps(as_dict(validate(json.loads(written)))) == written


@pytest.mark.parametrize("change", DETERMINES, ids=lambda change: next(iter(change)))
def test_digest_changes_with_what_determines_a_run(plain: dict[str, Any], change: dict[str, Any]) -> None:
    assert digest(changed(plain, change)) != digest(validate(plain))


@pytest.mark.parametrize("change", DOES_NOT, ids=lambda change: next(iter(change)))
def test_digest_ignores_how_a_run_is_carried_out(plain: dict[str, Any], change: dict[str, Any]) -> None:
    assert digest(changed(plain, change)) == digest(validate(plain))


def test_every_knob_is_known_to_determine_a_run_or_not(plain: dict[str, Any]) -> None:
    decided = {next(iter(change)) for change in [*DETERMINES, *DOES_NOT]}
    knobs = {key for key in leaves(plain) if not key.startswith("data.sources.starcoder.")}
    # there is one algorithm to choose, so its name cannot be changed
    assert knobs - decided == {"optimizer.name"}
    assert decided <= knobs


def test_digests_of_one_run_written_in_two_ways_agree(config: Callable[..., RunConfig]) -> None:
    assert digest(config("budget.tokens=3M", "data.sources.code.weight=3", "data.sources.text.weight=7")) == digest(
        config("budget.tokens=3_000_000", "data.sources.code.weight=3.0", "data.sources.text.weight=7.0")
    )


def test_run_folder_is_named_by_the_digest(config: Callable[..., RunConfig]) -> None:
    run = config("runs_dir=/r", "name=mine")
    assert run_folder(run) == Path("/r") / f"mine-{digest(run)[:8]}"
    assert run_folder(config("runs_dir=/r", "run_dir=/elsewhere")) == Path("/elsewhere")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3T", 3 * 10**12),
        ("22B", 22 * 10**9),
        ("22b", 22 * 10**9),
        ("2.5M", 2_500_000),
        # in floating point 1.1 * 10**9 is 1100000000.0000001
        ("1.1B", 1_100_000_000),
        ("0.5K", 500),
        ("0.001T", 10**9),
        ("1e3M", 10**9),
        ("1e9", 10**9),
        ("1E9", 10**9),
        ("1e24", 10**24),
        ("5.0", 5),
        ("+5", 5),
        (" 5 ", 5),
        ("0", 0),
        ("3_000_000", 3_000_000),
        ("123456789012345678901234567891", 123456789012345678901234567891),
        (3_000_000, 3_000_000),
        (2**53 + 1, 2**53 + 1),
        (1e9, 10**9),
        # int(1e24) is 999999999999999983222784: what was written is what counts
        (1e24, 10**24),
        (5.0, 5),
    ],
)
def test_counts_are_exact(text: Any, count: int) -> None:
    assert parse_count(text) == count
    assert type(parse_count(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "_",
            "T",
            "M3",
            "3TB",
            "22Bn",
            "1.5",
            "2.0000001M",
            "1,000",
            "0x10",
            "0777",
            "00",
            "12:30:00",
            "lots",
        ),
        *("-5", "-3T", "nan", "snan", "inf", "Infinity", "1e-40", "1e99999T", "1e999999999T", "1e-999999999"),
        *(-5, 1.5, True, False, None, [1], {"a": 1}, b"3", float("nan"), float("inf"), float("-inf")),
    ],
)
def test_what_is_no_count_is_refused(text: Any) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the whole text follows
        parse_count(text)
    assert str(refusal.value) == f"{text!r} is not a count: write a whole number such as 3_000_000, 1e9, 22B or 3T"


@pytest.mark.parametrize("text", ["3T", "22B", "1e9", "2e3", "3_000_000", "2.5M", "8192", "1e24"])
def test_a_count_is_the_same_from_a_file_and_from_the_command_line(
    composed: Callable[..., DictConfig], text: str
) -> None:
    in_file = composed()
    in_file.budget.tokens = OmegaConf.create(f"tokens: {text}").tokens
    assert load(in_file).budget.tokens == load(composed(f"budget.tokens={text}")).budget.tokens == parse_count(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("23:30:00", 84_600), ("0:00:05", 5), ("1-12:00:00", 129_600), ("100:00:00", 360_000), (90, 90)],
)
def test_times_are_seconds(text: Any, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "1:30", "00:00:00", "1:60:00", "-1:00:00", 0, -5, 1.5, True, None])
def test_what_is_no_time_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_duration(text)


def test_a_time_is_the_same_from_a_file_and_from_the_command_line(composed: Callable[..., DictConfig]) -> None:
    in_file = composed()
    in_file.time_limit = OmegaConf.create("time_limit: 23:30:00").time_limit  # which YAML 1.1 reads as seconds
    assert load(in_file).time_limit == load(composed("time_limit=23:30:00")).time_limit == 84_600


def test_nothing_can_be_set_afterwards(config: Callable[..., RunConfig]) -> None:
    run = config("data=slimpajama_starcoder")
    source = run.data.sources["slimpajama"]
    assert source.filter is not None
    sections = [value for value in vars(run).values() if dataclasses.is_dataclass(value)]
    assert len(sections) == 24
    for section in [run, run.data.tokenizer, source, source.filter, *sections]:
        for field in dataclasses.fields(section):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(section, field.name, None)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lr", "optimizer.lr"),
        ("tokens", "budget.tokens"),
        ("gpus", "parallelism.gpus"),
        ("budget.token", "budget.tokens"),
        ("model.vocab", "model.vocab_size"),
        ("train.micro_batch", "parallelism.micro_batch"),
        ("data.source", "data.sources"),
        ("data.tokeniser.vocab_size", "data.tokenizer.vocab_size"),
        ("data.sources.web.max_epoch", "data.sources.web.max_epochs"),
        ("data.sources.web.filter.feild", "data.sources.web.filter.field"),
        ("steps", None),
        ("flux_capacitor", None),
    ],
)
def test_the_nearest_key_is_one_that_was_meant(key: str, nearest: str | None) -> None:
    assert nearest_key(key) == nearest


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train.lr=1e-3", "train.lr: no such key; did you mean optimizer.lr?"),
        ("modle=30m", "modle: no such key; did you mean model?"),
        (
            "data.sources.code.max_epochs=4",
            "data.sources.code.max_epochs: is not set by any file: add it, +data.sources.code.max_epochs=VALUE",
        ),
        ("model.n_heads", "Error parsing override 'model.n_heads'\nmissing EQUAL at '<EOF>'"),
    ],
)
def test_what_hydra_refuses_names_the_nearest_key(composed: Callable[..., DictConfig], line: str, told: str) -> None:
    with pytest.raises(HydraException) as refused:
        composed(line)
    assert near_miss(str(refused.value)).partition("\nSee https")[0] == told


def test_every_field_says_what_it_is() -> None:
    sections = {
        node.name: node
        for module in (schema, resilience, study, tasks, data)
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Section" for base in node.bases)
    }
    assert len(sections) == 29
    silent = []
    for name, section in sections.items():
        assert ast.get_docstring(section), name
        for field, below in zip(section.body, [*section.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign):
                continue
            told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            # a group of RunConfig is told by the docstring of its class
            if not told and not (name == "RunConfig" and ast.unparse(field.annotation) in sections):
                silent.append(f"{name}.{ast.unparse(field.target)}")
    assert silent == []
