"""Trained models, wherever they are, and the tasks that ask them: evaluate, generate."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama.config.schema import RunConfig
from tinyllama.launch import launcher, runs

if TYPE_CHECKING:
    from tinyllama.engine.checkpoint import Checkpoint
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
