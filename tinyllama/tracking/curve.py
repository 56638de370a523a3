"""The picture of a run: loss and bits per byte against the tokens it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

# Okabe and Ito's palette, told apart by colour-blind readers, in the order that contrasts best on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#9A9A9A"
_MARKED = 30
"""Evals up to which each one gets a dot."""
_LABEL_GAP = 0.075
"""Height of one label as a fraction of the panel's."""


def draw_curve(
    records: Sequence[Mapping[str, Any]], path: Path, *, title: str, references: Mapping[str, float] | None = None
) -> None:
    """Draws a run's losses (nats a token) and, where an eval measured it, bits per byte, as a PNG for a README.

    `records` as `journal.read` gives them; `references` are gzip's bits per byte by source, drawn dashed in the
    source's colour. The axis of tokens is logarithmic, so lines at zero tokens are left out, and so are missing
    numbers. Errors: ValueError where no line can be drawn.
    """
    train = _series(records, kind="train", field="loss").get("", [])
    losses = _series(records, kind="eval", field="losses")
    bits = _series(records, kind="eval", field="bits_per_byte")
    if not train and not losses:
        raise ValueError(f"{title!r} has no train or eval line with tokens to draw; train for at least log_every steps")
    sources = list(dict.fromkeys([*losses, *bits]))
    colours = {source: COLOURS[index % len(COLOURS)] for index, source in enumerate(sources)}

    panels = 2 if bits else 1
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(5.1 * panels, 3.7), dpi=120, layout=layout)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")

    labels = []
    if train:
        axes[0].plot(*zip(*train, strict=True), color=_GREY, linewidth=0.8)
        labels.append(("training", train[-1][1], _GREY))
    labels += _lines(axes[0], losses, colours)
    _finish(axes[0], "loss (nats per token)", labels)
    if bits:
        labels = _lines(axes[1], bits, colours)
        for source, value in (references or {}).items():
            if source in bits:
                axes[1].axhline(value, color=colours[source], linewidth=1.1, linestyle=(0, (5, 3)))
                labels.append((f"gzip, {source}", value, colours[source]))
        _finish(axes[1], "bits per byte, held out", labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    # Lines, greys and seven colours: a palette of 128 is not told apart from the full picture, at a third of its size.
    Image.open(picture).convert("RGB").quantize(128).save(path, optimize=True)


def _series(records: Sequence[Mapping[str, Any]], *, kind: str, field: str) -> dict[str, list[tuple[int, float]]]:
    """The (tokens, value) points of a field by source; the source of a plain number is the empty string."""
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record["kind"] != kind or not record["tokens"]:
            continue
        values = record.get(field)
        for source, value in (values if isinstance(values, Mapping) else {"": values}).items():
            if value is not None:
                series.setdefault(source, []).append((record["tokens"], value))
    return series


def _lines(
    axes: Axes, series: Mapping[str, Sequence[tuple[int, float]]], colours: Mapping[str, str]
) -> list[tuple[str, float, str]]:
    """Draws one line a source and returns its label: text, height at its end, colour."""
    for source, line in series.items():
        marker = "o" if len(line) <= _MARKED else ""
        axes.plot(*zip(*line, strict=True), color=colours[source], linewidth=1.6, marker=marker, markersize=3)
    return [(f"{source} {line[-1][1]:.2f}", line[-1][1], colours[source]) for source, line in series.items()]


def _finish(axes: Axes, y_label: str, labels: Sequence[tuple[str, float, str]]) -> None:
    """Scales, axis titles, and each line's label at the right of its end."""
    axes.set_xscale("log")
    first, last = axes.get_xlim()
    narrow = last < 100 * first
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short_count(tokens)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("training tokens", color="#444444")
    axes.set_ylabel(y_label, color="#444444")
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors="#444444", labelsize=9)
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value, _ in labels], gap=_LABEL_GAP)
    for (text, _, colour), height in zip(labels, heights, strict=True):
        axes.annotate(
            text, (1.0, height), xycoords="axes fraction", xytext=(5, 0), textcoords="offset points",
            color=colour, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip


def short_count(tokens: float) -> str:
    """A count of tokens as configs spell it: 500, 20K, 3M, 1.5B, 3T."""
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if tokens >= unit:
            return f"{tokens / unit:g}{suffix}"
    return f"{tokens:g}"


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Heights within 0 to 1 nearest to the wished ones (least squares) at which labels are at least `gap` apart.

    In the order of the input; labels keep the order of their heights. More labels than fit go on above 1.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    # Taking the gaps out leaves the problem of the nearest non-decreasing sequence: pool neighbours that violate it.
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = heights[index] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    ceiling = max(0.0, 1.0 - (len(heights) - 1) * gap)
    flat = [min(max(mean, 0.0), ceiling) for mean, size in pools for _ in range(size)]
    placed = [0.0] * len(heights)
    for rank, index in enumerate(order):
        placed[index] = flat[rank] + rank * gap
    return placed
