"""A small trained model with a real tokenizer, and its export."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tests.model.tiny import SHAPE, build
from tinyllama.config.schema import Model
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.exchange.export import export
from tinyllama.exchange.trained import Trained

TEXT = "def count(words):\n    return len(words)  # how many\n\nThe quick brown fox jumps over the lazy dog.\n"


def trained(folder: Path, *, shape: Model | None = None) -> Trained:
    """Weights that tell contexts apart, and a tokenizer in the folder."""
    shape = shape or Model(**{**vars(SHAPE), "vocab_size": 320})
    path = folder / "tokenizer.model"
    train_tokenizer([TEXT] * 20, vocab_size=300, path=path)
    weights = build(shape, gain=2).float().state_dict()
    return Trained(
        folder=folder, shape=shape, weights=weights, tokenizer=path, start=Tokenizer.load(path).eos, adds_start=False
    )


def exported(
    folder: Path, out: Path, *, shape: Model | None = None, dtype: str = "fp32", shard_bytes: int = 10**9
) -> Trained:
    """The same as a folder in Hugging Face's format."""
    model = trained(folder, shape=shape)
    export(model, out, card=b"# tiny\n", dtype=dtype, shard_bytes=shard_bytes, console=Console(quiet=True))
    return model
