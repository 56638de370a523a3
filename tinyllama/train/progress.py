"""What a person sees while a model trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tinyllama.data.progress import PLAIN_EVERY, duration
from tinyllama.train.meter import Rates


def describe(loss: float, rates: Rates) -> str:
    """Loss, rate and time left in one line."""
    left = duration(rates.seconds_left)
    return f"loss {loss:.3f}  {rates.tokens_per_s:,.0f} tokens/s  MFU {rates.mfu:.0%}  {left} left"


class TrainProgress:
    """Shows a run's progress; where `shown` is false, as on all ranks but the first, it does nothing."""

    def __init__(self, *, steps: int, start: int, shown: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._shown = shown
        self._steps = steps
        self._last = float("-inf")
        self._bar: Progress | None = None
        if shown and self._console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, completed=start)

    def step(self, done: int) -> None:
        """So many steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=done)

    def rates(self, done: int, loss: float, rates: Rates) -> None:
        """How it goes; a plain line is left out where the last one is recent."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=describe(loss, rates))
        elif self._shown and (time.monotonic() - self._last >= PLAIN_EVERY or done == self._steps):
            self._last = time.monotonic()
            self._console.print(f"step {done}/{self._steps}  {describe(loss, rates)}")

    def say(self, line: str) -> None:
        """A line of its own."""
        if self._shown:
            self._console.print(line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar:
            self._bar.stop()
