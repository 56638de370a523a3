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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyllama.config.schema import Optimizer, Parallelism
from tinyllama.engine.distributed import Ranks, kept_alive, share_out, sum_over_ranks
from tinyllama.engine.room import BYTES
from tinyllama.engine.settings import settings
from tinyllama.model.llama import Llama

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TrainState:
    """All that a step leaves behind: fp32 tensors on the CPU by parameter name, and the steps taken."""

    step: int
    weights: Mapping[str, Tensor]
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]

    @classmethod
    def fresh(cls, weights: Mapping[str, Tensor]) -> TrainState:
        """Before the first step."""
        zeros = {name: torch.zeros(1).expand(weight.shape) for name, weight in weights.items()}
        return cls(0, weights, zeros, zeros)


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step measured."""

    loss: float
    """Mean over all tokens of the step, all ranks, in nats."""
    grad_norm: float
    """Global norm of the gradient before clipping; infinite where the step was refused."""
    votes: tuple[float, ...]
    """The sums over ranks of what each rank voted."""

    @property
    def refused(self) -> bool:
        """Whether the step was not taken: weights and moments are bit for bit as before."""
        return not math.isfinite(self.grad_norm)


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
        beat: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Build the engine and give it a state. The process group has to be there (`distributed.meet`).

        accumulation is that of the first steps; a step may come with another. beat is called after each piece of
        work, after a step with how many have been taken.
        """
        deepspeed = import_deepspeed(device.type)
        with _quiet():
            deepspeed.init_distributed(dist_init_required=False)
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=_adamw(model, optimizer),
                config=settings(
                    parallelism,
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    precision=precision,
                    accumulation=accumulation,
                    clip=optimizer.clip,
                ),
            )
        self.ranks = ranks
        self.device = device
        self.beat = beat
        self._compiles = model.compiled
        self.seat(state)

    def step(
        self, micro_batches: Tensor, *, lr: float, ceiling: float = math.inf, votes: Sequence[float] = ()
    ) -> StepRecord:
        """Take one optimizer step on this rank's micro-batches, int64 [accumulation, sequences, context + 1].

        It is refused, on all ranks alike, where the loss over all ranks is above the ceiling or not finite, or where
        the gradient is not. votes are summed over the ranks on the way, in the sum that the loss needs anyway.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        accumulation = len(micro_batches)
        if accumulation != self._engine.gradient_accumulation_steps():  # a stage with another batch
            micro_batch = self._engine.train_micro_batch_size_per_gpu()
            self._engine.set_train_batch_size(micro_batch * accumulation * self.ranks.world_size)
            self._engine.micro_steps = 0  # a step ends where this is a multiple of the accumulation
        self._engine.train()
        totals = torch.tensor([0.0, *votes], device=self.device)
        for index, sequences in enumerate(micro_batches):
            tokens = sequences.to(self.device, non_blocking=True)
            with kept_alive(self.beat) if self._compiles else nullcontext():
                loss, _ = self._engine(tokens[:, :-1], tokens[:, 1:])
                self._engine.backward(loss)
            self._compiles = False
            totals[0] += loss.detach()
            self.beat()
            if index == accumulation - 1:
                total, *voted = sum_over_ranks(totals).tolist()
                mean = total / (accumulation * self.ranks.world_size)
                if not mean <= ceiling or not math.isfinite(mean):
                    self._spoil()
            self._engine.step()
        record = StepRecord(mean, float(self._engine.get_global_grad_norm()), tuple(voted))
        self._taken += not record.refused
        if record.refused:  # the sums of an offloaded optimizer's gradients would be added to at the next step
            getattr(self._engine.optimizer, "averaged_gradients", {}).clear()
        self.beat(self._taken)
        return record

    @torch.no_grad()
    def evaluate(self, tokens_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over the targets that count, and their number. Every rank has to call it equally often."""
        self._engine.eval()
        loss: tuple[Tensor, Tensor] = self._engine(tokens_bt.to(self.device), targets_bt.to(self.device))
        self.beat()
        return loss

    @torch.no_grad()
    def logits(self, tokens_bt: Tensor) -> Tensor:
        """Logits [b, t, v] of every position. Every rank has to call it equally often."""
        self._engine.eval()
        logits: Tensor = self._engine(tokens_bt.to(self.device))
        self.beat()
        return logits

    def shares(self) -> Iterator[tuple[str, Weights]]:
        """This rank's share of the weights, then of each moment: fp32 on the CPU by parameter name.

        The ranks' shares together are the whole state, each about as large. Every rank has to take them all: parameters
        are gathered from all ranks one at a time, and kept by the rank whose share they are.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link()
        _, owners = self._owners()
        for part in ("weights", "exp_avg", "exp_avg_sq"):
            share = {}
            for name, parameter in self._engine.module.named_parameters():
                if part == "weights":
                    full = safe_get_full_fp32_param(parameter)
                else:
                    full = safe_get_full_optimizer_state(parameter, part)
                if owners[name] == self.ranks.rank:
                    # pinned, a GPU's copy takes a tenth of the time, and torch keeps the memory for the next one
                    kept = torch.empty(full.shape, dtype=torch.float32, pin_memory=self.device.type == "cuda")
                    share[name] = kept.copy_(full.detach())
                self.beat()
            yield part, share

    @property
    def share_bytes(self) -> int:
        """The largest rank's share of a state, in bytes."""
        sizes, owners = self._owners()
        return BYTES * max(sum(sizes[name] for name in sizes if owners[name] == rank) for rank in set(owners.values()))

    def _owners(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many numbers each parameter has, and which rank keeps it."""
        sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in self._engine.module.named_parameters()}
        return sizes, share_out(sizes, self.ranks.world_size)

    def _spoil(self) -> None:
        """Let the gradient be not a number, so that DeepSpeed leaves this step out and clears what belongs to it."""
        from deepspeed.utils import safe_set_full_grad

        optimizer = self._engine.optimizer
        if flat := getattr(optimizer, "fp32_groups_gradients_flat", None):  # bf16 at stage 1 keeps them elsewhere
            flat[0].fill_(math.nan)
            return
        if norms := getattr(optimizer, "norm_for_param_grads", None):  # offloaded, they are taken as gradients leave
            first = next(iter(norms))
            norms[first] = torch.full_like(norms[first], math.nan)
            return
        smallest = min(self._engine.module.parameters(), key=lambda p: getattr(p, "ds_numel", p.numel()))
        shape = getattr(smallest, "ds_shape", smallest.shape)
        safe_set_full_grad(smallest, torch.full(shape, math.nan, device=self.device))

    @torch.no_grad()
    def seat(self, state: TrainState) -> None:
        """Take a state in place of the present one. Every rank has to call it."""
        from deepspeed import zero
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._taken = state.step
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
            weight = state.weights[name].to(self.device)
            # what the model computes with, rounded where that is bf16, and then what the optimizer keeps
            with zero.GatheredParameters(parameter, modifier_rank=0):
                parameter.copy_(weight)
            safe_set_full_fp32_param(parameter, weight)
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
    # each step has a rate of its own
    return torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)


def import_deepspeed(device: str) -> Any:
    """DeepSpeed, for a kind of device. The first time takes seconds."""
    os.environ["DS_ACCELERATOR"] = device  # before the import, which looks for one: a CPU run must not find a GPU
    with _quiet():
        import deepspeed
        from deepspeed.ops import __compatible_ops__
        from deepspeed.runtime import compiler

        # gloo does the CPU ranks' work: DeepSpeed's own shared-memory op would be compiled at the first start, and
        # there may be no compiler
        __compatible_ops__["deepspeed_shm_comm"] = False
        # `initialize` looks for Muon, which no run here takes, and to have it compiled loads all of inductor: a fifth
        # of what there is to import before a first step
        compile_, compiler.compile = compiler.compile, lambda: lambda function: function
        try:
            with suppress(ImportError):  # it may move: a start is longer then
                import deepspeed.runtime.zero.muon.original_muon
        finally:
            compiler.compile = compile_
    return deepspeed


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed reports its own start at length; only what goes wrong is of interest."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
