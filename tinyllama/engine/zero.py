"""The one door to DeepSpeed: an engine that takes whole steps, and gives and takes its state by parameter name.

Its state is handed over as fp32 weights and both Adam moments by name (`TrainState`), which no ZeRO stage and no number
of ranks can be read off. Every run starts by taking a state, a fresh one too: DeepSpeed's bf16 optimizer takes a hidden
first step when it is built, weight decay included, and this undoes it.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyllama.config.schema import Optimizer, Parallelism
from tinyllama.engine.distributed import Ranks, sum_over_ranks
from tinyllama.model.llama import Llama

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TrainState:
    """All that a step leaves behind: fp32 tensors on the CPU by parameter name, and the steps taken."""

    step: int
    weights: Weights
    exp_avg: Weights
    exp_avg_sq: Weights

    @classmethod
    def fresh(cls, weights: Weights) -> TrainState:
        """Before the first step."""
        zeros = {name: torch.zeros(1).expand(weight.shape) for name, weight in weights.items()}
        return cls(0, weights, zeros, zeros)


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step measured."""

    loss: float
    """Mean over all tokens of the step, all ranks, in nats."""
    grad_norm: float
    """Global norm of the gradient before clipping."""


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or not a number."""


class Engine:
    """A model and its optimizer, sharded by DeepSpeed over the ranks."""

    def __init__(
        self,
        model: Llama,
        *,
        state: TrainState,
        parallelism: Parallelism,
        optimizer: Optimizer,
        precision: str,
        accumulation: int,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        """Build the engine and give it a state. The process group is started here where it is not yet.

        accumulation is that of the first steps; a step may come with another.
        """
        # set before the import, which looks for an accelerator: a CPU run must not find a GPU
        os.environ["DS_ACCELERATOR"] = device.type
        with _quiet():
            import deepspeed
            from deepspeed.ops import __compatible_ops__

            # gloo does the CPU ranks' work: DeepSpeed's own shared-memory op would be compiled at the first start,
            # and there may be no compiler
            __compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", dist_init_required=None)
            model.load_state_dict(state.weights)
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=_adamw(model, optimizer),
                config=_settings(parallelism, precision=precision, accumulation=accumulation, clip=optimizer.clip),
            )
        self.ranks = ranks
        self.device = device
        self._seat(state)

    def step(self, micro_batches: Tensor, *, lr: float) -> StepRecord:
        """Take one optimizer step on this rank's micro-batches, int64 [accumulation, sequences, context + 1].

        Raises NonFiniteError, on all ranks alike, where the loss is not finite (the weights are then as they were) or
        the gradient is not (the weights are then lost: go back to a checkpoint).
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        accumulation = len(micro_batches)
        if accumulation != self._engine.gradient_accumulation_steps():  # a stage with another batch
            micro_batch = self._engine.train_micro_batch_size_per_gpu()
            self._engine.set_train_batch_size(micro_batch * accumulation * self.ranks.world_size)
            self._engine.micro_steps = 0  # a step ends where this is a multiple of the accumulation
        self._engine.train()
        total = torch.zeros((), device=self.device)
        for index, sequences in enumerate(micro_batches):
            tokens = sequences.to(self.device, non_blocking=True)
            loss, _ = self._engine(tokens[:, :-1], tokens[:, 1:])
            total += loss.detach()
            self._engine.backward(loss)
            if index == accumulation - 1:
                mean = float(sum_over_ranks(total)) / (accumulation * self.ranks.world_size)
                if not math.isfinite(mean):
                    raise NonFiniteError(f"the loss is {mean}")
            self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient's norm is {norm}")
        return StepRecord(mean, norm)

    @torch.no_grad()
    def evaluate(self, tokens_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over the targets that count, and their number. Every rank has to call it equally often."""
        self._engine.eval()
        loss: tuple[Tensor, Tensor] = self._engine(tokens_bt.to(self.device), targets_bt.to(self.device))
        return loss

    def state(self, step: int) -> TrainState | None:
        """The state after `step` steps; None but on the first rank. Every rank has to call it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link()
        state = TrainState(step, {}, {}, {})
        for name, parameter in self._engine.module.named_parameters():
            # gathered from all ranks, one parameter at a time; only the first rank keeps it
            full = safe_get_full_fp32_param(parameter)
            moments = [safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")]
            if self.ranks.is_first:
                for target, tensor in zip(
                    (state.weights, state.exp_avg, state.exp_avg_sq), (full, *moments), strict=True
                ):
                    target[name] = tensor.detach().to("cpu", torch.float32, copy=True)
        return state if self.ranks.is_first else None

    def _seat(self, state: TrainState) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        optimizer = self._engine.optimizer
        inner = optimizer.optimizer
        # stage 3 keeps its flat shards beside the parameter groups, the others in them
        shards = getattr(optimizer, "fp32_partitioned_groups_flat", None) or [
            shard for group in inner.param_groups for shard in group["params"]
        ]
        inner.state.clear()
        for shard in shards:
            inner.state[shard] = {
                "step": torch.tensor(float(state.step), device=shard.device),
                "exp_avg": torch.zeros_like(shard),
                "exp_avg_sq": torch.zeros_like(shard),
            }
        self._link()
        for name, parameter in self._engine.module.named_parameters():
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
            for key, moments in (("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)):
                safe_set_full_optimizer_state(parameter, moments[name].to(self.device), key)

    def _link(self) -> None:
        """Let DeepSpeed find each parameter's moments: it does so once, after the first group's first step only."""
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()


def _adamw(model: Llama, optimizer: Optimizer) -> torch.optim.AdamW:
    """Matrices decay, norms do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": optimizer.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=True)


def _settings(parallelism: Parallelism, *, precision: str, accumulation: int, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration. Whatever it would default to and matters is written out."""
    return {
        "train_micro_batch_size_per_gpu": parallelism.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": parallelism.zero_stage},
        "bf16": {"enabled": precision == "bf16"},
        # sums of many bf16 gradients lose the small ones
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed reports its own start at length; only what goes wrong is of interest."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
