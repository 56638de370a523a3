"""What the engine's tests run on real ranks: `torchrun ... ranks.py OUT` writes what each comparison measured.

The slow twin is a plain PyTorch loop over the whole batch in one process, with the same AdamW.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tests.model.tiny import SHAPE
from tinyllama import kernels
from tinyllama.config.schema import Optimizer, Parallelism
from tinyllama.engine.distributed import Ranks, leave, meet, use_device
from tinyllama.engine.zero import Engine, TrainState
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

ADAMW = Optimizer(name="adamw", lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
LAYOUT = Parallelism(
    name="test",
    device="cpu",
    nodes=1,
    gpus=1,
    rendezvous=None,
    zero_stage=1,
    micro_batch=2,
    recompute=False,
    threads=1,
    max_restarts=0,
    hang_after=600,
)
Offload = Literal["none", "optimizer"]
STEPS, SEQUENCES = 20, 8
GROWS = 5
"""The step from which on a batch has twice as many sequences."""


def batches(steps: range) -> list[Tensor]:
    """The sequences of each step, [sequences, context + 1], the same on all ranks."""
    return [
        torch.randint(
            SHAPE.vocab_size,
            (SEQUENCES * (1 + (step >= GROWS)), SHAPE.context + 1),
            generator=torch.Generator().manual_seed(step),
        )
        for step in steps
    ]


def mine(batch: Tensor, ranks: Ranks) -> Tensor:
    """This rank's micro-batches, [accumulation, micro_batch, context + 1]; one rank accumulates twice as often."""
    micro_batches = batch.view(-1, ranks.world_size, LAYOUT.micro_batch, SHAPE.context + 1)
    return micro_batches[:, ranks.rank]


def rate(step: int) -> float:
    return ADAMW.lr * (step + 1) / STEPS


def engine(
    ranks: Ranks,
    state: TrainState,
    *,
    stage: int,
    precision: str = "fp32",
    recompute: bool = False,
    offload: Offload = "none",
) -> Engine:
    return Engine(
        Llama(SHAPE, ops=kernels.TORCH, recompute=recompute),
        state=state,
        parallelism=replace(LAYOUT, zero_stage=stage, offload=offload),  # type: ignore[arg-type]
        optimizer=ADAMW,
        precision=precision,
        accumulation=SEQUENCES // (LAYOUT.micro_batch * ranks.world_size),
        ranks=ranks,
        device=torch.device("cpu"),
    )


def plain(weights: dict[str, Tensor], *, precision: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and final weights of the plain loop: fp32 weights, of which bf16 arithmetic sees a rounded copy."""
    master = Llama(SHAPE, ops=kernels.TORCH)
    master.load_state_dict(weights)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in master.parameters() if p.ndim > 1], "weight_decay": ADAMW.weight_decay},
            {"params": [p for p in master.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=ADAMW.betas,
        eps=ADAMW.eps,
    )
    losses = []
    for step, batch in enumerate(batches(range(STEPS))):
        worker = copy.deepcopy(master).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        loss, _ = worker(batch[:, :-1], batch[:, 1:])
        loss.backward()
        for parameter, low in zip(master.parameters(), worker.parameters(), strict=True):
            assert low.grad is not None
            parameter.grad = low.grad.float()
        torch.nn.utils.clip_grad_norm_(master.parameters(), ADAMW.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: parameter.detach() for name, parameter in master.named_parameters()}


def captured(one: Engine, step: int) -> TrainState:
    """The whole state: all ranks' shares put together."""
    parts: dict[str, dict[str, Tensor]] = {}
    for part, share in one.shares():
        shares: list[dict[str, Tensor]] = [{} for _ in range(one.ranks.world_size)]
        dist.all_gather_object(shares, share)
        assert sum(map(len, shares)) == len({name for share in shares for name in share}), "each has one owner"
        parts[part] = {name: tensor for share in shares for name, tensor in share.items()}
    return TrainState(step, **parts)


def run(one: Engine, steps: range, *, drop: bool = False) -> list[float]:
    """Losses of these steps; `drop` lets one rank repeat its first micro-batch in place of its second."""
    losses = []
    for step, batch in zip(steps, batches(steps), strict=True):
        micro_batches = mine(batch, one.ranks)
        if drop and one.ranks.is_first:
            micro_batches = micro_batches[:1].expand_as(micro_batches)
        losses.append(one.step(micro_batches, lr=rate(step)).loss)
    return losses


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> float:
    """The largest relative norm of the difference over all tensors; relative to the way from `start`, if given."""
    return max(
        ((ours[name] - other).norm() / (other - start[name] if start else other).norm()).item()
        for name, other in theirs.items()
    )


def against_plain(ranks: Ranks, weights: dict[str, Tensor]) -> dict[str, object]:
    """Every stage and precision beside the plain loop, and one deliberate mistake."""
    found: dict[str, object] = {}
    for precision in ("fp32", "bf16"):
        losses, final = plain(weights, precision=precision)
        for stage, drop in ((1, False), (2, False), (3, False), (1, True)):
            if drop and precision == "bf16":
                continue
            trained = engine(ranks, TrainState.fresh(weights), stage=stage, precision=precision)
            ours = run(trained, range(STEPS), drop=drop)
            state = captured(trained, STEPS)
            found[f"{precision} stage {stage}" + (" dropped" if drop else "")] = {
                "loss": max(abs(a - b) / b for a, b in zip(ours, losses, strict=True)),
                "weights": worst(state.weights, final),
                "moved": worst(state.weights, final, start=weights),
            }
    return found


def resumed(ranks: Ranks, weights: dict[str, Tensor]) -> dict[str, object]:
    """Stopped and resumed against uninterrupted: twice at each stage, and from each stage to another."""
    found: dict[str, object] = {}
    finals = {}
    for precision in ("fp32", "bf16"):
        for stage in (1, 2, 3):
            whole = engine(ranks, TrainState.fresh(weights), stage=stage, precision=precision)
            losses = run(whole, range(9))
            state = TrainState.fresh(weights)
            parts = []
            for steps in (range(3), range(3, 6), range(6, 9)):
                part = engine(ranks, state, stage=stage, precision=precision)
                parts += run(part, steps)
                state = captured(part, steps.stop)
            end = captured(whole, 9)
            finals[precision, stage] = end
            same = [torch.equal(end.weights[n], state.weights[n]) for n in weights]
            same += [torch.equal(end.exp_avg_sq[n], state.exp_avg_sq[n]) for n in weights]
            found[f"{precision} stage {stage} bit for bit"] = losses == parts and all(same)
    for stage, other in ((1, 2), (2, 3), (3, 1)):
        first = engine(ranks, TrainState.fresh(weights), stage=stage)
        run(first, range(5))
        middle = captured(first, 5)
        second = engine(ranks, middle, stage=other)
        run(second, range(5, 9))
        end = captured(second, 9)
        found[f"stage {stage} to {other}"] = worst(end.weights, finals["fp32", stage].weights)
    return found


def equal(one: TrainState, other: TrainState) -> bool:
    """Bit for bit."""
    return all(
        torch.equal(getattr(one, part)[name], getattr(other, part)[name])
        for part in ("weights", "exp_avg", "exp_avg_sq")
        for name in one.weights
    )


@contextmanager
def poisoned(one: Engine, ranks: Ranks) -> Iterator[None]:
    """Within, one gradient of the last rank is not a number, while all losses are finite."""
    last = ranks.rank == ranks.world_size - 1
    norm = dict(one._engine.module.named_parameters())["norm.weight"]
    hook = norm.register_hook(lambda grad: torch.full_like(grad, torch.nan)) if last else None
    yield
    if hook:
        hook.remove()


def guarded(ranks: Ranks, weights: dict[str, Tensor]) -> dict[str, object]:
    """Refused steps leave no trace, a state can be taken back in mid-run, and recomputation changes nothing."""
    found: dict[str, object] = {}
    for precision in ("fp32", "bf16"):
        for stage in (1, 2, 3):
            key = f"{precision} stage {stage}"
            one = engine(ranks, TrainState.fresh(weights), stage=stage, precision=precision)
            losses = run(one, range(2))
            before = captured(one, 2)
            sequences = mine(batches(range(2, 3))[0], ranks)
            refusals = [one.step(sequences, lr=rate(2), ceiling=1e-3, votes=[1.0, ranks.rank])]
            with poisoned(one, ranks):
                refusals.append(one.step(sequences, lr=rate(2)))
            found[f"{key} refused"] = [record.refused for record in refusals]
            found[f"{key} votes"] = refusals[0].votes
            found[f"{key} untouched"] = equal(before, captured(one, 2))
            losses += run(one, range(2, 6))
            one.seat(before)
            again = run(one, range(2, 6))
            found[f"{key} taken back"] = again == losses[2:]
            fresh = engine(ranks, TrainState.fresh(weights), stage=stage, precision=precision)
            found[f"{key} as if never"] = run(fresh, range(6)) == losses and equal(captured(fresh, 6), captured(one, 6))
    for stage in (1, 3):
        kept = run(engine(ranks, TrainState.fresh(weights), stage=stage), range(3))
        again = run(engine(ranks, TrainState.fresh(weights), stage=stage, recompute=True), range(3))
        found[f"recompute stage {stage}"] = max(abs(a - b) for a, b in zip(kept, again, strict=True))
    return found


def main() -> None:
    ranks = Ranks.from_environment()
    meet(use_device("cpu", ranks, threads=1, ranks_here=1), patience=60)
    weights = initial_weights(Llama(SHAPE, ops=kernels.TORCH), seed=1)
    found = against_plain(ranks, weights) | guarded(ranks, weights)
    if ranks.world_size == 1:
        found |= resumed(ranks, weights)
    if ranks.is_first:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=2))
    leave()


if __name__ == "__main__":
    main()
