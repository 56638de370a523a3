"""The kinds of value that knobs hold, and how each is read from YAML and from the command line alike."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field


class Section:
    """What every config section shares: unknown keys are refused and no value is coerced to another type."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(value: Any) -> int:
    """An exact whole number from `3T`, `2.5M`, `1e9`, `3_000_000` or a plain number.

    Raises ValueError where the value is no number, is negative, is no whole number of units, or begins with a zero:
    YAML reads 0777 as 511, so nothing else may read it as 777.
    """
    problem = f"{value!r} is not a count: write a whole number such as 3_000_000, 1e9, 22B or 3T"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(problem)
    text = str(value).strip().replace("_", "")
    suffix = text[-1:].upper() if text[-1:].upper() in "KMBT" else ""
    try:
        number = Decimal(text[:-1] if suffix else text)
    except InvalidOperation as error:
        raise ValueError(problem) from error
    # the digits are bounded before they are written out: 1e999999999T would fill the memory
    if not number.is_finite() or number < 0 or abs(number.adjusted()) > 30 or re.match(r"[+-]?0\d", text):
        raise ValueError(problem)
    exact = Fraction(number) * _SUFFIXES[suffix]
    if exact.denominator != 1:
        raise ValueError(problem)
    return exact.numerator


def parse_duration(value: Any) -> int:
    """Seconds from `23:30:00`, `1-12:00:00` (a day and a half, as SLURM writes it) or a whole number of seconds.

    YAML 1.1 reads an unquoted 23:30:00 as that many seconds already. Raises ValueError for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)", value) if isinstance(value, str) else None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise ValueError(f'{value!r} is not a time: write "HH:MM:SS", "D-HH:MM:SS" or seconds')
    return total


def _several(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"{value!r} should be text, in quotes where YAML would read another thing, or a list of texts")
    return (value,) if isinstance(value, str) else tuple(value)


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
Seconds = Annotated[int, BeforeValidator(parse_duration)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Multiple = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
"""Of something else, or gigabytes: no more than anyone has a use for."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_NAME, _ADDRESS, _SHA256 = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^[A-Za-z0-9_.-]+:\d{1,5}$", r"^[0-9a-f]{64}$"
PATTERNS = {
    _NAME: "a name: letters, digits, dots, dashes and underscores, the first a letter or a digit",
    _ADDRESS: "host:port, as in node1:29400",
    _SHA256: "a sha256: 64 hex digits in lower case",
}
"""What to say of a text that does not match."""
Globs = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""Patterns such as `train/**/*.jsonl`; one alone needs no list."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""Texts; one alone needs no list."""
Name = Annotated[str, Field(pattern=_NAME, max_length=80)]
Address = Annotated[str, Field(pattern=_ADDRESS)]
Sha256 = Annotated[str, Field(pattern=_SHA256)]
