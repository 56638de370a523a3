"""Laws planted and dug up again: python benchmarks/planted_laws.py [--seeds N] [--out FILE].

Losses are made from laws that are known, with noise of 0.2 to 0.5% of the loss, each point's of another size; a law is
fitted as `tinyllama.scaling` fits, and its 90% intervals hold what was planted or do not. Then a law that is wrong:
losses of repeated tokens, fitted by the law that knows of no repeats, and what each says of runs that were held out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.data_race import machine
from tinyllama.scaling.estimate import estimate, interval
from tinyllama.scaling.fit import fit_all
from tinyllama.scaling.forms import HOFFMANN, OVERTRAINED, REPEATED, Form, design
from tinyllama.scaling.points import Point

ROOT = Path(__file__).resolve().parents[1]
NOISE = (0.002, 0.005)
"""Standard deviations in ln L; a point's is drawn from between them."""
HELD = (82, 97)
"""Of 100 intervals of 90%, as many as this hold what was planted."""


def _point(params: float, tokens: float, unique: float | None = None) -> Point:
    return Point(
        name=f"{params:.3g}-{tokens:.3g}-{unique or 0:.3g}", params=params, tokens=tokens, loss=1, unique_tokens=unique
    )


def lengths(sizes: int, budgets: int) -> list[Point]:
    """Sizes of 20M to 1B, each trained on budgets of 0.4B to 40B tokens."""
    return [_point(n, d) for n in np.geomspace(2e7, 1e9, sizes) for d in np.geomspace(4e8, 4e10, budgets)]


def ratios(sizes: int, budgets: int) -> list[Point]:
    """The same sizes, each trained on 5 to 640 tokens a parameter."""
    return [_point(n, n * m) for n in np.geomspace(2e7, 1e9, sizes) for m in np.geomspace(5, 640, budgets)]


def repeats() -> list[Point]:
    """Five sizes on three corpora of 0.1B to 3B tokens, seen once to 64 times."""
    return [
        _point(n, unique * epochs, unique)
        for n in np.geomspace(2e7, 2e9, 5)
        for unique in np.geomspace(1e8, 3e9, 3)
        for epochs in (1, 4, 16, 64)
    ]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A law and where it is seen."""

    name: str
    form: Form
    truth: tuple[float, ...]
    """Its parameters, in the form's order."""
    points: tuple[Point, ...]
    """Whose losses are made."""

    @property
    def told(self) -> tuple[str, ...]:
        """What intervals are held to account for."""
        return (*self.form.names, FAR)


FAR = "loss at ten times the compute"

CHINCHILLA = (1.693375, 406.4, 410.7, 0.33917084, 0.2849083)
GADRE = (1.73, 400.0, 1000.0, 0.16)
MUENNIGHOFF = (1.869143, 520.8, 1487.6, 0.3526596, 15.387756, 5.309743)

CASES = (
    Planted(name="lengths 5 x 6", form=HOFFMANN, truth=CHINCHILLA, points=tuple(lengths(5, 6))),
    Planted(name="ratios 5 x 6", form=HOFFMANN, truth=CHINCHILLA, points=tuple(ratios(5, 6))),
    Planted(name="lengths 4 x 3", form=HOFFMANN, truth=CHINCHILLA, points=tuple(lengths(4, 3))),
    Planted(name="lengths 5 x 6", form=OVERTRAINED, truth=GADRE, points=tuple(lengths(5, 6))),
    Planted(name="ratios 5 x 6", form=OVERTRAINED, truth=GADRE, points=tuple(ratios(5, 6))),
    Planted(name="5 sizes, 3 corpora, 4 epochs", form=REPEATED, truth=MUENNIGHOFF, points=tuple(repeats())),
)


def losses(planted: Planted, seed: int) -> list[Point]:
    """The points with losses that the law says and noise."""
    rng = np.random.default_rng([seed, 1])
    exact = planted.form.log_loss(planted.form.fitted([planted.truth]), design(planted.points))[0]
    noisy = exact + rng.uniform(*NOISE, size=len(exact)) * rng.standard_normal(len(exact))
    return [replace(point, loss=float(np.exp(y))) for point, y in zip(planted.points, noisy, strict=True)]


def far(points: Sequence[Point]) -> Point:
    """A run of ten times the largest compute: its size and its length times the root of ten, its epochs as many."""
    largest = max(points, key=lambda point: point.flops)
    times = 10**0.5
    unique = largest.unique_tokens and largest.unique_tokens * times
    return replace(largest, params=largest.params * times, tokens=largest.tokens * times, unique_tokens=unique)


def held(planted: Planted, seed: int, *, replicates: int) -> dict[str, bool]:
    """Whether each interval of a fit holds what was planted."""
    points, form = losses(planted, seed), planted.form
    at = design([far(points)])
    truth = [*planted.truth, float(np.exp(form.log_loss(form.fitted([planted.truth]), at)[0, 0]))]
    found = estimate(form, points, replicates=replicates, rng=np.random.default_rng([seed, 2]))
    values, samples = form.natural(found.x), form.natural(found.samples)
    intervals = [*(interval(values[i], samples[:, i]) for i in range(len(values))), *found.loss(at)]
    return {
        name: one["low"] <= true <= one["high"] for name, true, one in zip(planted.told, truth, intervals, strict=True)
    }


def covered(planted: Planted, seeds: Sequence[int], *, replicates: int = 200) -> dict[str, int]:
    """How many of the seeds' intervals hold what was planted."""
    each = [held(planted, seed, replicates=replicates) for seed in seeds]
    return {name: sum(one[name] for one in each) for name in planted.told}


def wrong_law(seed: int, *, replicates: int = 20) -> dict[str, float]:
    """The error on the held-out runs of each law that is fitted to losses of repeated tokens."""
    fit = fit_all(losses(CASES[-1], seed), replicates=replicates, seed=seed)
    return {key: law["held_out_error"] for key, law in fit["laws"].items()}


def run(seeds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case with its counts, and last the wrong law."""
    for planted in CASES:
        began = time.process_time()
        counts = covered(planted, range(seeds))
        yield (
            f"{planted.form.key}, {planted.name}",
            {
                "points": len(planted.points),
                "planted": dict(zip(planted.form.names, planted.truth, strict=True)),
                "held": counts,
                "seconds": round(time.process_time() - began, 1),
            },
        )
    errors = [wrong_law(seed) for seed in range(min(seeds, 20))]
    yield (
        "wrong law",
        {
            "held_out_error": {key: float(np.median([one[key] for one in errors])) for key in errors[0]},
            "told apart": sum(one["repeated"] < one["hoffmann"] for one in errors),
            "of": len(errors),
        },
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    told: dict[str, Any] = {
        "benchmark": "planted_laws",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(),
        "versions": {name: version(name) for name in ("numpy", "scipy")},
        "seeds": given.seeds,
        "noise": NOISE,
        "expected of 100": HELD,
        "cases": {},
    }
    for name, case in run(given.seeds):
        told["cases"][name] = case
        print(name, json.dumps(case), flush=True)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(told, indent=1) + "\n")
        print(f"written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
