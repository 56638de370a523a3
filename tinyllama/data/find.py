"""Where a prepared data set is and whether it is there: every command asks, and most prepare nothing."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllama.config.data import Data
from tinyllama.data.formats import identity
from tinyllama.data.manifest import FILE, Manifest

_LAYOUT = 2
"""Raised when a change of this package changes the tokens or the files, so that older folders are not taken for new."""


def dataset_dir(data: Data, *, data_dir: Path) -> Path:
    """The folder of a prepared data set, whether or not it exists: `NAME-DIGEST`.

    The digest covers what determines the tokens: formats and their raw data's identity, include, exclude, text field,
    filter, held-out fraction and files, tokenizer; not weights, token counts, epochs, or where the raw files are.
    Raises ValueError where a given tokenizer can neither be read nor has a hash.
    """
    return data_dir / f"{data.name}-{digest(data)[:8]}"


def find(data: Data, *, data_dir: Path) -> Manifest | None:
    """The prepared data set's manifest, or None. Raises ValueError where the manifest is damaged."""
    folder = dataset_dir(data, data_dir=data_dir)
    return Manifest.load(folder) if folder.is_dir() else None


def missing(data: Data, *, data_dir: Path, line: Sequence[str] = ()) -> str | None:
    """None where the data set is prepared; else which shards are missing, where they belong, and what prepares them.

    `line` holds the overrides that were given: what prepares the set repeats them, since any of them may change it.
    """
    folder = dataset_dir(data, data_dir=data_dir)
    if (folder / FILE).is_file():
        return None
    command = ["python", "main.py", "task=prepare", *(word for word in line if not word.startswith("task="))]
    if not line:
        command.append(f"data={data.name}")
    for name, source in data.sources.items():
        raw = f"data.sources.{name}.raw="
        if not source.is_embedded and not any(word.startswith(raw) for word in line):
            command.append(raw + (source.raw or f"/path/to/{name}"))
    return (
        f"data set {data.name} is not prepared: no shards of {', '.join(data.sources)} in {folder}. "
        f"Prepare them with: {shlex.join(command)}"
    )


def is_embedded(data: Data) -> bool:
    """Whether every source is the standard library, so that the set can be prepared on the spot."""
    return all(source.is_embedded for source in data.sources.values())


def digest(data: Data) -> str:
    """The sha256 of what determines a set's tokens, in hex. Raises ValueError as `dataset_dir` does."""
    spec = data.tokenizer
    if spec.model is None:
        tokenizer: dict[str, Any] = {"vocab_size": spec.vocab_size, "sample_bytes": spec.sample_bytes}
    else:
        from tinyllama.data.tokenizer import Tokenizer

        tokenizer = {"sha256": spec.sha256 or Tokenizer.load(Path(spec.model)).sha256}
    kept = ("format", "include", "exclude", "text_field", "held_out", "held_out_include")
    sources = {
        name: {
            **{key: getattr(source, key) for key in kept},
            "identity": identity(source),
            "filter": asdict(source.filter) if source.filter else None,
        }
        for name, source in data.sources.items()
    }
    content = {"layout": _LAYOUT, "tokenizer": tokenizer, "sources": sources}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
