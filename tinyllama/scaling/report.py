"""A fit as one page that stands alone: no script, no network, its plots within it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tinyllama.plan.render import hours
from tinyllama.scaling import limits, notation, page, plots
from tinyllama.scaling.curves import flops
from tinyllama.scaling.notation import count, interval, loss, percent, quantity, ratio, symbol

_FRONTIER_ROWS = 12
"""At most so many of the frontier's are in its table, the largest budget among them."""
_DONE = ("done", "finished", "complete", "completed")


def write(
    fit: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    runs: Sequence[Mapping[str, Any]] = (),
    summary: Sequence[str] = (),
) -> None:
    """Writes the page. `fit` as `fit.json` has it; `runs` are a study's, shown on top after the lines of `summary`:
    name, status, point, params, tokens, trained_tokens, loss, seconds and note, of which all but two may be None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.document(title, _body(fit, runs, summary)), encoding="utf-8")


def _body(fit: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], summary: Sequence[str]) -> Iterator[str]:
    drawn = {plot.name: page.figure(plot) for plot in plots.plots(fit)}
    if fit["source"]:
        yield f'<p class="soft">Fitted to <code>{escape(fit["source"])}</code></p>'
    yield from map(page.paragraph, summary)
    if runs:
        yield from _runs(runs)
    yield from _overview(fit)
    for key, law in fit["laws"].items():
        yield from _law(law)
        yield from _take(drawn, f"loss-tokens-{key}", f"residuals-{key}")
    yield from _take(drawn, "loss-tokens")
    for key, reason in fit["not_fitted"].items():
        yield page.note(f"Law “{key}” not fitted", page.plain(reason))
    if "held-out" in drawn:
        yield "<h2>Predictions of held-out points</h2>"
        yield from _take(drawn, "held-out")
    if fit["isoflop"]:
        yield from _isoflop(fit["isoflop"])
        yield from _take(drawn, "isoflop")
    if fit["frontier"] or "loss-flops" in drawn or "frontier" in drawn:
        yield "<h2>Compute and its best use</h2>"
        yield from _take(drawn, "loss-flops", "frontier")
        yield from _frontier(fit["frontier"])
    if fit["lifetime"]:
        yield from _lifetime(fit["lifetime"])
    yield "<h2>What this shows and what it does not</h2>"
    names = {name for law in fit["laws"].values() for name in law["parameters"]}
    for heading, sentences in (("It shows", limits.shows(fit)), ("It does not show", limits.does_not_show(fit))):
        if sentences:
            yield f"<h3>{heading}</h3>"
            yield page.bullets(page.plain(sentence, names) for sentence in sentences)
    yield from _data(fit)


def _take(drawn: Mapping[str, str], *names: str) -> Iterator[str]:
    yield from (drawn[name] for name in names if name in drawn)


def _runs(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    failed = [run for run in runs if run["status"] not in _DONE]
    yield "<h2>Runs</h2>"
    yield page.paragraph(
        f"{len(runs) - len(failed)} of {len(runs)} runs are done."
        + (f" {len(failed)} {'is' if len(failed) == 1 else 'are'} not; the last column says why." if failed else "")
    )
    rows = []
    for run in runs:
        status = escape(str(run["status"]))
        seconds = run.get("seconds")
        rows.append(
            [
                page.name(str(run["name"])),
                page.plain(str(run.get("point") or "")),
                f'<span class="bad">{status}</span>' if run in failed else status,
                count(run.get("params")),
                count(run.get("tokens")),
                count(run.get("trained_tokens")),
                loss(run.get("loss")),
                notation.NOTHING if seconds is None else hours(seconds / 3600),
                page.plain(str(run.get("note") or "")),
            ]
        )
    columns = ["run", "point", "status", "params", "tokens<br>planned", "tokens<br>trained", "loss", "time", "note"]
    says = "The runs of the study; loss in nats per token, time of the training steps."
    yield page.table(says, columns, rows, left=(0, 1, 2, 8))


def _overview(fit: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Overview</h2>"
    held_out = sum(point["held_out"] for point in fit["points"])
    told = f"{len(fit['points'])} measured points, {held_out} of them held out first to test each law on"
    left_out = len(fit["excluded"])
    told += f"; {left_out} {'run' if left_out == 1 else 'runs'} left out, for reasons at the end." if left_out else "."
    yield page.paragraph(told + " Intervals in brackets are 90%, from the 5th to the 95th percentile of the bootstrap.")
    if fit["laws"]:
        rows = []
        for law in fit["laws"].values():
            flat = [symbol(name) for name, sentence in law["identified"].items() if sentence]
            floor = law["parameters"].get("E")
            rows.append(
                [
                    escape(law["title"]),
                    f"{quantity(floor['value'])} {interval(floor)}" if floor else notation.NOTHING,
                    percent(law["rmse"]),
                    _error(law["held_out_error"]),
                    ", ".join(flat) or "none",
                ]
            )
        columns = ["law", "floor <i>E</i> (nats per token)", "RMSE of ln <i>L</i>", "held-out error", "not identified"]
        yield page.table("The laws side by side; the held-out error is the mean of |ln predicted − ln measured|.",
                         columns, rows, left=(0, 4))  # fmt: skip
    if fit["conventions"]:
        yield "<h3>Conventions</h3>\n<dl>"
        for name, meaning in fit["conventions"].items():
            yield f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>"
        yield "</dl>"


def _error(found: float | None) -> str:
    return notation.NOTHING if found is None else percent(found)


def _law(law: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{escape(law['title'])}</h2>"
    first, _, rest = law["formula"].partition(", ")
    yield f'<p class="formula">{notation.formula(first)}</p>'
    if rest:
        yield f"<p>where {notation.formula(rest)}.</p>"
    yield f'<p class="soft">{page.source(law["source"])}</p>'
    for sentence in law["identified"].values():
        if sentence:
            yield page.note("Not identified", page.plain(sentence, law["parameters"]))
    for warning in law["warnings"]:
        yield page.note("Warning", page.plain(warning, law["parameters"]))
    rows = [
        [symbol(name), quantity(found["value"]), interval(found), "no" if law["identified"].get(name) else "yes"]
        for name, found in law["parameters"].items()
    ]
    columns = ["parameter", "estimate", "90% interval", "identified"]
    yield page.table("Fitted parameters (<i>L</i> in nats per token).", columns, rows, left=(0, 3))
    span = law["range"]
    yield page.paragraph(
        f"Objective (summed Huber loss of ln L) {quantity(law['objective'])}; RMSE of ln L {percent(law['rmse'])}; "
        f"fitted to {count(span['params'][0])} to {count(span['params'][1])} parameters and "
        f"{count(span['tokens'][0])} to {count(span['tokens'][1])} tokens."
    )
    if law["held_out"]:
        rows = [
            [
                page.name(row["name"]),
                loss(row["loss"]),
                loss(row["predicted"]["value"]),
                interval(row["predicted"], loss),
                percent(row["predicted"]["value"] / row["loss"] - 1, sign="+"),
                "yes" if row["predicted"]["low"] <= row["loss"] <= row["predicted"]["high"] else "no",
            ]
            for row in law["held_out"]
        ]
        columns = ["held-out point", "measured", "predicted", "90% interval", "error", "in interval"]
        error = _error(law["held_out_error"])
        caption = f"Held-out points, predicted from the others; mean |ln predicted − ln measured| {error}."
        yield page.table(caption, columns, rows, left=(0, 5))


def _isoflop(isoflop: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>IsoFLOP valleys</h2>"
    rows = []
    for budget in isoflop["budgets"]:
        c0, c1, c2 = (quantity(coefficient) for coefficient in budget["curve"])
        rows.append(
            [
                notation.flops(budget["flops"]),
                str(len(budget["losses"])),
                *(count(budget[f"{name}_best"]) for name in ("params", "tokens")),
                ratio(budget["tokens_best"] / budget["params_best"]),
                loss(budget["loss_best"]),
                f"{c0}, {c1}, {c2}",
                "yes" if budget["usable"] else f"no: {escape(budget['reason'] or 'no reason given')}",
            ]
        )
    columns = [
        "FLOPs", "points", "<i>N</i>*", "<i>D</i>*", "<i>D</i>*/<i>N</i>*", "<i>L</i>*", "parabola", "used",
    ]  # fmt: skip
    yield page.table(
        "The minimum of each budget's parabola <i>c</i><sub>0</sub> + <i>c</i><sub>1</sub><i>x</i> + "
        "<i>c</i><sub>2</sub><i>x</i><sup>2</sup> in <i>x</i> = log<sub>10</sub> <i>D</i>.",
        columns, rows, left=(7,),
    )  # fmt: skip
    for name, letter in (("params", "N"), ("tokens", "D")):
        power = isoflop[f"{name}_power"]
        if power:
            exponent, coefficient = power["exponent"], power["coefficient"]
            yield (
                f'<p class="formula"><i>{letter}</i>* = {page.raised(quantity(coefficient["value"]))} '
                f"<i>C</i><sup>&#8201;{quantity(exponent['value'])}</sup></p>"
                f'<p class="soft">coefficient {page.raised(interval(coefficient))}, exponent {interval(exponent)}</p>'
            )


def _frontier(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if rows:
        thinned = f"; {len(rows)} budgets were worked out, some are shown" if len(rows) > _FRONTIER_ROWS else ""
        step = math.ceil(len(rows) / _FRONTIER_ROWS)
        cells = [
            [
                notation.flops(row["flops"]),
                *(
                    part
                    for name in ("params", "tokens")
                    for part in (count(row[name]["value"]), interval(row[name], count))
                ),
                ratio(row["tokens"]["value"] / row["params"]["value"]),
                loss(row["loss"]["value"]),
                interval(row["loss"], loss),
            ]
            for row in rows[::-step][::-1]
        ]
        columns = ["FLOPs", "<i>N</i>*", "90%", "<i>D</i>*", "90%", "<i>D</i>*/<i>N</i>*", "loss", "90%"]
        yield page.table(
            f"The compute-optimal size and length, and the loss they reach{thinned}.", columns, cells, left=()
        )


def _lifetime(life: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>The best size over a model's life</h2>"
    yield (
        f"<p>For a loss of {loss(life['loss'])} and {count(life['inference_tokens'])} tokens of inference, the least "
        "compute over training and inference, 6<i>ND</i> + 2<i>ND</i><sub>inf</sub>, is that of the following model "
        f"({page.source('Sardana et al. 2024, arXiv 2401.00448')}).</p>"
    )
    rows = [
        [name, form(life[key]["value"]), interval(life[key], form)]
        for name, key, form in (
            ("parameters", "params", count),
            ("training tokens", "tokens", count),
            ("compute saved over the compute-optimal model of that loss", "saved", percent),
        )
    ]
    yield page.table("The lifetime optimum.", ["", "estimate", "90% interval"], rows)


def _data(fit: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Data</h2>"
    rows = [
        [
            page.name(point["name"]),
            *(count(point[name]) for name in ("params", "tokens")),
            ratio(point["tokens"] / point["params"]),
            count(point["unique_tokens"]),
            notation.flops(flops(point)),
            loss(point["loss"]),
            "yes" if point["held_out"] else "",
        ]
        for point in fit["points"]
    ]
    columns = [
        "point",
        "params <i>N</i>",
        "tokens <i>D</i>",
        "<i>D</i>/<i>N</i>",
        "unique",
        "FLOPs",
        "loss",
        "held out",
    ]
    if rows:
        yield page.table("Every point measured.", columns, rows, left=(0, 7))
    if fit["excluded"]:
        left_out = [[page.name(run["name"]), page.plain(run["reason"])] for run in fit["excluded"]]
        yield page.table("Runs left out.", ["run", "reason"], left_out, left=(0, 1))
