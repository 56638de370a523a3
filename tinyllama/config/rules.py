"""Rules between values: each reads the sections that it names and yields what is wrong with them."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from tinyllama.config.data import Data
from tinyllama.config.data_rules import DATA_RULES, Broken
from tinyllama.config.resilience import Checkpoint, Spikes
from tinyllama.config.schema import (
    Budget,
    Kernels,
    Model,
    Optimizer,
    Parallelism,
    Schedule,
    Tracking,
    Train,
)
from tinyllama.config.study import Study
from tinyllama.config.task_rules import TASK_RULES


def broken_rules(sections: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dotted key, message) of every broken rule whose sections are all in `sections`."""
    broken: list[tuple[str, str]] = []
    for rule in RULES:
        needs = inspect.signature(rule).parameters
        if needs.keys() <= sections.keys():
            broken += rule(**{name: sections[name] for name in needs})
    return broken


def heads_divide(model: Model) -> Broken:
    """Heads share the width evenly, key-value heads the query heads, and a rotary head has an even size."""
    if model.d_model % model.n_heads:
        yield "model.n_heads", f"{model.n_heads} does not divide model.d_model={model.d_model}: every head is as wide"
    elif model.head_dim % 2:
        yield "model.n_heads", f"{model.n_heads} makes heads of {model.head_dim}: rotary embedding needs an even size"
    if model.n_heads % model.n_kv_heads:
        yield (
            "model.n_kv_heads",
            f"{model.n_kv_heads} does not divide model.n_heads={model.n_heads}: every key-value head serves as many",
        )


def vocabulary_fits(model: Model, data: Data) -> Broken:
    """The embedding has a row for every token."""
    if data.tokenizer.vocab_size > model.vocab_size:
        yield (
            "model.vocab_size",
            f"{model.vocab_size} is smaller than data.tokenizer.vocab_size={data.tokenizer.vocab_size}: "
            "every token needs a row",
        )
    if data.tokenizer.vocab_size > 2**32:
        yield (
            "data.tokenizer.vocab_size",
            f"{data.tokenizer.vocab_size} does not fit the shards' uint32: at most {2**32}",
        )


def one_budget(budget: Budget) -> Broken:
    """Exactly one way to say how long."""
    ways = ("tokens", "epochs", "tokens_per_param", "flops")
    chosen = [way for way in ways if getattr(budget, way) is not None]
    if len(chosen) > 1:
        given = " and ".join(f"{way}={getattr(budget, way)}" for way in chosen)
        wanted = next((way for way in chosen if way != budget.name), chosen[0])
        remedy = f"choose its option too, budget={wanted} budget.{wanted}={getattr(budget, wanted)}"
        yield "budget", f"{given} are set, exactly one may be: {remedy}, or take it back, budget.{wanted}=null"
    if not chosen:
        yield "budget", f"nothing says how long to train: set one of {', '.join(ways)}"


def decay_belongs_to_wsd(schedule: Schedule) -> Broken:
    """decay_fraction is what wsd needs and what cosine has not."""
    if schedule.name == "wsd" and schedule.decay_fraction is None:
        yield "schedule.decay_fraction", "wsd needs the fraction of the steps in which the rate falls, such as 0.2"
    if schedule.name == "cosine" and schedule.decay_fraction is not None:
        yield "schedule.decay_fraction", f"{schedule.decay_fraction} means nothing to cosine: choose schedule=wsd"


def nodes_meet(task: str, parallelism: Parallelism, study: Study) -> Broken:
    """Launchers on several machines need a place to meet, which on SLURM the job finds; one alone needs none."""
    if task == "train" and study.launcher == "here" and parallelism.nodes > 1 and parallelism.rendezvous is None:
        yield (
            "parallelism.rendezvous",
            f"{parallelism.nodes} nodes need a host:port where they meet: "
            "parallelism.rendezvous=HOST_OF_FIRST_NODE:29400",
        )
    if parallelism.nodes == 1 and parallelism.rendezvous is not None:
        yield (
            "parallelism.rendezvous",
            f"{parallelism.rendezvous!r} is for several nodes: set parallelism.nodes or leave it out",
        )
    port = int((parallelism.rendezvous or ":1").rpartition(":")[2])
    if not 1 <= port <= 65535:
        yield "parallelism.rendezvous", f"port {port} does not exist: take one of 1 to 65535, such as 29400"


def offloading_saves_memory(parallelism: Parallelism) -> Broken:
    """The optimizer's state leaves a GPU for the machine's memory, and the gradients' sums must not stay behind."""
    if parallelism.offload == "none":
        return
    if parallelism.device == "cpu":
        yield (
            "parallelism.offload",
            "optimizer moves it from a GPU to the machine's memory, and parallelism.device=cpu has it there: use none",
        )
    elif parallelism.zero_stage == 1:
        yield (
            "parallelism.offload",
            "optimizer at parallelism.zero_stage=1 leaves sums of all gradients on the GPU: set "
            "parallelism.zero_stage=2",
        )


def jobs_can_share_a_gpu(study: Study, parallelism: Parallelism) -> Broken:
    """Jobs that share a GPU are of one rank each and are trained at once, on this machine."""
    if study.per_gpu == 1:
        return
    why_not = {
        "parallelism.device=cpu has none: set study.at_a_time alone": parallelism.device == "cpu",
        f"each has {parallelism.world_size}: only jobs of one GPU share it": parallelism.world_size > 1,
        "study.launcher=slurm gives each job GPUs of its own": study.launcher == "slurm",
        f"study.at_a_time={study.at_a_time} trains fewer at once: raise it": study.at_a_time < study.per_gpu,
    }
    for reason, holds in why_not.items():
        if holds:
            yield "study.per_gpu", f"{study.per_gpu} jobs on a GPU, and {reason}, or leave it 1"
            return


def a_requeued_job_goes_on(resume: str, study: Study) -> Broken:
    """A job on SLURM is the same command each time that it is queued again."""
    if resume == "never" and study.launcher == "slurm":
        yield (
            "resume",
            "never would start a job over each time that SLURM queues it: use auto, or another runs_dir",
        )


def kernels_can_run(task: str, kernels: Kernels, parallelism: Parallelism, train: Train) -> Broken:
    """Triton compiles for GPUs alone; its interpreter stands in for one, slowly and not in bf16."""
    if kernels.backend == "torch":
        if kernels.attention == "triton":
            yield "kernels.attention", "triton comes with the Triton kernels, and kernels.backend=torch: use sdpa"
        return
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if task != "train":
        return
    if parallelism.device == "cuda":
        if interpreted:
            yield "kernels.backend", "TRITON_INTERPRET=1 would interpret the kernels, GPU or not: unset it"
    elif kernels.backend == "triton":
        if importlib.util.find_spec("triton") is None:
            yield "kernels.backend", "triton is not installed, and there is none but for Linux: use kernels=torch"
        elif not interpreted:
            yield (
                "kernels.backend",
                "triton needs a GPU, and parallelism.device=cpu: choose parallelism=single or kernels=torch, or set "
                "TRITON_INTERPRET=1 to have the kernels interpreted, which is exact and very slow",
            )
        elif train.precision == "bf16":
            yield "train.precision", "bf16 comes out wrong in Triton's interpreter: use fp32"


def what_is_compiled_can_be(task: str, kernels: Kernels, parallelism: Parallelism) -> Broken:
    """torch.compile has the system's compiler build its CPU code, and sees no parameter that comes and goes."""
    if task not in ("train", "plan") or not kernels.compile:
        return
    if parallelism.zero_stage == 3:
        yield "kernels.compile", "true needs whole parameters, and parallelism.zero_stage=3 shards them: use stage 2"
    if task == "train" and parallelism.device == "cpu" and not shutil.which(compiler := os.environ.get("CXX", "g++")):
        yield (
            "kernels.compile",
            f"true needs a C++ compiler, and there is no {compiler}: install it, or name yours in CXX",
        )


def evaluation_holds_a_sequence(train: Train, model: Model) -> Broken:
    """An evaluation holds at least one sequence."""
    if train.eval_tokens < model.context:
        yield (
            "train.eval_tokens",
            f"{train.eval_tokens} is less than one sequence: use at least model.context={model.context}",
        )


# a password may hold slashes (SQLAlchemy reads up to the @); digits and a slash alone are a port, the @ part of a path
_PASSWORD = re.compile(r"://[^/@]*:(?!\d+/)[^@]*@|[?&](password|passwd|pwd|token|secret)=", re.IGNORECASE)


def nodes_start_over_together(resume: str, parallelism: Parallelism) -> Broken:
    """Setting a run aside is one launcher's work: several would each move what another has just begun."""
    if resume == "never" and parallelism.nodes > 1:
        yield "resume", f"never is for one machine, and parallelism.nodes={parallelism.nodes}: choose another run_dir"


def force_says_which_run(resume: str, run_dir: str | None) -> Broken:
    """A changed run has a folder of another name: force is for going on in one that is named."""
    if resume == "force" and run_dir is None:
        yield (
            "run_dir",
            "is null, and resume=force goes on with a run that has changed: say which, run_dir=runs/NAME",
        )


def force_keeps_what_it_began_with(resume: str, train: Train, optimizer: Optimizer, schedule: Schedule) -> Broken:
    """A run that goes on with another budget counts its samples by the batch that it began with, and its rate is not to
    jump unasked. With wsd both rules ask the model's size alone, which force cannot change."""
    if resume != "force" or schedule.name == "wsd":
        return
    automatic = {"train.batch_tokens": train.batch_tokens, "optimizer.lr": optimizer.lr}
    for (key, value), what in zip(automatic.items(), ("batch", "rate"), strict=True):
        if value == "auto":
            yield (
                key,
                f"is auto, which another budget may take to another {what}: write the run's own, which is in its "
                "plan.json",
            )


def kept_checkpoints_are_made(checkpoint: Checkpoint) -> Broken:
    """Only a step that is saved can be kept."""
    if checkpoint.keep_every and checkpoint.keep_every % checkpoint.every:
        yield (
            "checkpoint.keep_every",
            f"{checkpoint.keep_every} is not a multiple of checkpoint.every={checkpoint.every}: "
            "few of those steps would be saved",
        )


def skips_are_ranges(spikes: Spikes) -> Broken:
    """Samples to leave out are ranges in order that do not touch: one way to write each set."""
    before = -1
    for first, end in spikes.skip:
        if not before < first < end:
            yield (
                "spikes.skip",
                f"[{first}, {end}]: write [first, end], first < end, in order, touching ones joined",
            )
        before = end


def experiment_has_a_name(tracking: Any) -> Broken:
    """MLflow keeps the artifacts of its own default experiment in the working folder."""
    if tracking.experiment == "Default":
        yield "tracking.experiment", "Default would put its artifacts into ./mlruns: choose another name"


def secrets_stay_out(tracking: Tracking) -> Broken:
    """A password in a URI would be written into every run folder."""
    if tracking.uri and _PASSWORD.search(tracking.uri):
        yield (
            "tracking.uri",
            "holds a password, which run folders would keep: leave it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )


RULES: tuple[Callable[..., Broken], ...] = (
    heads_divide,
    vocabulary_fits,
    one_budget,
    decay_belongs_to_wsd,
    nodes_meet,
    offloading_saves_memory,
    jobs_can_share_a_gpu,
    a_requeued_job_goes_on,
    kernels_can_run,
    what_is_compiled_can_be,
    evaluation_holds_a_sequence,
    nodes_start_over_together,
    force_says_which_run,
    force_keeps_what_it_began_with,
    kept_checkpoints_are_made,
    skips_are_ranges,
    experiment_has_a_name,
    secrets_stay_out,
    *DATA_RULES,
    *TASK_RULES,
)
