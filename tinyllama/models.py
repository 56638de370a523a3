"""The tasks that work on a trained model: import, export, evaluate, generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama.launch import runs

if TYPE_CHECKING:
    from tinyllama.exchange.trained import Trained


def open_model(folder: Path) -> Trained:
    """The newest weights of a run. Raises ValueError where the folder holds no model that can be used."""
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.engine import checkpoint
    from tinyllama.exchange.trained import Trained

    frozen = runs.with_checkpoint(folder)
    tokenizer = runs.tokenizer(folder)
    return Trained(
        folder=folder,
        shape=frozen.config.model,
        weights=checkpoint.latest_weights(folder / runs.CHECKPOINTS),
        tokenizer=tokenizer,
        start=Tokenizer.load(tokenizer).eos,
        adds_start=False,
    )
