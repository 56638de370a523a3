"""What a person sees while raw files are read: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_EVERY = 5.0
"""Seconds between two plain lines."""
BAR_EVERY = 0.5
"""Seconds between two states of the bar."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Tally:
    """How far a pass over raw files has come, and how fast."""

    def __init__(self, label: str, *, total: int | None, console: Console) -> None:
        """total: raw bytes that the pass reads, None where nobody knows."""
        self._label, self._total, self._console = label, total, console
        self.done = [0, 0, 0, 0]
        """Raw bytes, documents, bytes of text, tokens."""
        self._began = self._told = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Tally:
        if self._console.is_terminal and not self._console.quiet:
            # the bar takes what the text leaves of the line
            columns = (TextColumn(self._label), BarColumn(bar_width=None), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar or self._told > self._began:  # what never had a line was short
            self._tell()
        if self._bar:
            self._bar.stop()

    def add(self, raw: int, documents: int, text: int, tokens: int) -> None:
        """Counts what was just done: raw bytes, documents, bytes of text, tokens."""
        self.show([done + more for done, more in zip(self.done, (raw, documents, text, tokens), strict=True)])

    def show(self, done: list[int]) -> None:
        """Tells what has been done so far, where the last time is a while ago."""
        self.done = done
        if time.monotonic() - self._told >= (BAR_EVERY if self._bar else PLAIN_EVERY):
            self._tell()

    def line(self, seconds: float) -> str:
        """The pass so far: `40%, 0:00:12 left, 1,200 documents, 5.1 MB/s, 1.60 M tokens/s`."""
        raw, documents, text, tokens = self.done
        seconds = max(seconds, 1e-3)  # of a clock that has not moved yet
        parts = [f"{documents:,} documents", f"{text / seconds / 1e6:.1f} MB/s"]
        if tokens:
            parts.append(f"{tokens / seconds / 1e6:.2f} M tokens/s")
        if self._total and raw:
            left = max(0, self._total - raw)
            parts[:0] = [f"{raw / self._total:.0%}", f"{duration(seconds * left / raw)} left"]
        return ", ".join(parts)

    def _tell(self) -> None:
        self._told = time.monotonic()
        line = self.line(self._told - self._began)
        if self._bar:
            self._bar.update(self._task, completed=self.done[0], description=line)
        else:
            self._console.print(f"{self._label}: {line}")
