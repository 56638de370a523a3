"""Runs as points: a size, a length and the loss that came of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinyllama.tracking.record import write_whole


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run at its end."""

    name: str
    params: float
    """All parameters, embeddings too."""
    tokens: float
    """Training tokens, seen again or not."""
    loss: float
    """Held-out, in nats a token."""
    unique_tokens: float | None = None
    """Distinct ones among the tokens; None where that is not known."""

    @property
    def flops(self) -> float:
        """Training compute, C = 6 N D."""
        return 6 * self.params * self.tokens

    @property
    def epochs(self) -> float | None:
        """Times that each unique token was seen, at least 1; None where that is not known."""
        return None if self.unique_tokens is None else max(1.0, self.tokens / self.unique_tokens)


LOSSES = ("loss", "val_loss")
"""Names that the column of losses goes by."""


def read_csv(path: Path) -> list[Point]:
    """The points of a table with the columns params, tokens, loss (or val_loss) and, if known, unique_tokens and name.

    Raises ValueError, with file and line, for a column that is missing and for what is no positive number.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or []]
        if not header:
            raise ValueError(f"{path}: it is empty: write a header such as params,tokens,loss and a line for each run")
        reader.fieldnames = header
        loss = next((name for name in LOSSES if name in header), None)
        for column in ("params", "tokens"):
            if column not in header:
                raise _missing(path, column, header)
        if loss is None:
            raise _missing(path, "loss", header)
        points = [_point(f"{path}:{reader.line_num}", row, loss) for row in reader]
    if not points:
        raise ValueError(f"{path}: it has a header and no runs: write a line for each run")
    return points


def write_csv(path: Path, points: Iterable[Point]) -> None:
    """The same table, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "params", "tokens", "unique_tokens", "loss"])
    for point in points:
        unique = "" if point.unique_tokens is None else repr(point.unique_tokens)
        writer.writerow([point.name, repr(point.params), repr(point.tokens), unique, repr(point.loss)])
    write_whole(path, text.getvalue().encode())


def _missing(path: Path, column: str, header: list[str]) -> ValueError:
    return ValueError(
        f"{path}:1: no column {column} among {', '.join(header)}: "
        f"the header has params, tokens and loss (or val_loss), and may have unique_tokens and name"
    )


def _point(where: str, row: dict[str, str | None], loss: str) -> Point:
    if None in row or None in row.values():
        raise ValueError(f"{where}: the line has not as many values as the header has columns: add or remove commas")
    unique = (row.get("unique_tokens") or "").strip()
    return Point(
        name=(row.get("name") or "").strip() or f"line {where.rpartition(':')[2]}",
        params=_positive(where, "params", row["params"]),
        tokens=_positive(where, "tokens", row["tokens"]),
        loss=_positive(where, loss, row[loss]),
        unique_tokens=_positive(where, "unique_tokens", unique) if unique else None,
    )


def _positive(where: str, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"{where}: {column} is {text!r}, which is no positive number: mend the line, or leave the run out"
        )
    return value
