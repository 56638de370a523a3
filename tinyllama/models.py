"""Trained models, wherever they are, and the tasks that ask them: evaluate, generate."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tinyllama import tasks
from tinyllama.config.schema import RunConfig
from tinyllama.config.tasks import Evaluate
from tinyllama.launch import launcher, runs
from tinyllama.launch.signals import requests
from tinyllama.tracking.folder import RESULT, is_kept
from tinyllama.tracking.journal import JOURNAL

if TYPE_CHECKING:
    from tinyllama.data.loader import HeldOut
    from tinyllama.data.manifest import Manifest
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.engine.checkpoint import Checkpoint
    from tinyllama.evaluate.answers import Alone
    from tinyllama.evaluate.progress import Asking
    from tinyllama.evaluate.results import Scores
    from tinyllama.exchange.trained import Trained


def open_model(folder: Path, *, key: str) -> Trained:
    """The newest weights of a run or an import, or those of a folder in Hugging Face's format.

    Raises ValueError, naming the key that led here, where the folder holds no model that can be used, Damaged where its
    weights are not what was written.
    """
    from tinyllama.engine import checkpoint
    from tinyllama.exchange import published

    if published.is_published(folder):
        return published.open_published(folder, name=name_of(folder), key=key)
    frozen = runs.with_checkpoint(folder)
    return trained_at(folder, frozen, checkpoint.Checkpoint.at(checkpoint.found(folder / runs.CHECKPOINTS)[-1]))


def trained_at(folder: Path, frozen: runs.Frozen, one: Checkpoint) -> Trained:
    """A run's weights in one of its checkpoints. Raises Damaged where they are not what was written."""
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.exchange.trained import Trained

    one.verify("weights")
    tokenizer, origin = runs.tokenizer(folder), frozen.origin
    return Trained(
        folder=folder,
        shape=frozen.config.model,
        weights=one.tensors("weights"),
        tokenizer=tokenizer,
        start=origin.start if origin else Tokenizer.load(tokenizer).eos,
        adds_start=origin.adds_start if origin else False,
    )


def evaluate(config: RunConfig, *, console: Console) -> None:
    """task=evaluate: a model's held-out loss and its scores on tasks, written down and told.

    A run has them in its own folder and its own MLflow run. Raises ValueError where a task cannot be asked, once all
    that could be measured is written down.
    """
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.engine import distributed
    from tinyllama.evaluate.answers import Alone
    from tinyllama.evaluate.loss import Evaluator
    from tinyllama.evaluate.notes import Notes
    from tinyllama.evaluate.progress import Asking
    from tinyllama.evaluate.results import render_held_out, render_tasks

    how, layout = config.evaluate, replace(config.parallelism, gpus=1, nodes=1)
    assert how.run is not None  # a rule of the gate
    folder = Path(how.run)
    if is_kept(folder):
        raise ValueError(
            f"evaluate.run: {folder} is in training: let it end, or set evaluate.every, with which it asks"
        )
    launcher.check_gpus(layout)
    trained = open_model(folder, key="evaluate.run")
    pieces = Tokenizer.load(trained.tokenizer)
    frozen = runs.thaw(folder) if is_run(folder) else None
    texts, data = _held_out(config, trained, pieces, frozen, console=console) if how.held_out else ({}, None)
    device = distributed.use_device(layout.device, Alone.ranks, threads=layout.threads, ranks_here=1)
    model = trained.build(device=str(device), precision=config.train.precision)
    model.document_end = trained.start if frozen and frozen.config.train.mask_documents else None
    alone = Alone(model, device=device, eos=pieces.eos, n_tokens=pieces.vocab_size)
    step = runs.steps_taken(folder) if frozen else None
    tokens = runs.tokens_seen(folder, step) if step is not None else None
    notes = Notes(_place(folder, config), how, step=step, tokens=tokens)
    with Asking(console) as progress:
        if data:
            progress.begin("held out")
            evaluator = Evaluator(alone, texts, token_bytes=pieces.token_bytes(), micro_batch=how.batch)
            measured = evaluator.measure(tell=progress.tell)
            notes.held_out(measured, data)
            console.print(render_held_out(measured))
        scores = _asked(how, trained, alone, pieces, progress) if how.tasks else None
    requests.check()  # the harness may have made an error of one
    if scores:
        notes.tasks(scores.tasks, scores.failed)
        for part in render_tasks(scores.tasks):
            console.print(part)
    console.print(f"written to {notes.place / RESULT}")
    if frozen and frozen.config.tracking.name == "mlflow":
        notes.send(report=console.print)
    if scores and scores.failed:
        raise ValueError("\n".join(f"evaluate.tasks: {name}: {why}" for name, why in scores.failed.items()))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run which has trained here."""
    return (folder / JOURNAL).exists()


def _place(folder: Path, config: RunConfig) -> Path:
    """Where results go: beside a run or an import, else into a folder of their own."""
    if (folder / runs.CHECKPOINTS).is_dir():
        return folder
    return Path(config.run_dir or Path(config.runs_dir) / f"evaluate-{folder.resolve().name}")


def _held_out(
    config: RunConfig, trained: Trained, pieces: Tokenizer, frozen: runs.Frozen | None, *, console: Console
) -> tuple[dict[str, HeldOut], Manifest]:
    """The held-out text to measure on, a run's own or else the data that is composed, and what it is of."""
    from tinyllama.data.loader import held_out
    from tinyllama.data.manifest import Manifest

    if frozen:
        data, sources = Path(frozen.data.folder), frozen.config.data.sources
        manifest = Manifest.load(data)
    else:
        (manifest, data), sources = tasks.prepared(config, console=console), config.data.sources
    if manifest.tokenizer.sha256 != pieces.sha256:
        raise ValueError(
            f"evaluate.held_out: {data} is written in another tokenizer (sha256 {manifest.tokenizer.sha256[:8]}) than "
            f"{trained.folder} has ({pieces.sha256[:8]}): its tokens mean other text; set "
            f"data.tokenizer.model={trained.tokenizer}, or evaluate.held_out=false"
        )
    return held_out(manifest, data, sources, context=trained.shape.context), manifest


def _asked(how: Evaluate, trained: Trained, alone: Alone, pieces: Tokenizer, progress: Asking) -> Scores:
    from tinyllama.evaluate import harness

    subject = harness.Subject(
        alone,
        pieces,
        start=trained.start,
        adds_start=trained.adds_start,
        context=trained.shape.context,
        batch=how.batch,
        tell=progress.tell,
    )
    folder = Path(how.tasks_dir) if how.tasks_dir else None
    return harness.ask(subject, how.tasks, tasks_dir=folder, shots=how.shots, limit=how.limit, say=progress.begin)


def generate(config: RunConfig) -> None:
    """task=generate: continue texts with a trained model, on standard output as they come."""
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.evaluate.sample import continuations, prompt_tokens, show
    from tinyllama.model.generate import check_room

    how = config.generate
    assert how.run is not None  # a rule of the gate
    launcher.check_gpus(replace(config.parallelism, gpus=1))
    trained = open_model(Path(how.run), key="generate.run")
    pieces = Tokenizer.load(trained.tokenizer)
    prompts = prompt_tokens(trained, pieces, how.prompt)
    check_room(prompts, trained.shape.context)  # before the weights are read, and before anything is written
    model = trained.build(device=config.parallelism.device, precision=config.train.precision)
    told = continuations(model, pieces, prompts, how, seed=config.seed)
    show(how.prompt, how.samples, told, partial(print, end="", flush=True))


def name_of(folder: Path) -> str:
    """A folder's name as a run may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:80] or "model"
