"""What a person sees of a long pass: one plain line at a time where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import ModuleType

import pytest
from rich.console import Console

from tinyllama.data import progress
from tinyllama.data.progress import PLAIN_EVERY, Tally, duration

MEGA = 10**6


@pytest.fixture(autouse=True)
def wait(clock_of: Callable[[ModuleType], Callable[[float], None]]) -> Callable[[float], None]:
    """Lets so many seconds pass."""
    return clock_of(progress)


def plain() -> tuple[Console, Callable[[], list[str]]]:
    file = io.StringIO()
    return Console(file=file, soft_wrap=True, highlight=False, markup=False), lambda: file.getvalue().splitlines()


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, color_system=None, soft_wrap=True, markup=False), file


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3599.7, "1:00:00"), (3723, "1:02:03"), (4e5, "111:06:40")],
)
def test_a_duration_carries(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("total", "done", "seconds", "line"),
    [
        (
            500 * MEGA,
            [200 * MEGA, 1_200, 51 * MEGA, 16 * MEGA],
            10,
            "40%, 0:00:15 left, 1,200 documents, 5.1 MB/s, 1.60 M tokens/s",
        ),
        (None, [200 * MEGA, 1_200, 51 * MEGA, 16 * MEGA], 10, "1,200 documents, 5.1 MB/s, 1.60 M tokens/s"),
        (500 * MEGA, [0, 3, 5 * MEGA, 0], 10, "3 documents, 0.5 MB/s"),
        (0, [5, 3, 5 * MEGA, 0], 10, "3 documents, 0.5 MB/s"),
        (1000, [1000, 1, MEGA, MEGA], 0.5, "100%, 0:00:00 left, 1 documents, 2.0 MB/s, 2.00 M tokens/s"),
        # a file that has grown since it was listed
        (1000, [1500, 1, MEGA, MEGA], 10, "150%, 0:00:00 left, 1 documents, 0.1 MB/s, 0.10 M tokens/s"),
        (10**12, [10**8, 1, MEGA, MEGA], 100, "0%, 277:45:00 left, 1 documents, 0.0 MB/s, 0.01 M tokens/s"),
        (1000, [0, 0, 0, 0], 0, "0 documents, 0.0 MB/s"),
    ],
)
def test_a_line_is_arithmetic(total: int | None, done: list[int], seconds: float, line: str) -> None:
    tally = Tally("encoding", total=total, console=plain()[0])
    tally.done = done
    assert tally.line(seconds) == line


def test_what_is_added_adds_up(wait: Callable[[float], None]) -> None:
    with Tally("x", total=None, console=Console(quiet=True)) as tally:
        for i in range(5):
            wait(3)
            tally.add(1, 10, 100 * i, 7)
        assert tally.done == [5, 50, 1000, 35]
        tally.show([9, 9, 9, 9])
        tally.add(1, 0, 0, 0)
        assert tally.done == [10, 9, 9, 9]


def test_plain_lines_come_every_five_seconds_and_at_the_end(wait: Callable[[float], None]) -> None:
    assert PLAIN_EVERY == 5
    console, lines = plain()
    with Tally("encoding", total=100, console=console) as tally:
        for seconds, written in ((0, 0), (4.5, 0), (0.5, 1), (4.5, 1), (0.5, 2), (1, 2)):
            wait(seconds)
            tally.add(10, 1, MEGA, 0)
            assert len(lines()) == written
        wait(1)
        tally.add(40, 1, MEGA, 0)
    assert lines() == [
        "encoding: 30%, 0:00:12 left, 3 documents, 0.6 MB/s",
        "encoding: 50%, 0:00:10 left, 5 documents, 0.5 MB/s",
        "encoding: 100%, 0:00:00 left, 7 documents, 0.6 MB/s",
    ]


def test_a_short_pass_says_nothing(wait: Callable[[float], None]) -> None:
    console, lines = plain()
    with Tally("encoding", total=100, console=console) as tally:
        wait(PLAIN_EVERY - 0.1)
        tally.add(100, 1, 1, 1)
    assert lines() == []


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_has_a_bar_that_ends_where_the_pass_does(wait: Callable[[float], None], width: int) -> None:
    console, file = terminal(width)
    with Tally("encoding", total=1000 * MEGA, console=console) as tally:
        assert "encoding" in file.getvalue()
        wait(4)
        tally.add(400 * MEGA, 12_345_678, 800 * MEGA, 200 * MEGA)
        tally.add(1, 0, 0, 0)  # too soon to be told
        half = "40%, 0:00:06 left, 12,345,678 documents, 200.0 MB/s, 50.00 M tokens/s"
        assert tally._bar is not None
        assert (tally._bar.tasks[0].description, tally._bar.tasks[0].completed) == (half, 400 * MEGA)
        wait(4)
        tally._bar.refresh()
        tally.add(600 * MEGA - 1, 0, 0, 0)
        progress_bar = tally._bar
    assert progress_bar.finished and not progress_bar.live.is_started
    last = file.getvalue().rpartition("encoding")[2]
    [shown] = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).strip().splitlines()
    bar, _, text = shown.rpartition("━ ")
    assert text == "100%, 0:00:00 left, 12,345,678 documents, 100.0 MB/s, 25.00 M tokens/s"
    assert len(bar) == (0 if width == 80 else width - len(f"encoding {text}") - 2)
    # and the terminal is as it was
    assert last.count("\x1b[?25h") == 1
    console.print("after")
    assert file.getvalue().endswith("after\n")


def test_a_bar_stops_where_the_pass_fails(wait: Callable[[float], None]) -> None:
    console, file = terminal()
    tally = Tally("encoding", total=100, console=console)

    def fail() -> None:
        with tally:
            wait(1)
            tally.add(10, 1, 1, 0)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    bar = tally._bar
    assert bar is not None and not bar.live.is_started and "10%" in file.getvalue() and "100%" not in file.getvalue()


def test_a_bar_without_a_total_goes_on(wait: Callable[[float], None]) -> None:
    console, file = terminal()
    with Tally("sampling web", total=None, console=console) as tally:
        wait(1)
        tally.add(0, 3, 2 * MEGA, 0)
        bar = tally._bar
    assert bar is not None and bar.tasks[0].total is None
    assert "sampling web" in file.getvalue() and "3 documents, 2.0 MB/s" in file.getvalue()


def test_a_short_pass_has_a_whole_bar() -> None:
    console, file = terminal()
    with Tally("encoding", total=100, console=console) as tally:
        tally.add(100, 3, 0, 0)
    assert "100%, 0:00:00 left, 3 documents" in file.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_quiet_console_stays_quiet(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    file = io.StringIO()
    with Tally("x", total=9, console=Console(file=file, force_terminal=is_terminal, quiet=True)) as tally:
        wait(99)
        tally.add(9, 9, 9, 9)
        print("what others print is not")
    assert file.getvalue() == "" and capsys.readouterr().out == "what others print is not\n"
