"""Tables of runs: what is read, and what is refused with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scaling.planted import public
from tinyllama.scaling.points import Point, read_csv


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def test_a_table_is_points(tmp_path: Path) -> None:
    points = read_csv(table(tmp_path, "params,tokens,loss,unique_tokens,name\n1e8,2e9,3.5,1e9,a\n1e8,2e9,3.4,,\n"))
    assert points == [
        Point(name="a", params=1e8, tokens=2e9, loss=3.5, unique_tokens=1e9),
        Point(name="line 3", params=1e8, tokens=2e9, loss=3.4),
    ]
    assert points[0].flops == 1.2e18
    assert [point.epochs for point in points] == [2, None]
    assert read_csv(table(tmp_path, "\ufeff tokens, params,val_loss\n2e9, 1e8,3.5\n")) == [
        Point(name="line 2", params=1e8, tokens=2e9, loss=3.5)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty: write a header such as params,tokens,loss and a line for each run"),
        ("params,tokens,loss\n", "it has a header and no runs: write a line for each run"),
        (
            "params,loss\n1,2\n",
            ":1: no column tokens among params, loss: the header has params, tokens and loss (or val_loss), and may "
            "have unique_tokens and name",
        ),
        ("params,tokens,losss\n1,2,3\n", ":1: no column loss among params, tokens, losss: the header has params"),
        ("params,tokens,loss\n1,2,3\n1,2\n", ":3: the line has not as many values as the header has columns"),
        ("params,tokens,loss\n1,2,3,4\n", ":2: the line has not as many values as the header has columns"),
        (
            "params,tokens,loss\n1,2,3\n1,2,nan\n",
            ":3: loss is 'nan', which is no positive number: mend the line, or leave the run out",
        ),
        ("params,tokens,val_loss\n1,2,inf\n", ":2: val_loss is 'inf', which is no positive number"),
        ("params,tokens,loss\n0,2,3\n", ":2: params is '0', which is no positive number"),
        ("params,tokens,loss\n1,-2,3\n", ":2: tokens is '-2', which is no positive number"),
        ("params,tokens,loss\n1,,3\n", ":2: tokens is '', which is no positive number"),
        ("params,tokens,loss\n1,2B,3\n", ":2: tokens is '2B', which is no positive number"),
        ("params,tokens,loss,unique_tokens\n1,2,3,0\n", ":2: unique_tokens is '0', which is no positive number"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the whole beginning is compared
        read_csv(path)
    assert str(refused.value).removeprefix(str(path)).removeprefix(": ").startswith(said)


def test_the_public_points() -> None:
    points = public()
    assert len(points) == 182
    assert {type(point.unique_tokens) for point in points} == {float}
