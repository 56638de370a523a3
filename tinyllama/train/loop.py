"""The whole training loop. It receives built objects and constructs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from tinyllama.config.schema import RunConfig
from tinyllama.data.loader import Loader
from tinyllama.engine.zero import Engine
from tinyllama.evaluate.loss import Evaluator, SourceLoss
from tinyllama.plan.plan import Plan
from tinyllama.tracking.tracker import Tracker
from tinyllama.train.meter import Meter
from tinyllama.train.progress import TrainProgress
from tinyllama.train.schedule import learning_rate


def train(
    config: RunConfig,
    *,
    plan: Plan,
    start: int,
    engine: Engine,
    loader: Loader,
    evaluator: Evaluator,
    save: Callable[[int], None],
    tracker: Tracker,
    meter: Meter,
    progress: TrainProgress,
) -> dict[str, SourceLoss]:
    """Take the steps from `start` to the plan's last and measure what was learnt, on all held-out text.

    Every rank runs it alike. A step is the same whether the run came to it in one go or was stopped and resumed:
    its samples and its learning rate are functions of its number. Raises NonFiniteError.
    """
    ranks, cadence = engine.ranks, config.train
    for step in range(start, plan.steps):
        began = time.perf_counter()
        lr = learning_rate(step, steps=plan.steps, peak=config.optimizer.lr, schedule=config.schedule)
        sequences = plan.sequences_of(step)
        batch = loader.batch(
            sequences, rank=ranks.rank, world=ranks.world_size, micro_batch=config.parallelism.micro_batch
        )
        record = engine.step(torch.from_numpy(batch), lr=lr)
        meter.add(time.perf_counter() - began, tokens=len(sequences) * plan.context)

        done = step + 1
        tokens = plan.tokens_by(done)
        progress.step(done)
        if done % cadence.log_every == 0 or done == plan.steps or step == start:
            rates = meter.read()
            tracker.tell(
                "train",
                step=done,
                tokens=tokens,
                loss=record.loss,
                lr=lr,
                grad_norm=record.grad_norm,
                tokens_per_s=rates.tokens_per_s,
                mfu=rates.mfu,
            )
            progress.rates(done, record.loss, rates)
        if done % cadence.eval_every == 0 or done == plan.steps:
            measured = evaluator.measure(max_tokens=cadence.eval_tokens)
            _tell("eval", measured, tracker, progress, step=done, tokens=tokens)
        if done % config.checkpoint.every == 0 or done == plan.steps:
            save(done)
            tracker.tell("checkpoint", step=done)
    measured = evaluator.measure()
    _tell("held_out", measured, tracker, progress, step=plan.steps, tokens=plan.tokens)
    return measured


def _tell(
    kind: str,
    measured: dict[str, SourceLoss],
    tracker: Tracker,
    progress: TrainProgress,
    *,
    step: int,
    tokens: int,
) -> None:
    tracker.tell(
        kind,
        step=step,
        tokens=tokens,
        losses={name: source.loss for name, source in measured.items()},
        bits_per_byte={name: source.bits_per_byte for name, source in measured.items()},
    )
    seen = (f"{name} {source.loss:.3f} ({source.bits_per_byte:.3f} bits/byte)" for name, source in measured.items())
    progress.say(f"step {step}: {kind} loss  {'  '.join(seen)}")
