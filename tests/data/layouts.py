"""Raw files in the published layouts, a few hundred kilobytes of the machine's own text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from rich.console import Console

from tinyllama.config.data import Data, Filter, Prepare, Source, Tokenizer
from tinyllama.data import stdlib
from tinyllama.data.formats import Document, Fault, raw_files, read_file
from tinyllama.data.manifest import Manifest
from tinyllama.data.shards import TokenStream
from tinyllama.data.tokenizer import Tokenizer as Pieces

HOW = Prepare(workers=1, parts=64, part=None, on_error="stop")
QUIET = Console(quiet=True)
SETS = ("RedPajamaCommonCrawl", "RedPajamaGithub", "RedPajamaWikipedia")


def rows(texts: Iterable[str]) -> list[dict[str, object]]:
    """SlimPajama's records, every third of them from GitHub."""
    return [{"text": text, "meta": {"redpajama_set_name": SETS[i % 3]}} for i, text in enumerate(texts)]


def write_zst(path: Path, records: Iterable[object]) -> None:
    """A .jsonl.zst file with a checksum, as the zstd program writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(content))


def write_slimpajama(root: Path, *, files: int = 8, documents: int = 20) -> None:
    """`train/chunk*/example_train_*.jsonl.zst` and two files of `validation/chunk1`, of documentation."""
    texts = iter(stdlib.prose().values())
    for i in range(files):
        name = f"train/chunk{1 + i % 2}/example_train_{i}.jsonl.zst"
        write_zst(root / name, rows(islice(texts, documents)))
    for i in range(2):
        write_zst(root / f"validation/chunk1/example_holdout_{i}.jsonl.zst", rows(islice(texts, documents)))


def write_starcoder(root: Path, *, files: int = 4, documents: int = 10) -> None:
    """One parquet folder a language, column `content`, of code; and one with another column."""
    texts = iter(stdlib.code().values())
    for i in range(files):
        path = root / ("python", "c-sharp")[i % 2] / f"train-{i:05d}-of-{files:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = [text[:20_000] for text in islice(texts, documents)]
        table = pa.table({"max_stars_count": list(range(len(chosen))), "content": chosen})
        pq.write_table(table, path, row_group_size=4, write_page_checksum=True)
    (root / "git-commits-cleaned").mkdir()
    pq.write_table(pa.table({"diff": ["x"]}), root / "git-commits-cleaned" / "train-0.parquet")


def published(root: Path, *, tokenizer: Path | None = None) -> Data:
    """Both, written below root, as conf/data/slimpajama_starcoder describes them."""
    if not root.exists():
        write_slimpajama(root / "slimpajama")
        write_starcoder(root / "starcoder")
    return Data(
        name="both",
        tokenizer=Tokenizer(model=tokenizer and str(tokenizer), sha256=None, vocab_size=500, sample_bytes=200_000),
        sources={
            "slimpajama": Source(
                format="jsonl.zst",
                weight=0.7,
                raw=str(root / "slimpajama"),
                include=("train/chunk*/*.jsonl.zst",),
                filter=Filter(field="meta.redpajama_set_name", not_in=("RedPajamaGithub",)),
                held_out_include=("validation/chunk1/*.jsonl.zst",),
            ),
            "starcoder": Source(
                format="parquet",
                weight=0.3,
                raw=str(root / "starcoder"),
                include=("*/*.parquet",),
                exclude=("git-commits-*/*",),
                text_field="content",
                held_out=0.1,
            ),
        },
    )


def tree(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoded(folder: Path, manifest: Manifest, source: str, split: str) -> list[str]:
    """The documents of a split, from its shards."""
    tokenizer = Pieces.load(folder / manifest.tokenizer.file)
    stream = TokenStream(folder, split=getattr(manifest.sources[source], split), tokenizer=manifest.tokenizer)
    ids = stream.windows(np.array([0]), length=len(stream))[0]
    ends = np.flatnonzero(ids == tokenizer.eos)
    assert ends[-1] == len(ids) - 1
    return [tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends[:-1] + 1)]


def read_documents(source: Source) -> Iterator[Document]:
    """Every document of a source that its filter keeps, in the same order each time. ValueError at the first fault."""
    for file in raw_files(source):
        for item in read_file(file, source=source):
            if isinstance(item, Fault):
                raise ValueError(item.message)
            if item.kept:
                yield item
