"""Trained models, wherever they are, and the tasks that ask them: evaluate, generate."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import partial
from hashlib import sha256
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
    from tinyllama.evaluate.notes import Notes
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

    if runs.is_published(folder):
        return published.open_published(folder, name=name_of(folder), key=key)
    try:
        frozen = runs.with_checkpoint(folder)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
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
    from tinyllama.evaluate.progress import Asking

    how, layout = config.evaluate, replace(config.parallelism, gpus=1, nodes=1)
    assert how.run is not None  # a rule of the gate
    folder = Path(how.run)
    if is_kept(folder):
        raise ValueError(
            f"evaluate.run: {folder} is in training: let it end, or set evaluate.every, with which it asks"
        )
    launcher.check_gpus(layout)
    trained = open_model(folder, key="evaluate.run")
    frozen = runs.thaw(folder) if is_run(folder) else None
    notes = _notes(config, folder, frozen)
    pieces = Tokenizer.load(trained.tokenizer)
    texts, data = _held_out(config, trained, pieces, frozen, console=console) if how.held_out else ({}, None)
    device = distributed.use_device(layout.device, Alone.ranks, threads=layout.threads, ranks_here=1)
    model = trained.build(device=str(device), precision=config.train.precision)
    model.document_end = pieces.eos if frozen and frozen.config.train.mask_documents else None
    alone = Alone(model, device=device, eos=pieces.eos, n_tokens=pieces.vocab_size)
    written, failed = False, {}
    with Asking(console) as progress:
        if data:
            written = _measured(how, alone, pieces, texts, data, notes=notes, progress=progress, console=console)
        if how.tasks:
            failed = _asked(how, trained, alone, pieces, notes=notes, progress=progress, console=console)
    if written or how.tasks:
        console.print(f"written to {notes.place / RESULT}")
    if frozen and frozen.config.tracking.name == "mlflow":
        notes.send(report=console.print)
    if failed:
        raise ValueError("\n".join(f"evaluate.tasks: {name}: {why}" for name, why in failed.items()))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run which has trained here."""
    return (folder / JOURNAL).exists()


def _notes(config: RunConfig, folder: Path, frozen: runs.Frozen | None) -> Notes:
    """Where results go: beside a run or an import, else into a folder of their own.

    Raises ValueError where that is another run's.
    """
    from tinyllama.evaluate.notes import Notes

    step = runs.steps_taken(folder) if frozen else None
    tokens = runs.tokens_seen(folder, step) if step is not None else None
    if (folder / runs.CHECKPOINTS).is_dir():
        return Notes(folder, config.evaluate, step=step, tokens=tokens)
    where = str(folder.resolve())
    own = f"evaluate-{name_of(folder)}-{sha256(where.encode()).hexdigest()[:8]}"
    place = Path(config.run_dir or Path(config.runs_dir) / own)
    if runs.is_begun(place):
        raise ValueError(
            f"run_dir: {place} is the folder of another run than {folder}, whose results would be mixed with its own: "
            "leave run_dir out, or name a folder that holds no run"
        )
    return Notes(place, config.evaluate, step=step, tokens=tokens, model=where)


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
        (manifest, data), sources = _data_for(config, trained, pieces, console=console), config.data.sources
    if manifest.tokenizer.sha256 != pieces.sha256:
        raise _other_tokenizer(f"{data} is written in", manifest.tokenizer.sha256, trained, pieces)
    return held_out(manifest, data, sources, context=trained.shape.context), manifest


def _data_for(config: RunConfig, trained: Trained, pieces: Tokenizer, *, console: Console) -> tuple[Manifest, Path]:
    """The data that is composed, in the model's tokenizer unless another is set, and its folder.

    Raises ValueError where it is another, and where the data is not prepared: only the embedded text is on the spot.
    """
    from tinyllama.data import find as sets
    from tinyllama.data.tokenizer import Tokenizer

    spec, line = config.data.tokenizer, [word for word in sys.argv[1:] if "=" in word]
    if spec.model is None:
        own = replace(spec, model=str(trained.tokenizer), sha256=pieces.sha256, vocab_size=pieces.vocab_size)
        config = replace(config, data=replace(config.data, tokenizer=own))
        line = [word for word in line if not word.startswith("data.tokenizer.")]
        line += [f"data.tokenizer.model={own.model}", f"data.tokenizer.vocab_size={own.vocab_size}"]
    elif (other := Tokenizer.load(Path(spec.model)).sha256) != pieces.sha256:
        raise _other_tokenizer(f"data.tokenizer.model={spec.model} is", other, trained, pieces)
    says = sets.missing(config.data, data_dir=Path(config.data_dir), line=line)
    if says and not sets.is_embedded(config.data):
        raise ValueError(f"data: {says}; or set evaluate.held_out=false")
    return tasks.prepared(config, console=console)


def _other_tokenizer(what: str, sha256: str, trained: Trained, pieces: Tokenizer) -> ValueError:
    return ValueError(
        f"evaluate.held_out: {what} another tokenizer (sha256 {sha256[:8]}) than {trained.folder} has "
        f"({pieces.sha256[:8]}): its tokens mean other text; leave data.tokenizer.model out, or set "
        "evaluate.held_out=false"
    )


def _measured(
    how: Evaluate,
    alone: Alone,
    pieces: Tokenizer,
    texts: dict[str, HeldOut],
    data: Manifest,
    *,
    notes: Notes,
    progress: Asking,
    console: Console,
) -> bool:
    """Measure held-out losses, tell them and write them down; whether they were written."""
    from tinyllama.evaluate.loss import Evaluator
    from tinyllama.evaluate.results import render_held_out

    progress.begin("held out")
    evaluator = Evaluator(alone, texts, token_bytes=pieces.token_bytes(), micro_batch=how.batch)
    measured = evaluator.measure(tell=progress.tell)
    console.print(render_held_out(measured))
    written = notes.held_out(measured, data)
    if not written:
        console.print(f"{notes.place / RESULT} keeps the held-out losses of the run's end")
    return written


def _asked(
    how: Evaluate,
    trained: Trained,
    alone: Alone,
    pieces: Tokenizer,
    *,
    notes: Notes,
    progress: Asking,
    console: Console,
) -> dict[str, str]:
    """Ask the tasks, write down what comes of each and tell all of it, also where a later one is cut short.

    Returns why those that failed did.
    """
    from tinyllama.evaluate import harness
    from tinyllama.evaluate.results import render_tasks

    scores: dict[str, dict[str, float]] = {}

    def hear(name: str, one: Scores) -> None:
        requests.check()  # the harness may have made an error of one
        scores.update(one.tasks)
        notes.tasks(one.tasks, one.failed, asked=[name])

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
    ask = partial(harness.ask, subject, how.tasks, tasks_dir=folder, shots=how.shots, limit=how.limit)
    try:
        return ask(say=progress.begin, hear=hear).failed
    finally:
        for part in render_tasks(scores):
            console.print(part)


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


def continued(run_dir: Path, config: RunConfig) -> str:
    """The first of config.generate's prompts and what a run's newest weights make of it, on the CPU in fp32."""
    from tinyllama.evaluate.sample import continue_text

    return continue_text(open_model(run_dir, key="run_dir"), config.generate, config.seed)


def name_of(folder: Path) -> str:
    """A folder's name as a run may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:80] or "model"
