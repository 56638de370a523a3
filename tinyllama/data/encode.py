"""One source's documents, split, sampled for a tokenizer, and encoded into shards."""

from __future__ import annotations

import heapq
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from tinyllama.config.data import Source
from tinyllama.data.formats import Document, identity, read_documents
from tinyllama.data.manifest import HeldOutEntry, SourceEntry, SplitEntry, TokenizerEntry
from tinyllama.data.shards import ShardWriter
from tinyllama.data.tokenizer import Tokenizer

_PIECE = 8192  # characters: a sample made of whole documents would be one book, or empty
_BATCH = 1 << 20  # characters that are encoded at once
_PERIOD = 2.0  # seconds between reports


def is_held_out(key: str, *, fraction: float) -> bool:
    """Whether a document is kept from training: by a hash of its key alone, whatever other documents there are.

    The two stdlib formats call a file's code and its docstrings by the same key, so that both fall on the same side.
    """
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) < fraction * 2**64


@dataclass
class Progress:
    """Counts the documents of one pass over a source and reports about every two seconds."""

    label: str
    report: Callable[[str], None]
    total: int | None = None
    """Documents that the pass will see, where known."""
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    _began: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)

    def add(self, *, documents: int, size: int, tokens: int = 0) -> None:
        """Counts what was just done."""
        self.documents += documents
        self.bytes += size
        self.tokens += tokens
        if (now := time.monotonic()) - self._reported >= _PERIOD:
            self._reported = now
            self.report(self.line(now - self._began))

    def line(self, seconds: float) -> str:
        """The pass so far: `code: 1,200 documents, 5.1 MB/s, 1.60 M tokens/s, 12 s left`."""
        parts = [f"{self.label}: {self.documents:,} documents", f"{self.bytes / seconds / 1e6:.1f} MB/s"]
        if self.tokens:
            parts.append(f"{self.tokens / seconds / 1e6:.2f} M tokens/s")
        if self.total and self.documents:
            parts.append(f"{seconds * (self.total - self.documents) / self.documents:.0f} s left")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a first pass over a source found."""

    documents: int
    sample: list[str]
    """Pieces of the training documents."""


def survey(source: Source, *, sample_bytes: int, progress: Progress) -> Survey:
    """Reads a source once and samples about `sample_bytes` UTF-8 bytes of its training documents, evenly.

    Texts are cut into pieces of 8,192 characters, and those with the smallest hashes are kept.
    """
    kept: list[tuple[int, str]] = []
    size = 0
    for document in read_documents(source):
        progress.add(documents=1, size=len(document.text.encode()))
        if is_held_out(document.key, fraction=source.held_out):
            continue
        for start in range(0, len(document.text), _PIECE):
            piece = document.text[start : start + _PIECE]
            rank = int.from_bytes(blake2b(f"{start}:{document.key}".encode(), digest_size=8).digest())
            # heapq pops the smallest, so ranks are negated to drop the largest.
            heapq.heappush(kept, (-rank, piece))
            size += len(piece.encode())
            while size > sample_bytes and len(kept) > 1:
                size -= len(heapq.heappop(kept)[1].encode())
    return Survey(documents=progress.documents, sample=[piece for _, piece in sorted(kept, reverse=True)])


def encode_source(
    source: Source, *, name: str, tokenizer: Tokenizer, entry: TokenizerEntry, folder: Path, progress: Progress
) -> SourceEntry:
    """Encodes a source into `NAME/train-*.bin` and `NAME/held_out-*.bin` below folder.

    Raises ValueError where no document is held out, or where fewer than two training tokens are left.
    """
    counts = {"train": [0, 0, 0], "held_out": [0, 0, 0]}
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
    compressed = 0
    with (
        ShardWriter(folder, prefix=f"{name}/train", tokenizer=entry) as train,
        ShardWriter(folder, prefix=f"{name}/held_out", tokenizer=entry) as held_out,
    ):
        writers = {"train": train, "held_out": held_out}
        for batch in _batches(read_documents(source)):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                split = "held_out" if is_held_out(document.key, fraction=source.held_out) else "train"
                content = document.text.encode()
                writers[split].add(ids)
                for index, amount in enumerate((len(ids) + 1, 1, len(content))):
                    counts[split][index] += amount
                if split == "held_out":
                    compressed += len(gzip.compress(content))
                progress.add(documents=1, size=len(content), tokens=len(ids) + 1)
        splits = {
            split: SplitEntry(tokens=tokens, documents=documents, bytes=size, shards=writers[split].close())
            for split, (tokens, documents, size) in counts.items()
        }
    compressed += len(gzip.flush())
    if splits["train"].tokens < 2:
        raise ValueError(
            f"{splits['train'].documents} documents are left for training, too few: give it more documents"
        )
    if not splits["held_out"].bytes:
        raise ValueError(
            f"none of its {progress.documents:,} documents is held out with any text (held_out {source.held_out:g}), "
            "and loss is measured on at least one: raise held_out or give it more documents"
        )
    return SourceEntry(
        identity=identity(source),
        format=source.format,
        train=splits["train"],
        held_out=HeldOutEntry(**vars(splits["held_out"]), gzip_bits_per_byte=8 * compressed / splits["held_out"].bytes),
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about a million characters."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + 1
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
