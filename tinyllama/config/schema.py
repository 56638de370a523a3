"""Every knob of a run: frozen dataclasses, one per config group, one docstring a field.

The values live in `conf/`; this file says what each one means and what it may be. `config.load` turns a composed
configuration into a `RunConfig` or refuses it; nothing else in the program sees an unchecked value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tinyllama.config.data import Data, Inspect, Prepare
from tinyllama.config.kinds import (
    Address,
    Count,
    Multiple,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seconds,
    Section,
    Share,
)
from tinyllama.config.resilience import Checkpoint, Spikes
from tinyllama.config.study import Slurm, Study
from tinyllama.config.tasks import Evaluate, Export, Fitting, Generate, HuggingFace, Predict, Sync

# fmt: off
Task = Literal[
    "train", "plan", "prepare", "inspect", "download", "generate", "evaluate", "export", "import", "sync", "fit",
    "predict",
]
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The shape of a Llama-2-style decoder: pre-norm RMSNorm, RoPE, SwiGLU, grouped-query attention, untied head."""

    name: Name
    """What runs and tables call it. Options are named for their parameter count at Llama's vocabulary of 32,000."""
    vocab_size: PositiveInt
    """Rows of the embedding and of the output matrix; at least the tokenizer's."""
    context: PositiveInt
    """Tokens in a training sequence."""
    d_model: PositiveInt
    """Width of the residual stream."""
    n_layers: PositiveInt
    """Decoder blocks."""
    n_heads: PositiveInt
    """Query heads; the head size is d_model / n_heads."""
    n_kv_heads: PositiveInt
    """Key-value heads, each shared by n_heads / n_kv_heads query heads."""
    d_ff: PositiveInt
    """Width of the SwiGLU."""
    rope_theta: PositiveFloat
    """Base of the rotary frequencies."""
    norm_eps: PositiveFloat
    """Added to the mean square in RMSNorm."""

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True)
class Budget(Section):
    """How long to train: exactly one of four ways to say it."""

    name: Name
    """What the tracker's compare view groups by."""
    tokens: Count | None
    """Training tokens; the steps are rounded up."""
    epochs: Multiple | None
    """Times the unique training tokens of all sources together."""
    tokens_per_param: Multiple | None
    """Times the parameters, embeddings included; Chinchilla-optimal is about 20 (arXiv 2203.15556)."""
    flops: Count | None
    """Training compute C = 6 N D with N all parameters (arXiv 2203.15556)."""


@dataclass(frozen=True, kw_only=True)
class Stage(Section):
    """A stretch of a run with a mixture or a batch of its own."""

    tokens: Count | None = None
    """How long it is, rounded up to whole steps; null for the last, which lasts until the budget ends."""
    weights: dict[Name, NonNegativeFloat] | None = None
    """Each source's share in it, relative; a source that is left out gives nothing. Null takes the sources' own."""
    ramp: Count | None = None
    """Tokens at its start in which the shares go linearly from the stage before's to its own; null changes at once."""
    batch_tokens: Count | None = None
    """Tokens in one of its optimizer steps; null takes train.batch_tokens."""


@dataclass(frozen=True, kw_only=True)
class Parallelism(Section):
    """Where the ranks are and what they share. It may change when a run is resumed: a run's
    identity holds none of it but the precision, which follows the device unless it is set."""

    name: Name
    """What tables call it."""
    device: Literal["cpu", "cuda"]
    """Where the model lives."""
    nodes: PositiveInt
    """Machines; the same command is started on each."""
    gpus: PositiveInt
    """Ranks a machine: GPUs, or processes where device is cpu."""
    rendezvous: Address | None
    """host:port where the launchers of several machines meet; null for one machine."""
    zero_stage: Literal[1, 2, 3]
    """What is sharded over the ranks: 1 optimizer state, 2 also gradients, 3 also parameters (arXiv 1910.02054)."""
    offload: Literal["none", "optimizer"] = "none"
    """optimizer: its state lies in the machine's memory and the processor takes its step (arXiv 2101.06840)."""
    micro_batch: PositiveInt | Literal["auto"]
    """Sequences a rank takes through the model at once; auto takes the most that the plan says fit."""
    recompute: bool
    """Recompute each block's activations in the backward pass instead of keeping them."""
    threads: PositiveInt | None
    """CPU threads a rank; null shares the machine's cores evenly."""
    max_restarts: NonNegativeInt
    """Times the launcher starts the ranks again, from the newest checkpoint, after one of them has died."""
    hang_after: Seconds
    """Time without a sign of life from a rank after which all stacks are written down and the ranks are ended."""

    @property
    def world_size(self) -> int:
        """Ranks over all machines."""
        return self.nodes * self.gpus


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """AdamW (arXiv 1711.05101), decaying matrices and leaving norms alone."""

    name: Literal["adamw"]
    """The algorithm."""
    lr: PositiveFloat | Literal["auto"]
    """Peak learning rate; auto follows the run's compute (plan.hyperparameters)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """Decay of the first and of the second moment."""
    eps: PositiveFloat
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay."""
    clip: PositiveFloat
    """Largest global norm of the gradient."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """The learning rate over the steps: linear warmup, then a cosine or a plateau with a linear decay."""

    name: Literal["cosine", "wsd"]
    """cosine, or wsd: warmup, stable, decay (arXiv 2404.06395)."""
    warmup_steps: NonNegativeInt
    """Steps of linear warmup, in steps so that budgets can share a trunk."""
    min_ratio: Share
    """Final learning rate over the peak."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None
    """wsd only: the last part of the steps, in which the rate falls linearly."""


@dataclass(frozen=True, kw_only=True)
class Kernels(Section):
    """Which implementation the model's blocks run on."""

    backend: Literal["auto", "torch", "triton"]
    """torch: plain PyTorch; triton: our own kernels, on a GPU or in Triton's interpreter; auto: triton on a GPU, torch
    on a CPU."""
    attention: Literal["triton", "sdpa"]
    """Whose attention goes with the Triton kernels: ours, or PyTorch's scaled_dot_product_attention."""
    compile: bool = False
    """Have torch.compile fuse what a training step does beside them, at the first step."""


@dataclass(frozen=True, kw_only=True)
class Hardware(Section):
    """What one GPU can do, for MFU and plans."""

    name: Name
    """What tables call it."""
    peak_tflops: PositiveFloat | None
    """Dense bf16 matmul peak; null measures this device's own matmul rate when training starts."""
    memory_gb: Multiple | None
    """Memory of one GPU, in 10^9 bytes."""
    price_per_hour: PositiveFloat | None
    """US dollars for one GPU for one hour."""
    watts: PositiveFloat | None
    """Power of one GPU under load, from its data sheet."""
    mfu: Annotated[float, Field(gt=0, le=1)] | None
    """MFU to plan with where none has been measured, 6N without the input embedding and with causal attention."""
    mfu_source: str | None
    """Where that MFU was reached."""


@dataclass(frozen=True, kw_only=True)
class Tracking(Section):
    """Where a run's story goes. The journal in the run folder is always written."""

    name: Literal["mlflow", "journal"]
    """mlflow adds an MLflow run that mirrors the journal."""
    uri: str | None
    """The MLflow store; null is a SQLite file in runs_dir."""
    experiment: str
    """The MLflow experiment."""


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The batch and the loop's cadence."""

    batch_tokens: Count | Literal["auto"]
    """Tokens in one optimizer step, over all ranks and accumulation; auto follows the run's compute
    (plan.hyperparameters)."""
    precision: Literal["fp32", "bf16"]
    """Of the model's arithmetic; the optimizer always keeps fp32."""
    mask_documents: bool
    """Let each token attend within its own document only; without it, to all that stands before it in the sequence."""
    log_every: PositiveInt
    """Steps between two lines of the journal."""
    eval_every: PositiveInt
    """Steps between two evaluations."""
    eval_tokens: Count
    """Held-out tokens per source in an evaluation during training; the last one takes them all."""


@dataclass(frozen=True, kw_only=True)
class Planning(Section):
    """How a plan is made, and what it decides."""

    strict: bool
    """Refuse to train what does not fit into the memory; without it, only say so."""
    mfu: Annotated[float, Field(gt=0, le=1)] | None
    """MFU to plan with; null takes what earlier runs measured here, or the hardware's."""
    inference_tokens: Count | None
    """Tokens that the model will be asked for after training: the plan says which size and length serve them with the
    least compute in all."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """One run, whole and checked."""

    name: Name
    """Names the run folder, with the digest."""
    task: Task
    """What to do."""
    seed: NonNegativeInt
    """Of the initialisation and of the data order."""
    runs_dir: str
    """Where run folders and the tracker's SQLite file are."""
    run_dir: str | None
    """This run's folder; null names it by the digest under runs_dir."""
    data_dir: str
    """Where prepared data sets are."""
    resume: Literal["auto", "never", "force"]
    """auto goes on from the run folder's newest checkpoint; never sets an earlier run aside and starts over; force goes
    on although the run in run_dir was another, with a changed rate or budget for one."""
    time_limit: Seconds | None
    """Time after which the run saves, stops and says so by its exit status, as for a signal; null has none."""
    init_from: str | None
    """Folder of a run whose weights to start from; null starts from random ones."""
    stages: tuple[Stage, ...]
    """Stretches of the run, in order, each with a mixture or a batch of its own; none is one with the sources' own."""
    model: Model
    data: Data
    budget: Budget
    parallelism: Parallelism
    optimizer: Optimizer
    schedule: Schedule
    kernels: Kernels
    hardware: Hardware
    tracking: Tracking
    train: Train
    checkpoint: Checkpoint
    spikes: Spikes
    plan: Planning
    prepare: Prepare
    inspect: Inspect
    generate: Generate
    evaluate: Evaluate
    export: Export
    hf: HuggingFace
    sync: Sync
    study: Study
    slurm: Slurm
    fit: Fitting
    predict: Predict
