"""Numbers and formulas for people: in text, on axes and in HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from tinyllama.plan.render import counted

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "lambda": "λ", "kappa": "κ",
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_MINUS = "\N{MINUS SIGN}"
NOTHING = "–"
"""In the place of a number that is missing."""


def scientific(value: float, *, digits: int = 3) -> str:
    """A number as in 5.76×10²³; a bare power of ten where that is what it is."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}×{power}".replace("-", _MINUS)


def quantity(value: float | None) -> str:
    """A number in four digits, 406.4 or 0.3392; ∞ for one without bound."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    if value and not 1e-3 <= abs(value) < 1e5:
        return scientific(value, digits=4)
    if abs(value) >= 1e3:
        return f"{value:,.0f}".replace("-", _MINUS)
    return f"{value:#.4g}".replace("-", _MINUS) if value else "0"


def count(value: float | None) -> str:
    """Parameters or tokens, as in 1.1B."""
    if value is None or math.isnan(value):
        return NOTHING
    if value >= 1e15:
        return "∞" if math.isinf(value) else scientific(value)
    return counted(value)


def loss(value: float | None) -> str:
    """Nats a token, in three decimals."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.3f}" if math.isfinite(value) else "∞"


def ratio(value: float) -> str:
    """How many times, or how many tokens a parameter: 2,727 or 20.4 or 0.57."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: float, *, sign: str = "") -> str:
    """A fraction as a percentage in two digits or more; sign "+" shows that of a gain, too."""
    shown = f"{100 * value:{sign}.1f}" if abs(value) >= 0.00995 else f"{100 * value:{sign}#.2g}"
    return shown.replace("-", _MINUS) + "%"


def interval(found: Mapping[str, Any], form: Any = quantity) -> str:
    """The 90% interval, in brackets."""
    return f"[{form(found['low'])}, {form(found['high'])}]"


def flops(value: float) -> str:
    """Training compute, as in 5.76×10²³."""
    return scientific(value)


def symbol(name: str) -> str:
    """A parameter's name in HTML: α for alpha, a subscript for R_D, a raised star for R_D*."""
    return formula(name)


_PART = re.compile(
    r"\^-?[A-Za-z0-9]+|\^\(|_[A-Za-z0-9]+|[A-Za-z]+|\s-\s|(?<=[A-Za-z'])\*| \* |-(?=[A-Za-z0-9])|.", re.S
)


def formula(text: str) -> str:
    """A formula of plain text, as in E + A/N^alpha, in HTML: Greek letters, raised exponents, lowered indices."""
    out, index = [], 0
    while index < len(text):
        found = _PART.match(text, index)
        assert found is not None  # the last alternative takes any character
        part, index = found.group(), found.end()
        if part == "^(":
            end = _closing(text, index)
            out.append(f"<sup>{formula(text[index:end])}</sup>")
            index = end + 1
        elif part[0] in "^_" and len(part) > 1:
            tag = "sup" if part[0] == "^" else "sub"
            out.append(f"<{tag}>{formula(part[1:])}</{tag}>")
        elif part.isalpha() and part.isascii():
            known = GREEK.get(part, part)
            out.append(f"<i>{known}</i>" if len(known) == 1 else known)
        else:
            out.append(
                {"*": "<sup>*</sup>", " * ": " · ", " - ": f" {_MINUS} ", "-": _MINUS, "'": "′"}.get(part, escape(part))
            )
    return "".join(out)


def _closing(text: str, start: int) -> int:
    """Where the bracket that was opened just before `start` closes; the end of the text where it does not."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)
