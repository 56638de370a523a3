"""Numbers and formulas as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tinyllama.scaling import notation


@pytest.mark.parametrize(
    ("form", "value", "shown"),
    [
        (notation.scientific, 5.76e23, "5.76×10²³"),
        (notation.scientific, 1e18, "10¹⁸"),
        (notation.scientific, 2.5e-7, "2.5×10⁻⁷"),
        (notation.quantity, 0.33917084, "0.3392"),
        (notation.quantity, 0.34, "0.3400"),
        (notation.quantity, 406.4, "406.4"),
        (notation.quantity, 2084.5, "2,084"),
        (notation.quantity, -8.504, "−8.504"),
        (notation.quantity, 1234567.0, "1.235×10⁶"),
        (notation.quantity, -1.5e-4, "−1.5×10⁻⁴"),
        (notation.quantity, 0.0, "0"),
        (notation.quantity, math.inf, "∞"),
        (notation.quantity, -math.inf, "−∞"),
        (notation.quantity, math.nan, "–"),
        (notation.quantity, None, "–"),
        (notation.count, 1.1e9, "1.1B"),
        (notation.count, 3e12, "3T"),
        (notation.count, 4.2e16, "4.2×10¹⁶"),
        (notation.count, math.inf, "∞"),
        (notation.count, None, "–"),
        (notation.loss, 2.15649, "2.156"),
        (notation.loss, None, "–"),
        (notation.ratio, 2727.3, "2,727"),
        (notation.ratio, 20.44, "20.4"),
        (notation.percent, 0.163, "16.3%"),
        (notation.percent, 0.004, "0.40%"),
        (notation.percent, -0.0123, "−1.2%"),
    ],
)  # fmt: skip
def test_numbers(form: Callable[[Any], str], value: float | None, shown: str) -> None:
    assert form(value) == shown


def test_an_interval_and_a_sign() -> None:
    assert notation.interval({"low": 6.5, "high": math.inf}) == "[6.500, ∞]"
    assert notation.interval({"low": 1e9, "high": 2e9}, notation.count) == "[1B, 2B]"
    assert notation.percent(0.0123, sign="+") == "+1.2%"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "L = E + A/N^alpha",
            "<i>L</i> = <i>E</i> + <i>A</i>/<i>N</i><sup><i>α</i></sup>",
        ),
        ("(a M^-eta) C", "(<i>a</i> <i>M</i><sup>−<i>η</i></sup>) <i>C</i>"),
        ("U R_D* - 1", "<i>U</i> <i>R</i><sub><i>D</i></sub><sup>*</sup> − 1"),
        ("e^(-(x - 1)/R_D)", "<i>e</i><sup>−(<i>x</i> − 1)/<i>R</i><sub><i>D</i></sub></sup>"),
        ("N'^alpha * 2", "<i>N</i>′<sup><i>α</i></sup> · 2"),
        ("exp(x^(y", "exp(<i>x</i><sup><i>y</i></sup>"),
        ("<b> & \"q\"", "&lt;<i>b</i>&gt; &amp; &quot;<i>q</i>&quot;"),
    ],
)  # fmt: skip
def test_formulas(text: str, shown: str) -> None:
    assert notation.formula(text) == shown
