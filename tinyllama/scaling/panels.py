"""What the plots of a fit share: their axes, and lines and points that are told apart without colour, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from tinyllama.scaling.curves import Array, Series, foretold, is_repeated, series
from tinyllama.tracking.curve import COLOURS

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (3, 1.2)))
"""Their number, that of the markers and that of the colours share no divisor: 315 sizes differ."""
INK, GREY, FAINT = "#333333", "#777777", "#E6E6E6"
MANY, FEW = 12, 7
"""Of more sizes than MANY, so FEW have a line and a colour; the points of the others are grey."""


class Style(NamedTuple):
    """How a size looks."""

    colour: str
    marker: str
    dashes: Any
    has_line: bool = True
    """Whether its law is drawn, and its name is in the legend."""


def styled(found: Sequence[Series]) -> Iterator[tuple[Series, Style]]:
    """A look for each size, or for a few that are spread over all of them."""
    kept = set(np.linspace(0, len(found) - 1, FEW).round().astype(int)) if len(found) > MANY else set(range(len(found)))
    seen = 0
    for index, line in enumerate(found):
        if index in kept:
            yield line, Style(*(looks[seen % len(looks)] for looks in (COLOURS, MARKERS, DASHES)))
            seen += 1
        else:
            yield line, Style(GREY, ".", "none", has_line=False)


def panel(*, width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; inches, of which a page is seven wide."""
    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Light lines behind, no frame above and on the right."""
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def draw_sizes(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    name: str | None,
    law: Mapping[str, Any] | None,
    *,
    against: Callable[[Any, Any], Any],
    has_band: bool = True,
) -> None:
    """The points of each size and the law through them; `against` makes a place of sizes and tokens.

    Where the law does not know of repeats and only some points have them, those are crossed.
    """
    found = series(points, by_unique=name == "repeated")
    tokens = [point["tokens"] for point in points]
    if name != "repeated":
        where = [against(point["params"], point["tokens"]) for point in points]
        cross_repeats(axes, points, where, [point["loss"] for point in points])
    for line, style in styled(found):
        own = [point["tokens"] for point in line.points]
        draw_points(axes, line, [against(p["params"], p["tokens"]) for p in line.points], _losses(line), style)
        if not style.has_line:
            continue
        if name is None or law is None:
            axes.plot(against(line.params, np.array(own)), _losses(line), color=style.colour, linewidth=0.8)
            continue
        low, high = (own[0] / 1.3, own[-1] * 1.3) if own[-1] > 1.2 * own[0] else (min(tokens), max(tokens))
        along = np.geomspace(low, high, 80)
        told = foretold(name, law, line.params, along, line.unique)
        where = against(line.params, along)
        axes.plot(where, told.value, color=style.colour, linestyle=style.dashes, linewidth=1.5)
        if has_band and told.low is not None and told.high is not None:
            axes.fill_between(where, told.low, told.high, color=style.colour, alpha=0.18, linewidth=0)


def draw_points(axes: Axes, line: Series, x: Sequence[float] | Array, y: Sequence[float] | Array, style: Style) -> None:
    """Points in the look of their size, hollow where they were held out."""
    x, y, held_out = np.asarray(x), np.asarray(y), np.array([bool(point["held_out"]) for point in line.points])
    for chosen, face in ((~held_out, style.colour), (held_out, "white")):
        axes.plot(
            x[chosen], y[chosen], style.marker, color=style.colour, markerfacecolor=face, markersize=5, zorder=3,
        )  # fmt: skip


def cross_repeats(axes: Axes, points: Sequence[Mapping[str, Any]], x: Any, y: Any) -> None:
    """Crosses the points that saw tokens more than once, where only some did."""
    repeated = np.array([is_repeated(point) for point in points])
    if repeated.any() and not repeated.all():
        axes.plot(
            np.asarray(x)[repeated], np.asarray(y)[repeated], "x", color="black", markersize=9, markeredgewidth=1,
            zorder=4, label="tokens seen again",
        )  # fmt: skip


def legend(figure: Figure, axes: Axes, found: Sequence[Series] = (), *, lines: bool = True, title: str = "") -> None:
    """On the right of the axes: sizes, smallest first, what hollow and grey points are, and all that has a label."""
    entries: list[tuple[Any, str]] = []
    looks = list(styled(found))
    for line, style in looks:
        if style.has_line:
            dashes: Any = style.dashes if lines else "none"
            look = Line2D(
                [], [], color=style.colour, marker=style.marker, markersize=5, linestyle=dashes, linewidth=1.5
            )
            entries.append((look, line.label))
    if len(entries) < len(looks):
        entries.append((Line2D([], [], color=GREY, marker=".", linestyle="none"), "other sizes"))
    if any(point["held_out"] for line in found for point in line.points):
        hollow = Line2D([], [], color=INK, marker="o", markersize=5, markerfacecolor="white", linestyle="none")
        entries.append((hollow, "held out"))
    entries += zip(*axes.get_legend_handles_labels(), strict=True)
    figure.legend(
        *zip(*entries, strict=True), loc="outside right upper", frameon=False, fontsize=9, handlelength=2.8,
        title=title or None, title_fontsize=9, alignment="left",
    )  # fmt: skip


def near(axes: Axes, losses: Sequence[float]) -> None:
    """Show what is at most as far from these losses as they are from each other: a band may have no end."""
    low, high = min(losses), max(losses)
    span = max(high - low, 0.02 * high)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - span), min(top, high + span))


def loss_axis(axis: Axis, label: str = "held-out loss (nats per token)") -> None:
    """Losses on an even scale."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_label_text(label, color=INK)


def log_axis(axis: Axis, label: str, form: Callable[[float], str], *, most: int = 8) -> None:
    """A logarithmic scale over all that has been drawn, with at most so many plain labels."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    ticks = places(*axis.get_view_interval(), most=most)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([form(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_label_text(label, color=INK)


def places(low: float, high: float, *, most: int) -> list[float]:
    """Round numbers to label on a logarithmic scale: decades; 1, 2 and 5 of each if those are few; else even steps."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    if len(whole) > most:
        return whole[:: math.ceil(len(whole) / most)]
    parts = [
        float(f"{part}e{decade}") for decade in decades for part in (1, 2, 5) if low <= part * 10.0**decade <= high
    ]
    if len(whole) >= 3 or (len(whole) == 2 and len(parts) > most):
        return whole
    if 3 <= len(parts) <= most:
        return parts
    return [float(tick) for tick in MaxNLocator(min(most, 4)).tick_values(low, high) if low <= tick <= high]


def _losses(line: Series) -> list[float]:
    return [point["loss"] for point in line.points]
