"""The whole training loop. It receives built objects and constructs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch

from tinyllama.config.schema import RunConfig
from tinyllama.data.loader import Loader
from tinyllama.engine.saving import Saver
from tinyllama.engine.zero import Engine
from tinyllama.evaluate.exam import Exam
from tinyllama.evaluate.loss import Evaluator, Interrupted, SourceLoss
from tinyllama.plan.plan import Plan
from tinyllama.tracking.tracker import Tracker
from tinyllama.train.meter import Meter
from tinyllama.train.progress import TrainProgress
from tinyllama.train.recovery import Recovery
from tinyllama.train.schedule import learning_rate


class Votes(NamedTuple):
    """What ranks tell each other at every step, in the sum that the loss needs anyway: how many of them say so."""

    stop: float
    """It has been asked to stop."""
    due: float
    """It is time to save."""
    written: float
    """Its share of the checkpoint in hand is on disk."""
    failed: float
    """Its share could not be written."""


def train(
    config: RunConfig,
    *,
    plan: Plan,
    start: int,
    engine: Engine,
    loader: Loader,
    evaluator: Evaluator,
    exam: Exam,
    recovery: Recovery,
    saver: Saver,
    save: Callable[[int], None],
    stop_asked: Callable[[], bool],
    tracker: Tracker,
    meter: Meter,
    progress: TrainProgress,
) -> dict[str, SourceLoss] | None:
    """Take the steps from `start` to the plan's last and measure what was learnt, on all held-out text and by tasks.

    Every rank runs it alike. A step is the same whether the run came to it in one go or was stopped and resumed: its
    samples and its learning rate are functions of its number and of what is left out. Returns None, with the last step
    saved, where any rank has been asked to stop. Raises SpikeError, and OSError where a checkpoint cannot be written.
    """
    ranks, cadence, judge = engine.ranks, config.train, recovery.judge
    step, saved = start, time.monotonic()
    while step < plan.steps:
        began = time.perf_counter()
        lr = learning_rate(step, steps=plan.steps, peak=plan.learning_rate, schedule=config.schedule)
        samples = recovery.samples(step)
        before = recovery.samples(step - 1)[-1].stop if step else 0  # what was left out since then counts
        if plan.changes_mixture(before, samples[-1].stop):
            judge.reset()  # another mixture has other losses
        batch = loader.batch(samples, rank=ranks.rank, world=ranks.world_size, micro_batch=plan.micro_batch)
        minutes = config.checkpoint.minutes
        due = ranks.is_first and minutes is not None and time.monotonic() - saved >= 60 * minutes
        mine = Votes(stop=stop_asked(), due=due, written=saver.written, failed=saver.failed)
        record = engine.step(torch.from_numpy(batch), lr=lr, ceiling=judge.ceiling(), votes=mine)
        votes = Votes(*record.votes)
        if votes.failed:
            saver.finish()
        if votes.written == ranks.world_size:
            saver.commit()
        if record.refused:
            progress.say(f"step {step + 1}: a loss of {record.loss:.3f} was refused")
            step = recovery.after_refusal(step, record, samples)
            continue
        judge.accepted(record.loss)
        meter.add(time.perf_counter() - began, tokens=plan.tokens_by(step + 1) - plan.tokens_by(step))

        step += 1
        tokens, last = plan.tokens_by(step), step == plan.steps
        progress.step(step)
        if step % cadence.log_every == 0 or last or step == start + 1:
            rates = meter.read(tokens_left=plan.tokens - tokens)
            tracker.tell(
                "train",
                step=step,
                tokens=tokens,
                loss=record.loss,
                lr=lr,
                grad_norm=record.grad_norm,
                tokens_per_s=rates.tokens_per_s,
                mfu=rates.mfu,
            )
            progress.rates(step, record.loss, rates)
        if not votes.stop and (step % cadence.eval_every == 0 or last):
            measured = evaluator.measure(max_tokens=cadence.eval_tokens)
            _tell("eval", measured, plan, tracker, progress, step=step)
        if votes.stop or votes.due or step % config.checkpoint.every == 0 or step == plan.branch_step or last:
            save(step)
            saved = time.monotonic()
        if votes.stop:
            saver.finish()
            return None
        if exam.is_due(step) and not last:
            with suppress(Interrupted):  # the next step hears of it, too
                exam.ask(step=step, tokens=tokens)
    saver.finish()
    try:
        measured = evaluator.measure(stop=stop_asked)
        _tell("held_out", measured, plan, tracker, progress, step=plan.steps)
        exam.ask(step=plan.steps, tokens=plan.tokens)
    except Interrupted:
        return None
    return measured


def _tell(
    kind: str,
    measured: dict[str, SourceLoss],
    plan: Plan,
    tracker: Tracker,
    progress: TrainProgress,
    *,
    step: int,
) -> None:
    tracker.tell(
        kind,
        step=step,
        tokens=plan.tokens_by(step),
        loss=plan.mixed({name: source.loss for name, source in measured.items()}),
        losses={name: source.loss for name, source in measured.items()},
        bits_per_byte={name: source.bits_per_byte for name, source in measured.items()},
    )
    seen = (f"{name} {source.loss:.3f} ({source.bits_per_byte:.3f} bits/byte)" for name, source in measured.items())
    progress.say(f"step {step}: {kind} loss  {'  '.join(seen)}")
