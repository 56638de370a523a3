"""The plots: what is drawn, what is left out, that nothing overlaps, and that the same fit gives the same bytes."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.scaling.fitted import bare, isoflop, law, planted, point, points
from tinyllama.scaling import panels
from tinyllama.scaling.plots import Plot, draw, plots, svg

NAMES = [
    *(f"loss-tokens-{key}" for key in ("hoffmann", "overtrained", "repeated")),
    *(f"residuals-{key}" for key in ("hoffmann", "overtrained", "repeated")),
    "loss-flops", "held-out", "isoflop", "frontier",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> dict[str, Plot]:
    """All plots of the planted fit, laid out as they are saved."""
    found = {plot.name: plot for plot in plots(planted())}
    for plot in found.values():
        plot.figure.draw_without_rendering()
    return found


def hollow(axes: Axes) -> int:
    return sum(len(line.get_xdata()) for line in axes.lines if line.get_markerfacecolor() == "white")  # type: ignore[arg-type]


def test_each_part_of_a_fit_has_its_plot(drawn: dict[str, Plot]) -> None:
    assert list(drawn) == NAMES
    assert all("Look" in plot.caption or "miss" in plot.caption for plot in drawn.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_labels_overlap(drawn: dict[str, Plot], name: str) -> None:
    figure = drawn[name].figure
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        bottom, top = axes.get_ylim()
        texts += [t for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
        texts += [t for t in axes.get_yticklabels() if bottom <= t.get_position()[1] <= top]
        texts += [axes.xaxis.label, axes.yaxis.label]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert len(boxes) > 8
    assert not [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 for _, box in boxes)
    assert figure.get_figwidth() * 100 <= 700


@pytest.mark.parametrize("name", NAMES)
def test_axes_say_what_they_are_and_in_which_unit(drawn: dict[str, Plot], name: str) -> None:
    for axes in drawn[name].figure.axes:
        assert re.search(r"tokens|compute|loss", axes.get_xlabel())
        assert re.search(r"nats per token|%|tokens|parameters", axes.get_ylabel())


def test_curves_go_through_the_planted_points(drawn: dict[str, Plot]) -> None:
    [axes] = drawn["loss-tokens-hoffmann"].figure.axes
    curves = [line for line in axes.lines if len(line.get_xydata()) == 80]  # type: ignore[arg-type]
    assert len(curves) == 5 and len(axes.collections) == 5, "a curve and a band for each size"
    for curve, rows in zip(curves, np.array_split(points()[:25], 5), strict=True):
        x, y = np.asarray(curve.get_xydata()).T
        along = np.interp(np.log([row["tokens"] for row in rows]), np.log(x), y)
        assert np.log(along / [row["loss"] for row in rows]) == pytest.approx(np.zeros(5), abs=0.01)
    assert hollow(axes) == 3
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1B", "10B", "100B", "1T"]
    looks = {(str(curve.get_linestyle()), curve.get_color()) for curve in curves}
    assert len(looks) == 5


def test_residuals_are_measured_over_foretold(drawn: dict[str, Plot]) -> None:
    [axes] = drawn["residuals-hoffmann"].figure.axes
    crossed = next(line for line in axes.lines if line.get_marker() == "x")
    assert len(np.asarray(crossed.get_ydata())) == 3, "the points that see their tokens again"
    off = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() in ("s", "D", "v")])
    assert len(off) == 15
    assert np.abs(off).max() < 1, "percent: the planted noise is 0.3"
    assert np.std(off) > 0.1
    [repeated] = drawn["residuals-repeated"].figure.axes
    assert not [line for line in repeated.lines if line.get_marker() == "x"], "this law knows of repeats"


def test_a_budget_that_is_not_usable_has_no_minimum(drawn: dict[str, Plot]) -> None:
    [axes] = drawn["isoflop"].figure.axes
    stars = [line for line in axes.lines if line.get_marker() == "*" and len(np.asarray(line.get_xdata()))]
    budgets = isoflop()["budgets"]
    assert [float(np.ravel(star.get_xdata())[0]) for star in stars] == [
        b["tokens_best"] for b in budgets if b["usable"]
    ]
    assert "10²¹, not used" in [text.get_text() for text in drawn["isoflop"].figure.legends[0].get_texts()]


def test_the_frontier_is_below_every_fresh_point(drawn: dict[str, Plot]) -> None:
    [axes] = drawn["loss-flops"].figure.axes
    [frontier] = [line for line in axes.lines if line.get_label() == "compute-optimal"]
    x, y = np.asarray(frontier.get_xydata()).T
    for row in points():
        assert row["loss"] > 0.99 * np.interp(np.log(6 * row["params"] * row["tokens"]), np.log(x), y)


def test_the_same_fit_gives_the_same_bytes(tmp_path: Path) -> None:
    fit = bare() | {"isoflop": isoflop()}
    one, two = draw(fit, tmp_path / "one"), draw(fit, tmp_path / "two")
    assert [path.name for path in one] == [
        f"{name}.{kind}" for name in ("isoflop", "frontier") for kind in ("svg", "png")
    ]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    drawing = one[0].read_text()
    assert "<metadata" not in drawing and "<!--" not in drawing
    assert one[1].read_bytes().startswith(b"\x89PNG") and b"Software" not in one[1].read_bytes()


def test_ids_are_a_plots_own_and_its_references_lead_to_them(drawn: dict[str, Plot]) -> None:
    seen: set[str] = set()
    for plot in (drawn["isoflop"], drawn["frontier"]):
        drawing = svg(plot)
        ids = re.findall(r' id="([^"]*)"', drawing)
        assert len(ids) == len(set(ids)) > 20 and seen.isdisjoint(ids)
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', drawing)) <= set(ids)
        seen |= set(ids)


def test_nothing_to_show_is_not_drawn(tmp_path: Path) -> None:
    assert draw(bare(), tmp_path) == []
    assert [plot.name for plot in plots(bare() | {"points": points()[:1]})] == ["loss-tokens", "loss-flops"]
    rows = [row for row in points() if not row["held_out"]]
    found = [plot.name for plot in plots(bare() | {"points": rows, "laws": {"hoffmann": law("hoffmann", rows)}})]
    assert found == ["loss-tokens-hoffmann", "residuals-hoffmann", "loss-flops"]
    assert [plot.name for plot in plots(bare() | {"isoflop": isoflop() | {"budgets": []}})] == []


def test_of_many_sizes_a_few_have_a_line() -> None:
    rows = [point(f"{size}", size * 1e6, 20e6 * size, 4 - size / 50) for size in range(1, 40)]
    fit = bare() | {"points": rows, "laws": {"hoffmann": law("hoffmann", rows)}}
    plot = next(plots(fit))
    labels = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert labels == ["1M", "7M", "14M", "20M", "26M", "33M", "39M", "other sizes"]
    [axes] = plot.figure.axes
    assert sum(len(np.asarray(line.get_xdata())) == 80 for line in axes.lines) == panels.FEW
    assert sum(len(np.asarray(line.get_xdata())) == 1 for line in axes.lines) == 39, "every point is there"


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (3e8, 5e12, 8, [1e9, 1e10, 1e11, 1e12]),
        (1e17, 1e25, 4, [1e17, 1e20, 1e23]),
        (1e6, 4e7, 8, [1e6, 2e6, 5e6, 1e7, 2e7]),
        (3e6, 2.2e7, 8, [5e6, 1e7, 2e7]),
        (1.1e9, 1.9e9, 8, [1.2e9, 1.4e9, 1.6e9, 1.8e9]),
    ],
)
def test_round_places_on_a_logarithmic_axis(low: float, high: float, most: int, ticks: list[float]) -> None:
    assert panels.places(low, high, most=most) == pytest.approx(ticks)


def test_a_band_without_end_does_not_hide_the_points() -> None:
    _, axes = panels.panel()
    axes.fill_between([1, 2], [0, 0], [1e4, 1e4])
    panels.near(axes, [3.0, 5.0])
    assert axes.get_ylim() == (1.0, 7.0)
