"""The plots of a fit: what was measured, what the laws say of it, and where they part."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tinyllama.scaling import notation, panels
from tinyllama.scaling.curves import flops, foretold, is_repeated, least_loss, series
from tinyllama.scaling.panels import DASHES, FAINT, INK, MARKERS
from tinyllama.tracking.curve import COLOURS, short_count


class Plot(NamedTuple):
    """A figure and what to look at in it."""

    name: str
    """Of its files, without their ending."""
    figure: Figure
    caption: str


def draw(fit: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes each plot that a fit has something for as SVG and PNG, and returns the files.

    The same fit gives the same bytes. `fit` as `fit.json` has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in plots(fit):
        vector, pixels = folder / f"{plot.name}.svg", folder / f"{plot.name}.png"
        vector.write_text(svg(plot), encoding="utf-8")
        plot.figure.savefig(pixels, format="png", dpi=150, metadata={"Software": None})
        files += [vector, pixels]
    return files


def svg(plot: Plot) -> str:
    """A plot as SVG; its ids begin with its name, so that several can stand on one page."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": plot.name, "svg.fonttype": "path"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        plot.figure.savefig(buffer, format="svg", metadata=nothing)
    text = re.sub(r"<!--.*?-->\s*", "", buffer.getvalue().decode(), flags=re.DOTALL)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)


def plots(fit: Mapping[str, Any]) -> Iterator[Plot]:
    """The plots that a fit has something for, in the order of a report."""
    points = fit["points"]
    if points:
        for key in fit["laws"] or [None]:
            yield _against_tokens(fit, points, key)
        for key, law in fit["laws"].items():
            yield _residuals(points, key, law)
        yield _against_flops(fit, points)
    tested = [law for law in fit["laws"].values() if law["held_out"]]
    if tested:
        yield _held_out(tested)
    budgets = fit["isoflop"]["budgets"] if fit["isoflop"] else []
    if budgets:
        yield _isoflop(budgets)
    minima = [budget for budget in budgets if budget["usable"]]
    if fit["frontier"] or minima:
        yield _frontier(fit, minima, max(map(flops, points), default=math.inf))


def _against_tokens(fit: Mapping[str, Any], points: Sequence[Mapping[str, Any]], key: str | None) -> Plot:
    figure, axes = panels.panel()
    law = fit["laws"].get(key)
    panels.draw_sizes(axes, points, key, law, against=lambda _, tokens: tokens)
    panels.log_axis(axes.xaxis, "training tokens", short_count)
    panels.near(axes, [point["loss"] for point in points])
    panels.loss_axis(axes.yaxis)
    panels.legend(figure, axes, series(points, by_unique=key == "repeated"))
    caption = "Held-out loss against training tokens, a line for each size."
    if law is None:
        return Plot("loss-tokens", figure, f"{caption} No law could be fitted: the lines only join the points.")
    caption = (
        f"{caption} Points are measured, lines are the law “{law['title']}”, shades its 90% band. Look for points "
        f"outside the band of their size, and for a line that bends where its points do not.{_marks(points, key)}"
    )
    return Plot(f"loss-tokens-{key}", figure, caption)


def _against_flops(fit: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Plot:
    figure, axes = panels.panel()
    key = next((key for key in ("hoffmann", "repeated", "overtrained") if key in fit["laws"]), None)
    law = fit["laws"].get(key)
    panels.draw_sizes(axes, points, key, law, against=lambda params, tokens: 6 * params * tokens, has_band=False)
    caption = "Held-out loss against training compute, a line for each size."
    if key == "hoffmann" and law:
        compute = np.geomspace(min(map(flops, points)) / 2, max(map(flops, points)) * 5, 100)
        best = least_loss(law, compute)
        if best.low is not None and best.high is not None:
            axes.fill_between(compute, best.low, best.high, color="black", alpha=0.13, linewidth=0)
        axes.plot(compute, best.value, color="black", linewidth=2.2, label="compute-optimal", zorder=2.5)
        caption += (
            " The thick black line is the compute-optimal frontier, the least loss of any size, with its 90% band. "
            "Look for how far above it a small model stays when trained for long, and whether points lie below it."
        )
    panels.log_axis(axes.xaxis, "training compute C = 6ND (FLOPs)", notation.scientific)
    panels.near(axes, [point["loss"] for point in points])
    panels.loss_axis(axes.yaxis)
    panels.legend(figure, axes, series(points, by_unique=key == "repeated"))
    return Plot("loss-flops", figure, caption + _marks(points, key))


def _residuals(points: Sequence[Mapping[str, Any]], key: str, law: Mapping[str, Any]) -> Plot:
    figure, axes = panels.panel(height=3.4)
    axes.axhspan(-100 * law["rmse"], 100 * law["rmse"], color=FAINT, linewidth=0, label="± RMSE of the fit")
    axes.axhline(0, color=INK, linewidth=0.9)
    found = series(points, by_unique=key == "repeated")
    crossed: list[tuple[Any, float, float]] = []
    for line, style in panels.styled(found):
        names = ("params", "tokens", "unique_tokens", "loss")
        params, tokens, unique, losses = (np.array([p[name] for p in line.points], dtype=float) for name in names)
        value = foretold(key, {**law, "samples": []}, params, tokens, unique).value
        off = 100 * np.log(losses / value)
        panels.draw_points(axes, line, tokens, off, style)
        crossed += zip(line.points, tokens, off, strict=True)
    if key != "repeated":
        panels.cross_repeats(axes, *zip(*crossed, strict=True))
    panels.log_axis(axes.xaxis, "training tokens", short_count)
    axes.set_ylabel("ln(measured / law), in %", color=INK)
    panels.legend(figure, axes, found, lines=False)
    caption = (
        f"Residuals of the law “{law['title']}”. Look for structure: a slope or a curve in tokens, or one size on one "
        f"side of zero, says that the form is wrong there; noise alone scatters evenly.{_marks(points, key)}"
    )
    return Plot(f"residuals-{key}", figure, caption)


def _held_out(laws: Sequence[Mapping[str, Any]]) -> Plot:
    figure, axes = panels.panel(width=5.4, height=5.2)
    seen: list[float] = []
    for index, law in enumerate(laws):
        measured = np.array([row["loss"] for row in law["held_out"]])
        value = np.array([row["predicted"]["value"] for row in law["held_out"]])
        low, high = (np.array(end) for end in _ends([row["predicted"] for row in law["held_out"]]))
        axes.errorbar(
            value, measured, xerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)], linestyle="none",
            marker=MARKERS[index], markersize=5.5, color=COLOURS[index], elinewidth=1.1, capsize=2.5,
            label=law["title"].replace("$", r"\$"),
        )  # fmt: skip
        seen += [*measured, *value]
    margin = 0.06 * (max(seen) - min(seen)) or 0.05
    ends = (min(seen) - margin, max(seen) + margin)
    axes.plot(ends, ends, color=INK, linewidth=0.9, linestyle=DASHES[1], label="equal", zorder=1)
    panels.loss_axis(axes.xaxis, "predicted loss (nats per token)")
    panels.loss_axis(axes.yaxis, "measured loss (nats per token)")
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    caption = (
        "Held-out points: the loss measured against the loss predicted from the other points, with its 90% interval. "
        "Points above the dashed line turned out worse than predicted; an interval that does not reach it is a miss."
    )
    return Plot("held-out", figure, caption)


def _isoflop(budgets: Sequence[Mapping[str, Any]]) -> Plot:
    figure, axes = panels.panel()
    for index, budget in enumerate(sorted(budgets, key=lambda budget: float(budget["flops"]))):
        colour, usable = COLOURS[index % len(COLOURS)], budget["usable"]
        axes.plot(
            budget["tokens"], budget["losses"], MARKERS[index % len(MARKERS)], color=colour, markersize=5,
            markerfacecolor=colour if usable else "white",
            label=notation.flops(budget["flops"]) + ("" if usable else ", not used"),
        )  # fmt: skip
        x = np.linspace(math.log10(min(budget["tokens"])), math.log10(max(budget["tokens"])), 80)
        y = np.polynomial.Polynomial(budget["curve"])(x)
        axes.plot(10**x, y, color=colour, linewidth=1.5, linestyle=DASHES[0 if usable else 2])
        if usable:
            axes.plot(budget["tokens_best"], budget["loss_best"], "*", color=colour, **_STAR)
    axes.plot([], [], "*", color="white", label="minimum", **_STAR)
    panels.log_axis(axes.xaxis, "training tokens", short_count)
    panels.loss_axis(axes.yaxis)
    panels.legend(figure, axes, title="FLOPs")
    caption = (
        "IsoFLOP valleys: for each compute budget, the loss of models of different size against the tokens that the "
        "budget then pays for, with a parabola in log tokens and its minimum (star). Look for points on both sides of "
        "each star, and for stars that move evenly. Dotted parabolas with hollow points were not used."
    )
    return Plot("isoflop", figure, caption)


_STAR: dict[str, Any] = {"markersize": 12, "markeredgecolor": "black", "markeredgewidth": 0.7, "zorder": 5}


def _frontier(fit: Mapping[str, Any], minima: Sequence[Mapping[str, Any]], largest: float) -> Plot:
    figure = Figure(figsize=(7, 3.7), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    rows, pair = fit["frontier"], figure.subplots(1, 2)
    compute = np.array([row["flops"] for row in [*rows, *minima]])
    for axes, name, title in zip(pair, ("params", "tokens"), ("parameters N*", "training tokens D*"), strict=True):
        panels.plain(axes)
        axes.grid(color=FAINT, linewidth=0.8)
        if rows:
            at, best = [row["flops"] for row in rows], [row[name]["value"] for row in rows]
            axes.fill_between(at, *_ends([row[name] for row in rows]), color=COLOURS[0], alpha=0.2, linewidth=0)
            axes.plot(
                at, best, color=COLOURS[0], linewidth=1.8, marker="" if len(rows) > 2 else "o", label="law, 90% band"
            )
        power = fit["isoflop"][f"{name}_power"] if minima else None
        if minima:
            at, best = [budget["flops"] for budget in minima], [budget[f"{name}_best"] for budget in minima]
            axes.plot(at, best, "*", color=COLOURS[1], label="IsoFLOP minima", **_STAR)
        if power:
            ends = np.array([compute.min(), compute.max()])
            best = power["coefficient"]["value"] * ends ** power["exponent"]["value"]
            axes.plot(ends, best, color=COLOURS[1], linewidth=1.5, linestyle=DASHES[1], label="IsoFLOP power law")
        if largest < compute.max():
            axes.axvspan(largest, compute.max(), color="#F0F0F0", linewidth=0, zorder=0, label="beyond the runs")
        panels.log_axis(axes.xaxis, "training compute C (FLOPs)", notation.scientific, most=4)
        panels.log_axis(axes.yaxis, title, short_count)
    handles = pair[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    caption = (
        "The compute-optimal size N* and length D* for each training compute. Look at the slopes (equal slopes mean "
        "that size and length grow together), at whether the methods agree, and at how bands widen beyond the runs."
    )
    return Plot("frontier", figure, caption)


def _marks(points: Sequence[Mapping[str, Any]], key: str | None) -> str:
    """What hollow and crossed points are, where there are any."""
    said = ""
    if any(point["held_out"] for point in points):
        said += " Hollow points were held out to test the law, and fitted to afterwards like all others."
    repeated = sum(map(is_repeated, points))
    if key != "repeated" and 0 < repeated < len(points):
        said += " Crossed points saw tokens more than once, which this law takes for new ones."
    return said


def _ends(intervals: Sequence[Mapping[str, float]]) -> tuple[list[float], list[float]]:
    """The lower and the upper ends."""
    return [one["low"] for one in intervals], [one["high"] for one in intervals]
