"""Which documents lie where in a training stream, and what they say."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyllama.data.manifest import Manifest, check_file
from tinyllama.data.shards import TokenStream
from tinyllama.data.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A part of a document, or all of it."""

    key: str
    """The raw file, and the row in it where a file holds several documents: `FILE:ROW`."""
    start: int
    """First token of the part in the document."""
    stop: int
    tokens: int
    """Of the whole document, its end token included."""


class Documents:
    """The training documents of one source, by their place in its stream."""

    def __init__(self, manifest: Manifest, folder: Path, *, source: str) -> None:
        """Reads the ledger; indexes are read when they are asked for. Each raises ValueError where it is damaged."""
        entry = manifest.sources[source]
        self.stream = TokenStream(folder, split=entry.train, tokenizer=manifest.tokenizer)
        """Their tokens."""
        self._folder, self._units = folder, entry.units
        self._ends = np.cumsum([unit.tokens for unit in entry.units], dtype=np.int64)
        self._tokenizer = Tokenizer.load(folder / manifest.tokenizer.file)
        ledger = folder / entry.raw.ledger.file
        check_file(ledger, folder=folder, sha256=entry.raw.ledger.sha256)
        self._files = [_Files([], []) for _ in entry.units]
        with ledger.open() as lines:
            for line in map(json.loads, lines):
                names, ends = self._files[line["unit"]]
                names.append(line["file"])
                ends.append((ends[-1] if ends else 0) + line["train_documents"])
        self._index = lru_cache(maxsize=16)(self._read_index)

    def between(self, start: int, stop: int) -> Iterator[Piece]:
        """What the tokens from start up to stop are parts of, in order."""
        assert 0 <= start <= stop <= len(self.stream)
        unit = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            base = int(self._ends[unit]) - self._units[unit].tokens
            rows, ends = self._index(unit)
            document = int(np.searchsorted(ends, start - base, side="right"))
            while start < stop and document < len(ends):
                first = base + (int(ends[document - 1]) if document else 0)
                last = base + int(ends[document])
                key = self._key(unit, document, row=int(rows[document]))
                end = min(stop, last)
                yield Piece(key, start - first, end - first, last - first)
                start, document = end, document + 1
            unit += 1

    def lengths(self, *, units: int) -> np.ndarray:
        """Tokens of each document of at most so many units, evenly chosen among those that have any."""
        filled = np.flatnonzero([unit.documents for unit in self._units])
        chosen = filled[np.unique(np.linspace(0, len(filled) - 1, units).round().astype(int))]
        return np.concatenate([np.diff(self._index(unit)[1], prepend=0) for unit in chosen.tolist()])

    def text_at(self, token: int) -> tuple[str, str]:
        """The key and the text of the document that a token of the stream belongs to."""
        [piece] = self.between(token, token + 1)
        ids = self.stream.windows(np.array([token - piece.start]), length=piece.tokens - 1)[0]
        return piece.key, self._tokenizer.decode(ids.tolist())

    def _key(self, unit: int, document: int, *, row: int) -> str:
        names, ends = self._files[unit]
        name = names[bisect_right(ends, document)]
        return f"{name}:{row}" if row else name

    def _read_index(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Each document's row, and where it ends in the unit."""
        index = self._units[unit].index
        check_file(self._folder / index.file, folder=self._folder, sha256=index.sha256)
        pairs = np.fromfile(self._folder / index.file, dtype="<u4").reshape(-1, 2)
        return pairs[:, 0], np.cumsum(pairs[:, 1], dtype=np.int64)


class _Files(NamedTuple):
    """The raw files of a unit."""

    names: list[str]
    ends: list[int]
    """Training documents of the unit up to the end of each."""
