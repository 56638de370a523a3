"""What a user is told: bad command lines and the whole report of each."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from tinyllama.config.load import ConfigError, as_dict, load, validate
from tinyllama.config.rules import RULES, Broken
from tinyllama.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
COUNT = "is not a count: write a whole number such as 3_000_000, 1e9, 22B or 3T"
PASSWORD = (
    "tracking.uri: holds a password, which run folders would keep: leave it out and set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)

UNKNOWN = [
    ("+train.lr=1e-3", "train.lr: no such key; did you mean optimizer.lr?"),
    ("+train.lrr=65", "train.lrr: no such key; did you mean optimizer.lr?"),
    ("+model.n_layer=4", "model.n_layer: no such key; did you mean model.n_layers?"),
    ("+epochs=3", "epochs: no such key; did you mean budget.epochs?"),
    ("+train.steps=100", "train.steps: no such key; see --cfg job for all that exist"),
    (
        "+data.sources.code.wieght=2",
        "data.sources.code.wieght: no such key; did you mean data.sources.code.weight?",
    ),
    ("+model._target_=pathlib.Path.unlink", "model._target_: no such key; see --cfg job for all that exist"),
]

TYPES_AND_VALUES = [
    ("~checkpoint.keep", "checkpoint.keep: is missing: set it"),
    ("model.d_model=???", "model.d_model: is missing: set it"),
    ("~budget", "budget: is missing: compose from conf/config.yaml or set it"),
    ("+data.sources.web={format:jsonl}", "data.sources.web.weight: is missing: set it"),
    ("~data.sources.code ~data.sources.text", "data.sources: {} holds too few values: it needs 1"),
    ("model.d_model=${data.tokenizr}", "model.d_model: Interpolation key 'data.tokenizr' not found"),
    ("train=5", "train: 5 should be a section of keys"),
    ("model.n_layers=four", "model.n_layers: 'four' should be a whole number"),
    ("model.n_layers=null", "model.n_layers: null should be a whole number"),
    ("model.n_layers=2e3", "model.n_layers: 2000.0 should be a whole number: write 2000"),
    ("model.n_layers=0", "model.n_layers: 0 should be greater than 0"),
    ("seed=-1", "seed: -1 should be greater than or equal to 0"),
    ("seed=0777", "seed: '0777' should be a whole number"),
    ("parallelism.recompute=yes", "parallelism.recompute: 'yes' should be true or false"),
    ("data_dir=5", "data_dir: 5 should be text"),
    ("optimizer.lr=true", "optimizer.lr: true should be a number"),
    ("optimizer.lr=atuo", "optimizer.lr: 'atuo' should be a number"),
    ("optimizer.lr=nan", "optimizer.lr: nan should be a finite number"),
    ("optimizer.weight_decay=inf", "optimizer.weight_decay: inf should be a finite number"),
    ("time_limit=24h", 'time_limit: \'24h\' is not a time: write "HH:MM:SS", "D-HH:MM:SS" or seconds'),
    ("time_limit=0", 'time_limit: 0 is not a time: write "HH:MM:SS", "D-HH:MM:SS" or seconds'),
    ("spikes.window=7", "spikes.window: 7 should be greater than or equal to 8"),
    ("optimizer.betas=0.9", "optimizer.betas: 0.9 should be a list, as in [a, b]"),
    ("optimizer.betas=[0.9]", "optimizer.betas: [0.9] holds too few values: it needs 2"),
    ("optimizer.betas=[0.9,0.95,0.99]", "optimizer.betas: [0.9, 0.95, 0.99] holds too many values: it takes 2"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas: 1.0 should be less than 1"),
    ("data.sources.code.weight=0", "data.sources.code.weight: 0 should be greater than 0"),
    ("data.sources.code.held_out=1", "data.sources.code.held_out: 1 should be less than or equal to 0.5"),
    (
        "task=tran",
        "task: 'tran' should be train, plan, prepare, inspect, download, generate, evaluate, export, import, sync, fit "
        "or predict; "
        "did you mean train?",
    ),
    ("kernels.backend=tritn", "kernels.backend: 'tritn' should be auto, torch or triton; did you mean triton?"),
    ("parallelism.device=gpu", "parallelism.device: 'gpu' should be cpu or cuda"),
    ("parallelism.zero_stage=0", "parallelism.zero_stage: 0 should be 1, 2 or 3"),
    ("parallelism.offload=cpu", "parallelism.offload: 'cpu' should be none or optimizer"),
    ("parallelism.micro_batch=many", "parallelism.micro_batch: 'many' should be a whole number"),
    ("slurm.minutes=0", "slurm.minutes: 0 should be greater than 0"),
    ("study.at_a_time=0", "study.at_a_time: 0 should be greater than 0"),
    ("fit.held_out=1", "fit.held_out: 1 should be less than 1"),
    ("hardware.mfu=0", "hardware.mfu: 0 should be greater than 0"),
    ("plan.mfu=1.2", "plan.mfu: 1.2 should be less than or equal to 1"),
    ("optimizer.name=adam", "optimizer.name: 'adam' should be adamw"),
    ("budget.tokens=lots", f"budget.tokens: 'lots' {COUNT}"),
    ("budget.tokens=22Bn", f"budget.tokens: '22Bn' {COUNT}"),
    ("budget.tokens=-5", f"budget.tokens: -5 {COUNT}"),
    ("budget.tokens=1.5", f"budget.tokens: 1.5 {COUNT}"),
    ("budget.tokens=nan", f"budget.tokens: nan {COUNT}"),
    ("budget.tokens=12:30:00", f"budget.tokens: '12:30:00' {COUNT}"),
    ("budget.tokens=0777", f"budget.tokens: '0777' {COUNT}"),
    ("budget.tokens=0", "budget.tokens: 0 should be greater than 0"),
    (
        "name=a/b",
        "name: 'a/b' is not a name: letters, digits, dots, dashes and underscores, the first a letter or a digit",
    ),
    (f"name={'a' * 81}", f"name: '{'a' * 81}' should have at most 80 characters"),
    ("data.tokenizer.sha256=abc", "data.tokenizer.sha256: 'abc' is not a sha256: 64 hex digits in lower case"),
    ("parallelism.rendezvous=node1", "parallelism.rendezvous: 'node1' is not host:port, as in node1:29400"),
]

BETWEEN = [
    (
        "model.n_heads=7",
        "model.n_heads: 7 does not divide model.d_model=128: every head is as wide\n"
        "model.n_kv_heads: 2 does not divide model.n_heads=7: every key-value head serves as many",
    ),
    ("model.n_heads=128", "model.n_heads: 128 makes heads of 1: rotary embedding needs an even size"),
    (
        "model.vocab_size=300",
        "model.vocab_size: 300 is smaller than data.tokenizer.vocab_size=4096: every token needs a row",
    ),
    (
        "data.tokenizer.vocab_size=4294967297",
        "data.tokenizer.vocab_size: 4294967297 does not fit the shards' uint32: at most 4294967296",
    ),
    (
        "budget=chinchilla budget.tokens=22_000_000_001",
        "budget: tokens=22000000001 and tokens_per_param=20.0 are set, exactly one may be: choose its option too, "
        "budget=tokens budget.tokens=22000000001, or take it back, budget.tokens=null",
    ),
    (
        "budget.epochs=3",
        "budget: tokens=1500000 and epochs=3.0 are set, exactly one may be: choose its option too, "
        "budget=epochs budget.epochs=3.0, or take it back, budget.epochs=null",
    ),
    (
        "budget.tokens=null",
        "budget: nothing says how long to train: set one of tokens, epochs, tokens_per_param, flops",
    ),
    (
        "schedule=wsd schedule.decay_fraction=null",
        "schedule.decay_fraction: wsd needs the fraction of the steps in which the rate falls, such as 0.2",
    ),
    (
        "schedule.decay_fraction=0.2",
        "schedule.decay_fraction: 0.2 means nothing to cosine: choose schedule=wsd",
    ),
    (
        "parallelism.nodes=2",
        "parallelism.rendezvous: 2 nodes need a host:port where they meet: "
        "parallelism.rendezvous=HOST_OF_FIRST_NODE:29400",
    ),
    (
        "parallelism.rendezvous=node1:29400",
        "parallelism.rendezvous: 'node1:29400' is for several nodes: set parallelism.nodes or leave it out",
    ),
    (
        "parallelism.nodes=2 parallelism.rendezvous=node1:65536",
        "parallelism.rendezvous: port 65536 does not exist: take one of 1 to 65535, such as 29400",
    ),
    (
        "parallelism.offload=optimizer",
        "parallelism.offload: optimizer moves it from a GPU to the machine's memory, and parallelism.device=cpu has it "
        "there: use none",
    ),
    (
        "parallelism=single parallelism.offload=optimizer",
        "parallelism.offload: optimizer at parallelism.zero_stage=1 leaves sums of all gradients on the GPU: set "
        "parallelism.zero_stage=2",
    ),
    (
        "study.at_a_time=2 study.per_gpu=2",
        "study.per_gpu: 2 jobs on a GPU, and parallelism.device=cpu has none: set study.at_a_time alone, or leave it 1",
    ),
    (
        "parallelism=zero1 study.at_a_time=2 study.per_gpu=2",
        "study.per_gpu: 2 jobs on a GPU, and each has 4: only jobs of one GPU share it, or leave it 1",
    ),
    (
        "parallelism=single study.launcher=slurm study.at_a_time=2 study.per_gpu=2",
        "study.per_gpu: 2 jobs on a GPU, and study.launcher=slurm gives each job GPUs of its own, or leave it 1",
    ),
    (
        "parallelism=single study.at_a_time=2 study.per_gpu=3",
        "study.per_gpu: 3 jobs on a GPU, and study.at_a_time=2 trains fewer at once: raise it, or leave it 1",
    ),
    (
        "data.sources.code.weight=natural",
        "data.sources.text.weight: 0.7 beside the natural weight of code: make all of them natural, or none",
    ),
    (
        "stages=[{tokens:1M,weights:{text:0},ramp:1K},{ramp:2M,tokens:1M,weights:{txt:1}}]",
        "stages.0.ramp: 1000: there is no stage before the first to come from, leave it out\n"
        "stages.0.weights: are all zero: give at least one source a share\n"
        "stages.1.tokens: 1000000: the last stage lasts until the budget ends, leave it out\n"
        "stages.1.ramp: 2000000 is longer than its stage of 1000000 tokens: shorten it\n"
        "stages.1.weights.txt: no such source; there is: text, code",
    ),
    (
        "stages=[{},{}]",
        "stages.0.tokens: is null: say how long it is, only the last stage lasts until the budget ends",
    ),
    (
        "prepare.parts=8 prepare.part=8",
        "prepare.part: 8 is none of 0 to 7: raise prepare.parts or choose one",
    ),
    (
        "data=slimpajama_starcoder data.sources.slimpajama.filter.not_in=null",
        "data.sources.slimpajama.filter: takes exactly one of in and not_in: say what to keep or to leave out",
    ),
    (
        "task=download",
        "data: stdlib has no source on a hub: set data.sources.NAME.hub, as in hub=OWNER/DATASET",
    ),
    (
        "task=download data=slimpajama_starcoder data.sources.starcoder.hub=null",
        "data.sources.slimpajama.raw: is null: say where its raw files are",
    ),
    (
        "+data.sources.code.hub=owner/set",
        "data.sources.code.hub: 'owner/set': format stdlib_code reads no files, leave it out",
    ),
    (
        "+data.sources.code.raw=/tmp",
        "data.sources.code.raw: '/tmp': format stdlib_code reads no files, leave it out",
    ),
    (
        "task=prepare data=slimpajama_starcoder data.sources.starcoder.raw=/tmp",
        "data.sources.slimpajama.raw: is null: say where its raw files are",
    ),
    (
        "experiment=tinyllama_v1 parallelism=single",
        "data.tokenizer.model: is null, and the tokenizer must hash to "
        "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347: say where that file is, or set "
        "data.tokenizer.sha256=null to train one",
    ),
    (
        "resume=force",
        "run_dir: is null, and resume=force goes on with a run that has changed: say which, run_dir=runs/NAME\n"
        "train.batch_tokens: is auto, which another budget may take to another batch: write the run's own, which is in "
        "its plan.json",
    ),
    (
        "resume=force run_dir=runs/one optimizer.lr=auto train.batch_tokens=8192",
        "optimizer.lr: is auto, which another budget may take to another rate: write the run's own, which is in its "
        "plan.json",
    ),
    (
        "checkpoint.keep_every=150",
        "checkpoint.keep_every: 150 is not a multiple of checkpoint.every=100: few of those steps would be saved",
    ),
    (
        "spikes.skip=[[8,16],[16,24]]",
        "spikes.skip: [16, 24]: write [first, end], first < end, in order, touching ones joined",
    ),
    (
        "resume=never study.launcher=slurm",
        "resume: never would start a job over each time that SLURM queues it: use auto, or another runs_dir",
    ),
    (
        "resume=never parallelism.nodes=2 parallelism.rendezvous=node1:29400",
        "resume: never is for one machine, and parallelism.nodes=2: choose another run_dir",
    ),
    (
        "tracking.experiment=Default",
        "tracking.experiment: Default would put its artifacts into ./mlruns: choose another name",
    ),
    ("task=generate", "generate.run: is null: say whose weights to use, as in generate.run=runs/NAME"),
    (
        "task=export",
        "export.run: is null: say whose weights to write, as in export.run=runs/NAME\n"
        "export.out: is null: say which folder to write, as in export.out=models/NAME",
    ),
    (
        "task=export export.run=runs/a export.out=a.gguf",
        "export.out: 'a.gguf' is named as a file for llama.cpp: set export.format=gguf too, or rename it",
    ),
    (
        "task=import hf.source=models/other",
        "hf.out: is null: say which run folder to write, as in hf.out=runs/NAME",
    ),
    (
        "generate.prompt=[] generate.stop=['']",
        "generate.prompt: holds no text: give one, or several, or '' to begin a document\n"
        "generate.stop: '' is in every text: leave it out",
    ),
    (
        "evaluate.every=100",
        "evaluate.every: 100 asks nothing: set evaluate.tasks, or evaluate=commonsense; train.eval_every measures "
        "held-out text",
    ),
    (
        "task=evaluate evaluate.held_out=false",
        "evaluate.run: is null: say whom to ask, as in evaluate.run=runs/NAME\n"
        "evaluate.held_out: is false and there are no evaluate.tasks: nothing is left to measure",
    ),
    (
        "kernels=triton",
        "kernels.backend: triton needs a GPU, and parallelism.device=cpu: choose parallelism=single or kernels=torch, "
        "or set TRITON_INTERPRET=1 to have the kernels interpreted, which is exact and very slow",
    ),
    (
        "kernels=torch kernels.attention=triton",
        "kernels.attention: triton comes with the Triton kernels, and kernels.backend=torch: use sdpa",
    ),
    (
        "task=plan kernels.compile=true parallelism.zero_stage=3",
        "kernels.compile: true needs whole parameters, and parallelism.zero_stage=3 shards them: use stage 2",
    ),
    (
        "budget=tokens_per_param budget.tokens_per_param=1e300",
        "budget.tokens_per_param: 1e+300 should be less than or equal to 1000000000000",
    ),
    (
        "kernels.compile=true parallelism.zero_stage=3",
        "kernels.compile: true needs whole parameters, and parallelism.zero_stage=3 shards them: use stage 2",
    ),
    ("train.eval_tokens=255", "train.eval_tokens: 255 is less than one sequence: use at least model.context=256"),
]

SECRETS = [
    ("tracking.uri=http://me:hunter2@host:5000", PASSWORD),
    ("tracking.uri=http://:hunter2@host:5000", PASSWORD),
    # SQLAlchemy reads a password up to the @, slashes included
    ("tracking.uri=postgresql+psycopg://me:hunter2/x@host/db", PASSWORD),
    ("tracking.uri='http://host/?password=hunter2'", PASSWORD),
    ("tracking.uri=[http://me:hunter2@host]", "tracking.uri: what is given should be text"),
    ("+tracking.password=hunter2", "tracking.password: no such key; see --cfg job for all that exist"),
]

TOGETHER = [
    (
        "seed=x model.n_layers=0 kernels.backend=tritn +train.lr=1e-3 +model.n_head=3 budget.epochs=3 "
        "schedule.decay_fraction=0.2",
        "seed: 'x' should be a whole number\n"
        "model.n_layers: 0 should be greater than 0\n"
        "model.n_head: no such key; did you mean model.n_heads?\n"
        "kernels.backend: 'tritn' should be auto, torch or triton; did you mean triton?\n"
        "train.lr: no such key; did you mean optimizer.lr?\n"
        "budget: tokens=1500000 and epochs=3.0 are set, exactly one may be: choose its option too, "
        "budget=epochs budget.epochs=3.0, or take it back, budget.epochs=null\n"
        "schedule.decay_fraction: 0.2 means nothing to cosine: choose schedule=wsd",
    ),
]

BAD = [*UNKNOWN, *TYPES_AND_VALUES, *BETWEEN, *SECRETS, *TOGETHER]


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What the gate says of every line, in a process of its own; and whether torch was imported there."""
    code = """
import json, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
from tests.config.test_bad_lines import BAD
from tinyllama.config import resolvers
from tinyllama.config.load import ConfigError, load
resolvers.register()
told = {}
with initialize_config_dir(str(Path("conf").absolute()), version_base="1.3"):
    for line, _ in BAD:
        try:
            told[line] = f"passed: {load(compose('config', overrides=line.split()))}"
        except ConfigError as error:
            told[line] = str(error)
told["imported torch"] = str("torch" in sys.modules)
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    read: dict[str, str] = json.loads(done.stdout)
    return read


@pytest.mark.parametrize(("line", "report"), BAD, ids=[line for line, _ in BAD])
def test_every_mistake_is_told(told: dict[str, str], line: str, report: str) -> None:
    assert told[line] == report


def test_refusing_needs_no_torch(told: dict[str, str]) -> None:
    assert told["imported torch"] == "False"


@pytest.mark.parametrize("line", [line for line, _ in SECRETS])
def test_no_password_is_repeated(composed: Callable[..., DictConfig], line: str) -> None:
    assert "hunter2" in line
    with pytest.raises(ConfigError) as refusal:
        load(composed(*line.split()))
    assert "hunter2" not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize(
    "uri",
    ["http://host:5000", "http://host:5000/a@b", "postgresql://me@host/db", "sqlite:///C:/a@b.db", "http://[::1]:5000"],
)
def test_addresses_without_a_password_pass(config: Callable[..., RunConfig], uri: str) -> None:
    assert config(f"tracking.uri='{uri}'").tracking.uri == uri


def test_rules_that_ask_the_size_alone_may_stay_where_a_run_is_forced(config: Callable[..., RunConfig]) -> None:
    line = ("resume=force", "run_dir=runs/one", "optimizer.lr=auto")
    assert config(*line, "schedule=wsd").train.batch_tokens == "auto"
    with pytest.raises(ConfigError):
        config(*line, "schedule=cosine")


@pytest.mark.parametrize(
    ("line", "library", "says"),
    [
        (
            "task=export export.run=runs/a export.out=a.gguf export.format=gguf",
            "gguf",
            "export.format: gguf needs the gguf package, which is not installed: pip install 'tinyllama[gguf]'",
        ),
        (
            "evaluate.tasks=[piqa]",
            "lm_eval",
            "evaluate.tasks: need lm-evaluation-harness, which is not installed: pip install 'tinyllama[eval]', or "
            "evaluate.tasks=[]",
        ),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, line: str, library: str, says: str
) -> None:
    load(composed(*line.split()))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == library else find(name, *rest))
    with pytest.raises(ConfigError) as refusal:
        load(composed(*line.split()))
    assert str(refusal.value) == says


def test_every_rule_has_a_bad_line(composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[str] = set()

    def recorded(rule: Callable[..., Broken]) -> Callable[..., Broken]:
        @functools.wraps(rule)
        def run(**sections: Any) -> Broken:
            for problem in rule(**sections):
                broken.add(rule.__name__)
                yield problem

        return run

    monkeypatch.setattr("tinyllama.config.rules.RULES", tuple(recorded(rule) for rule in RULES))
    for line, _ in [*BETWEEN, SECRETS[0]]:
        with pytest.raises(ConfigError):
            load(composed(*line.split()))
    assert broken == {rule.__name__ for rule in RULES}


def test_nothing_named_in_a_string_is_called(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(ConfigError) as refusal:
        load(composed(f"+canary={{_target_:os.mkdir,path:{made}}}"))
    assert str(refusal.value) == "canary: no such key; see --cfg job for all that exist"
    assert not made.exists()


def test_a_source_is_named_like_a_folder(config: Callable[..., RunConfig]) -> None:
    # Hydra's grammar lets no such name through, but a frozen config that was edited may hold one
    plain: dict[str, Any] = as_dict(config())
    plain["data"]["sources"]["../x"] = plain["data"]["sources"]["code"]
    with pytest.raises(ConfigError) as refusal:
        validate(plain)
    assert str(refusal.value) == (
        "data.sources: '../x' is not a name: letters, digits, dots, dashes and underscores, "
        "the first a letter or a digit"
    )


def test_what_the_interpreter_can_not_do_is_refused(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert config("kernels=triton").kernels.attention == "triton"
    for line, report in (
        ("kernels=triton train.precision=bf16", "train.precision: bf16 comes out wrong in Triton's interpreter"),
        ("parallelism=single", "kernels.backend: TRITON_INTERPRET=1 would interpret the kernels, GPU or not: unset it"),
    ):
        with pytest.raises(ConfigError) as refusal:
            config(*line.split())
        assert report in str(refusal.value)
    config("parallelism=single", "kernels=torch")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"kernels\.compile: true needs a C\+\+ compiler, and there is no no-such"):
        config("kernels.compile=true")
    config("kernels.compile=true", "parallelism=single", "kernels=torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"triton is not installed, .* use kernels=torch"):
        config("kernels=triton")
