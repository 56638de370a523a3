"""Files of tokens: one stream of documents a split, cut into shards that can be mapped into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
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
        self._folder, self._prefix, self._tokenizer = folder, prefix, tokenizer
        self._shard_tokens = shard_tokens
        self._shards: list[ShardEntry] = []
        self._file: BinaryIO | None = None
        (folder / prefix).parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, ids: Sequence[int]) -> None:
        """Appends one document."""
        tokens = np.array([*ids, self._tokenizer.eos], dtype=self._tokenizer.dtype)
        while len(tokens):
            if self._file is None:
                self._name = f"{self._prefix}-{len(self._shards):05d}.bin"
                self._file = (self._folder / self._name).open("xb", buffering=1 << 20)
                self._hash, self._written = hashlib.sha256(), 0
            head, tokens = np.split(tokens, [self._shard_tokens - self._written])
            content = head.tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._written += len(head)
            if self._written == self._shard_tokens:
                self._end_shard()

    def close(self) -> tuple[ShardEntry, ...]:
        """Ends the last shard, writes it through to the disk, and gives all of them in order."""
        if self._file is not None:
            self._end_shard()
        return tuple(self._shards)

    def _end_shard(self) -> None:
        assert self._file is not None
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        self._shards.append(ShardEntry(file=self._name, tokens=self._written, sha256=self._hash.hexdigest()))


class TokenStream:
    """The tokens of one split as one long array, mapped into memory from its shards."""

    def __init__(self, folder: Path, *, split: SplitEntry, tokenizer: TokenizerEntry) -> None:
        """Raises ValueError where a shard is missing or has the wrong size; the hashes are `Manifest.verify`'s."""
        self._dtype = np.dtype(tokenizer.dtype)
        self._paths = [folder / shard.file for shard in split.shards]
        for path, shard in zip(self._paths, split.shards, strict=True):
            check_file(path, folder=folder, size=shard.tokens * self._dtype.itemsize)
        self._ends = np.cumsum([shard.tokens for shard in split.shards], dtype=np.int64)
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._map)

    def __len__(self) -> int:
        """Tokens in the stream."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def windows(self, starts: np.ndarray, *, length: int) -> np.ndarray:
        """The `length` tokens from each start, across shards where need be, as int64 [n, length]."""
        assert not len(starts) or (starts.min() >= 0 and starts.max() + length <= len(self))
        out = np.empty((len(starts), length), dtype=np.int64)
        shards = np.searchsorted(self._ends, starts, side="right")
        for row, start, shard in zip(out, starts.tolist(), shards.tolist(), strict=True):
            filled = 0
            while filled < length:
                tokens = self._shard(shard)
                offset = start + filled - (int(self._ends[shard]) - len(tokens))
                part = tokens[offset : offset + length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                shard += 1
        return out

    def _map(self, shard: int) -> np.ndarray:
        return np.memmap(self._paths[shard], dtype=self._dtype, mode="r")
