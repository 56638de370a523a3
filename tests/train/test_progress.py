"""What a person sees: one plain line at a time where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import ModuleType

import pytest
from rich.console import Console

from tinyllama.train import progress
from tinyllama.train.meter import Rates
from tinyllama.train.progress import PLAIN_EVERY, TrainProgress, describe

RATES = Rates(tokens_per_s=24_000.4, mfu=0.5201, seconds_left=3 * 3600 + 62)
TEXT = "loss 2.346  24,000 tokens/s  MFU 52%  3:01:02 left"


@pytest.fixture
def wait(clock_of: Callable[[ModuleType], Callable[[float], None]]) -> Callable[[float], None]:
    """Lets so many seconds pass."""
    return clock_of(progress)


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3599.7, "1:00:00"), (360_000, "100:00:00")],
)
def test_time_left_carries(seconds: float, left: str) -> None:
    rates = Rates(tokens_per_s=1.0, mfu=0.0, seconds_left=seconds)
    assert describe(1.0, rates) == f"loss 1.000  1 tokens/s  MFU 0%  {left} left"


def test_describe_is_one_line() -> None:
    assert describe(2.3456, RATES) == TEXT


def plain() -> tuple[Console, Callable[[], list[str]]]:
    file = io.StringIO()
    return Console(file=file, soft_wrap=True, highlight=False, markup=False), lambda: file.getvalue().splitlines()


def test_plain_lines_are_rate_limited_but_for_the_last(wait: Callable[[float], None]) -> None:
    console, lines = plain()
    shown = TrainProgress(steps=100, start=0, shown=True, console=console)
    shown.step(1)
    shown.rates(1, 2.3456, RATES)
    wait(PLAIN_EVERY - 0.1)
    shown.rates(10, 2.3456, RATES)
    assert lines() == [f"step 1/100  {TEXT}"]
    wait(0.2)
    shown.rates(20, 2.3456, RATES)
    shown.rates(30, 2.3456, RATES)
    shown.rates(100, 2.3456, RATES)
    shown.close()
    assert lines() == [f"step {done}/100  {TEXT}" for done in (1, 20, 100)]


def test_a_line_of_its_own_is_never_left_out(wait: Callable[[float], None]) -> None:
    console, lines = plain()
    shown = TrainProgress(steps=100, start=0, shown=True, console=console)
    shown.say("one")
    shown.say("two")
    assert lines() == ["one", "two"]


def test_a_line_on_stderr_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "step 20: held-out loss  " + "web[/code] 2.345 (0.812 bits/byte)  " * 5 + "end"
    TrainProgress(steps=1, start=0, shown=True).say(line)
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n"), "not broken at 80 columns, and no part of it read as markup"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_shown_where_it_is_not_shown(wait: Callable[[float], None], terminal: bool) -> None:
    file = io.StringIO()
    hidden = TrainProgress(steps=2, start=0, shown=False, console=Console(file=file, force_terminal=terminal))
    hidden.step(1)
    hidden.rates(1, 1.0, RATES)
    hidden.rates(2, 1.0, RATES)
    hidden.say("line")
    hidden.close()
    assert file.getvalue() == ""


def test_a_terminal_has_a_bar_that_starts_where_the_run_does() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, color_system=None)
    shown = TrainProgress(steps=100, start=40, shown=True, console=console)
    shown.rates(41, 2.3456, RATES)
    shown.step(42)
    shown.say("a line above the bar")
    shown.close()
    written = file.getvalue()
    assert "40/100" in written
    last = written.rpartition("42/100")
    assert last[1]
    assert last[2].strip().startswith(("━", "╸", "╺"))
    assert TEXT in last[2]
    assert "a line above the bar" in written
    assert f"step 41/100  {TEXT}" not in written, "no plain lines beside it"
