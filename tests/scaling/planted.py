"""Points whose law is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyllama.scaling.forms import Form, design
from tinyllama.scaling.points import Point, read_csv

PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "datablations_182_fit_points.csv"

HOFFMANN = (np.exp(0.5267228), np.exp(6.0073404), np.exp(6.0179186), 0.33917084, 0.2849083)
MUENNIGHOFF = (np.exp(0.6254804), np.exp(6.255414), np.exp(7.3049974), 0.3526596, 15.387756, 5.309743)
GADRE = (1.73, 400.0, 1000.0, 0.16)


def grid(sizes: int = 5, lengths: int = 6) -> list[Point]:
    """Sizes of 20M to 1B on 0.4B to 40B tokens, their losses not yet known."""
    return [
        Point(name=f"{n:.3g} on {d:.3g}", params=float(n), tokens=float(d), loss=1)
        for n in np.geomspace(2e7, 1e9, sizes)
        for d in np.geomspace(4e8, 4e10, lengths)
    ]


def corpora() -> list[Point]:
    """Four sizes on three corpora, each seen once to 64 times."""
    return [
        Point(name=f"{n:.3g} {epochs} x {u:.3g}", params=float(n), tokens=float(u * epochs), loss=1, unique_tokens=u)
        for n in np.geomspace(2e7, 2e9, 4)
        for u in (1e8, 6e8, 3e9)
        for epochs in (1, 4, 16, 64)
    ]


def planted(
    form: Form, law: Sequence[float], points: Sequence[Point], *, noise: float = 0.0, seed: int = 0
) -> list[Point]:
    """The points with what the law says, and relative noise."""
    log_loss = form.log_loss(form.fitted([law]), design(points))[0]
    log_loss += noise * np.random.default_rng(seed).standard_normal(len(points))
    return [replace(point, loss=float(np.exp(y))) for point, y in zip(points, log_loss, strict=True)]


def public() -> list[Point]:
    """The 182 points of Muennighoff et al. 2023."""
    if not PUBLIC.exists():
        pytest.skip(f"the public points are not here: {PUBLIC.parent.name}/{PUBLIC.name}")
    return read_csv(PUBLIC)
