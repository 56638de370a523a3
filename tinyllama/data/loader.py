"""Batches by number: the same samples whatever the ranks, at any step at once, with nothing to save or restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tinyllama.data.manifest import Manifest
from tinyllama.data.mixture import Mixture, Stage
from tinyllama.data.shards import TokenStream

IGNORED = -100
"""Target of a position that is not scored; PyTorch's default for cross-entropy."""


def window_count(tokens: int, *, context: int) -> int:
    """Windows of a training stream: each predicts `context` tokens, and every token but the first is predicted.

    The last window reaches back over the one before it so that it is full.
    """
    return -(-(tokens - 1) // context)


def window_start(window: int, *, tokens: int, context: int) -> int:
    """The first token of a window of a stream of so many."""
    return min(window * context, tokens - context - 1)


class Loader:
    """The training samples of a prepared data set, by their number."""

    def __init__(
        self, manifest: Manifest, folder: Path, *, stages: Sequence[Stage], unique_tokens: Mapping[str, int],
        context: int, seed: int,
    ) -> None:  # fmt: skip
        """Opens the training streams; unique_tokens has how much is taken of sources that are not taken whole.

        Raises ValueError where a source has fewer than context + 1 tokens.
        """
        self._context = context
        names = list(stages[0].weights)
        self._streams = [
            TokenStream(folder, split=manifest.sources[name].train, tokenizer=manifest.tokenizer) for name in names
        ]
        for name, stream in zip(names, self._streams, strict=True):
            if len(stream) <= context:
                raise ValueError(
                    f"source {name} has {len(stream):,} training tokens, and one sequence takes context + 1 = "
                    f"{context + 1:,}: give it more documents or use a smaller model.context"
                )
        windows = {
            name: window_count(len(stream), context=context) for name, stream in zip(names, self._streams, strict=True)
        }
        taken = {name: tokens // context for name, tokens in unique_tokens.items()}
        self.mixture = Mixture(stages, windows=windows, taken=taken, seed=seed)
        """Which sample is which."""

    def batch(self, samples: Sequence[range], *, rank: int, world: int, micro_batch: int) -> np.ndarray:
        """A rank's sequences of a step with these samples, int64 [accumulation, micro_batch, context + 1].

        The samples are ranges of their numbers, usually one; the step's are those of the first, then of the next and so
        on. Sample p = (micro * world + rank) * micro_batch + j of the step is the same for any world and micro_batch.
        Raises ValueError where these do not divide the step's samples.
        """
        total = sum(map(len, samples))
        accumulation, rest = divmod(total, world * micro_batch)
        if rest or not accumulation:
            raise ValueError(
                f"a step has {total} sequences, which {world} ranks with micro-batches of {micro_batch} do "
                "not divide evenly: change train.batch_tokens or parallelism.micro_batch"
            )
        out = np.empty((accumulation, micro_batch, self._context + 1), dtype=np.int64)
        for micro, rows in enumerate(out):
            first = (micro * world + rank) * micro_batch
            if len(samples) == 1:
                self._read(samples[0][first : first + micro_batch], rows)
                continue
            for part in _between(samples, first, first + micro_batch):
                self._read(part, rows[: len(part)])
                rows = rows[len(part) :]
        return out

    def _read(self, samples: range, rows: np.ndarray) -> None:
        """Fills a row with the tokens of each sample."""
        found = self.mixture.locate(samples)
        for row, source, window in zip(rows, found.source.tolist(), found.window.tolist(), strict=True):
            stream = self._streams[source]
            stream.read(window_start(window, tokens=len(stream), context=self._context), row)


def _between(samples: Sequence[range], first: int, stop: int) -> Iterator[range]:
    """What lies from place `first` to `stop` of ranges one after the other."""
    for piece in samples:
        if part := piece[max(first, 0) : max(stop, 0)]:
            yield part
        first, stop = first - len(piece), stop - len(piece)


class HeldOut:
    """The held-out tokens of one source in windows side by side, each token scored exactly once.

    The end token stands before the first, as it does before every later document, so that the first is scored too and
    the scored tokens' bytes are the split's.
    """

    def __init__(self, manifest: Manifest, folder: Path, *, source: str, context: int) -> None:
        """Opens a source's held-out stream."""
        self._stream = TokenStream(folder, split=manifest.sources[source].held_out, tokenizer=manifest.tokenizer)
        self._eos = manifest.tokenizer.eos
        self.context = context
        """Tokens in a window."""
        self.tokens = len(self._stream)
        """Tokens that are scored."""

    def __len__(self) -> int:
        """Windows; the last may be partial."""
        return -(-self.tokens // self.context)

    def take(self, windows: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of these windows, int64 [n, context] each.

        Where the tokens end within a window its targets are `IGNORED` and its inputs the end token.
        """
        shape = (len(windows), self.context)
        inputs, targets = np.full(shape, self._eos, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        for row, window in enumerate(windows):
            start = int(window) * self.context
            length = min(self.context, self.tokens - start)
            targets[row, :length] = self._stream.windows(np.array([start]), length=length)[0]
            inputs[row, 1:length] = targets[row, : length - 1]
            if start:
                inputs[row, 0] = self._stream.windows(np.array([start - 1]), length=1)[0, 0]
        return inputs, targets


def held_out(manifest: Manifest, folder: Path, sources: Iterable[str], *, context: int) -> dict[str, HeldOut]:
    """The held-out windows of each source."""
    return {name: HeldOut(manifest, folder, source=name, context=context) for name in sources}
