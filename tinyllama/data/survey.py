"""An even sample of a source's training text, to train a tokenizer on."""

from __future__ import annotations

import heapq
from hashlib import blake2b

from tinyllama.config.data import Source
from tinyllama.data.formats import Fault, raw_files, read_file
from tinyllama.data.progress import Tally
from tinyllama.data.units import split_of

_PIECE = 8192  # characters: a sample made of whole documents would be one book, or empty
READ = 8
"""Times the sample that is read at most: a tokenizer does not need to see a terabyte."""


def survey(source: Source, *, sample_bytes: int, strict: bool, progress: Tally) -> list[str]:
    """Pieces of a source's training documents, about `sample_bytes` UTF-8 bytes in all, the same each time.

    Files are read in the order of a hash of their names until READ times as much text has been seen. Texts are cut into
    pieces of 8,192 characters, and those with the smallest hashes are kept. Raises ValueError where something cannot be
    read and strict does not allow to leave it out.
    """
    kept: list[tuple[int, str]] = []
    size = seen = 0
    for file in sorted(raw_files(source), key=lambda file: _hash(file.name)):
        if file.held_out or seen >= READ * sample_bytes:
            continue
        for document in read_file(file, source=source):
            if isinstance(document, Fault):
                if strict:
                    raise ValueError(document.message)
                continue
            if not document.kept or split_of(document, file=file, source=source) != "train":
                continue
            read = len(document.text.encode())
            seen += read
            progress.add(0, 1, read, 0)
            for start in range(0, len(document.text), _PIECE):
                piece = document.text[start : start + _PIECE]
                # heapq pops the smallest, so ranks are negated to drop the largest
                heapq.heappush(kept, (-_hash(f"{start}:{document.key}"), piece))
                size += len(piece.encode())
                while size > sample_bytes and len(kept) > 1:
                    size -= len(heapq.heappop(kept)[1].encode())
            if seen >= READ * sample_bytes:
                break
    return [piece for _, piece in sorted(kept, reverse=True)]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
