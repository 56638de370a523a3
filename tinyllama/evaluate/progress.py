"""What a person sees while a model is measured: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tinyllama.data.progress import PLAIN_EVERY


class Asking:
    """How far the part of an evaluation is that is under way; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = time.monotonic()
        self._label = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Asking:
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, label: str) -> None:
        """Another part begins, as a task."""
        self._label = label
        if self._bar:
            self._bar.update(self._task, description=label, completed=0, total=None)

    def tell(self, what: str, done: int, total: int) -> None:
        """So much of it is done."""
        label = f"{self._label}: {what}"
        if self._bar:
            self._bar.update(self._task, description=label, completed=done, total=total)
        elif time.monotonic() - self._told >= PLAIN_EVERY:
            self._told = time.monotonic()
            self._console.print(f"{label} {done:,}/{total:,}")
