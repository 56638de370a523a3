"""Files of tokens: one stream of documents a split, cut into shards that can be mapped into memory."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from tinyllama.data.manifest import ShardEntry, SplitEntry, TokenizerEntry, check_file

SHARD_TOKENS = 64 * 2**20
_OPEN_SHARDS = 256  # a mapping holds a file descriptor, and a terabyte has ten thousand shards


class ShardWriter:
    """Writes documents to `PREFIX-00000.bin` and on, each document followed by the end token.

    A document may go on in the next shard, so every shard but the last is full: nothing is padded and nothing is lost.
    """

    def __init__(
        self, folder: Path, *, prefix: str, tokenizer: TokenizerEntry, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        """Writes below `folder`; `prefix` is the shards' path in it, such as `code/train`."""
        assert shard_tokens > 0
        self._folder, self._prefix = folder, prefix
        self._end = np.array([tokenizer.eos], dtype=tokenizer.dtype).tobytes()
        self._shard_bytes = shard_tokens * len(self._end)
        self._shards: list[ShardEntry] = []
        self._file: BinaryIO | None = None
        (folder / prefix).parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._file is not None:
            with suppress(OSError):  # the disk may be full, which is the error already
                self._file.close()

    def add(self, ids: bytes) -> None:
        """Appends one document, packed in the tokenizer's dtype."""
        self.write(ids + self._end)

    def write(self, tokens: bytes) -> None:
        """Appends whole documents with their end tokens."""
        while tokens:
            if self._file is None:
                self._name = f"{self._prefix}-{len(self._shards):05d}.bin"
                self._file = (self._folder / self._name).open("xb", buffering=1 << 20)
                self._hash, self._written = hashlib.sha256(), 0
            room = self._shard_bytes - self._written
            content, tokens = (tokens, b"") if len(tokens) <= room else (tokens[:room], tokens[room:])
            self._file.write(content)
            self._hash.update(content)
            self._written += len(content)
            if self._written == self._shard_bytes:
                self._end_shard()

    def close(self) -> tuple[ShardEntry, ...]:
        """Ends the last shard, writes it through to the disk, and gives all of them in order."""
        if self._file is not None:
            self._end_shard()
        return tuple(self._shards)

    def _end_shard(self) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        with file:
            file.flush()
            os.fsync(file.fileno())
        self._shards.append(
            ShardEntry(file=self._name, tokens=self._written // len(self._end), sha256=self._hash.hexdigest())
        )


class TokenStream:
    """The tokens of one split as one long array, mapped into memory from its shards."""

    def __init__(self, folder: Path, *, split: SplitEntry, tokenizer: TokenizerEntry) -> None:
        """Raises ValueError where a shard is missing or has the wrong size; the hashes are `Manifest.verify`'s."""
        self._dtype = np.dtype(tokenizer.dtype)
        self._paths = [folder / shard.file for shard in split.shards]
        for path, shard in zip(self._paths, split.shards, strict=True):
            check_file(path, folder=folder, size=shard.tokens * self._dtype.itemsize)
        self._ends = list(accumulate(shard.tokens for shard in split.shards))
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._map)

    def __len__(self) -> int:
        """Tokens in the stream."""
        return self._ends[-1] if self._ends else 0

    def windows(self, starts: np.ndarray, *, length: int) -> np.ndarray:
        """The `length` tokens from each start, across shards where need be, as int64 [n, length]."""
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            self.read(start, row)
        return out

    def read(self, start: int, row: np.ndarray) -> None:
        """Fills a row with the tokens from `start` on, across shards where need be."""
        assert 0 <= start <= len(self) - len(row)
        shard = bisect_right(self._ends, start)
        tokens, begin = self._shard(shard)
        part = tokens[start - begin : start - begin + len(row)]
        while len(part) < len(row):
            row[: len(part)] = part
            row = row[len(part) :]
            shard += 1
            part = self._shard(shard)[0][: len(row)]
        row[:] = part

    def _map(self, shard: int) -> tuple[np.ndarray, int]:
        """A shard's tokens, as an array since a memmap takes a while to cut, and where in the stream they begin."""
        tokens = np.memmap(self._paths[shard], dtype=self._dtype, mode="r").view(np.ndarray)
        return tokens, self._ends[shard] - len(tokens)
