"""What a prepared data set holds, and what a run will make of it: task=inspect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from tinyllama.config.data import Inspect
from tinyllama.data.documents import Documents
from tinyllama.data.loader import Loader, window_start
from tinyllama.data.manifest import Manifest
from tinyllama.data.mixture import Mixture, Stage

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_UNITS = 64  # a billion documents' lengths are not read to tell their median


def contents(manifest: Manifest, documents: Mapping[str, Documents]) -> Iterator[Table]:
    """Tables of what became of each source's documents, and of how long those to train on are."""
    parts = _table("what the raw files hold", "source", "", "documents", "tokens", "text bytes", "bytes/token")
    lengths = _table("tokens of a document to train on", "source", *(f"{q:.0%}" for q in QUANTILES), "mean")
    for name, source in manifest.sources.items():
        train, raw = source.train, source.raw
        for label, split in (("to train on", train), ("held out", source.held_out)):
            counts = map(short, (split.documents, split.tokens, split.bytes))
            parts.add_row(name if split is train else "", label, *counts, f"{split.bytes / split.tokens:.2f}")
        parts.add_row("", "filtered out", short(raw.filtered_documents), "", short(raw.filtered_bytes))
        parts.add_row("", "not readable", short(raw.skipped))
        found = np.quantile(documents[name].lengths(units=_UNITS), QUANTILES, method="inverted_cdf")
        lengths.add_row(name, *map(short, found.tolist()), f"{train.tokens / train.documents:,.1f}")
    yield parts
    yield lengths


def samples(documents: Mapping[str, Documents], *, count: int, characters: int, seed: int) -> Iterator[str]:
    """Some documents of each source, drawn by their tokens, cut short."""
    for name, of_source in documents.items():
        draw = np.random.default_rng([seed, len(of_source.stream)])
        for token in draw.integers(len(of_source.stream), size=count).tolist():
            key, text = of_source.text_at(token)
            lines = [_printable(line) for line in text[:characters].split("\n")]
            if len(text) > characters:
                lines.append(f"... {len(text):,} characters in all")
            yield "\n    ".join([f"{name}: {_printable(key)}", *lines])


def realised(mixture: Mixture, *, sequences: int, context: int) -> Table:
    """What a run of so many sequences takes of each source, counted and not estimated."""
    table = _table("what the run takes", "source", "share", "sequences", "tokens", "epochs")
    epochs = mixture.epochs(sequences)
    for name, count in mixture.counts(sequences).items():
        share = f"{count / sequences:.4%}"
        table.add_row(name, share, f"{count:,}", f"{count * context:,}", f"{epochs[name]:.3f}")
    return table


def of_step(
    loader: Loader, documents: Mapping[str, Documents], *, samples: Sequence[int], context: int
) -> Iterator[str]:
    """A line for each sequence of a step and each document in it: what to look at when the loss jumps."""
    found = loader.mixture.locate(np.asarray(samples))
    for place, (source, epoch, window) in enumerate(zip(*(column.tolist() for column in found), strict=True)):
        name = loader.mixture.names[source]
        of_source = documents[name]
        start = window_start(window, tokens=len(of_source.stream), context=context)
        yield f"sequence {place}: {name}, epoch {epoch}, tokens {start:,} to {start + context:,}"
        for piece in of_source.between(start, start + context + 1):
            yield f"    {_printable(piece.key)}: tokens {piece.start:,} to {piece.stop - 1:,} of {piece.tokens:,}"


def show(
    manifest: Manifest, folder: Path, *, how: Inspect, stages: Sequence[Stage], sequences: int,
    step: Sequence[int] | None, unique_tokens: Mapping[str, int], context: int, seed: int,
) -> Iterator[Table | str]:  # fmt: skip
    """All that task=inspect tells: of the set, of a run of so many sequences, of a step that takes these samples."""
    documents = {name: Documents(manifest, folder, source=name) for name in manifest.sources}
    loader = Loader(manifest, folder, stages=stages, unique_tokens=unique_tokens, context=context, seed=seed)
    if step is not None:
        yield from of_step(loader, documents, samples=step, context=context)
        return
    yield from contents(manifest, documents)
    yield realised(loader.mixture, sequences=sequences, context=context)
    yield from samples(documents, count=how.samples, characters=how.characters, seed=seed)


def short(count: int) -> str:
    """A count in nine characters at most: exact below ten million, then `12.3M`, `659.0B`, `1.2T`."""
    if count < 10_000_000:
        return f"{count:,}"
    sizes = {"M": 10**6, "B": 10**9, "T": 10**12}
    unit = next((unit for unit in "MB" if count < 999.95 * sizes[unit]), "T")
    return f"{count / sizes[unit]:,.1f}{unit}"


def _table(title: str, *columns: str) -> Table:
    """A table whose numbers are to the right."""
    table = Table(box=None, pad_edge=False, title=f"\n{title}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("source", "") else "right", overflow="fold")
    return table


def _printable(text: str) -> str:
    """A line with what a terminal would obey, or not show, spelt out."""
    return "".join(
        sign if sign.isprintable() or sign == "\t" else sign.encode("unicode_escape").decode() for sign in text
    )
