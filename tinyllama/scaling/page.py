"""The parts of a page that stands alone: its frame and style, tables, figures and notes, all text escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from tinyllama.scaling.notation import symbol
from tinyllama.scaling.plots import Plot, svg

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --rule: #c9c9c9; --paper: #ffffff; --tint: #f4f4f1;
  --link: #0a58a8; --warn: #9a3c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e0; --soft: #a6a6a0; --rule: #4a4a48; --paper: #171716;
  --tint: #232321; --link: #7db8ee; --warn: #ffab73; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 4rem; max-width: 48rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Source Serif 4", Georgia, serif; counter-reset: table figure; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 2.75rem 0 .75rem;
  padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, ul, dl { margin: .6rem 0; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
a { color: var(--link); }
.soft, figcaption, caption { color: var(--soft); }
.formula { font-size: 1.15rem; margin: .9rem 0 .9rem 1.5rem; }
sup, sub { font-size: .72em; line-height: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { font-weight: 600; }
dd { margin: 0; }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.35; font-variant-numeric: tabular-nums lining-nums;
  border-bottom: 1.5px solid var(--ink); }
caption { caption-side: top; text-align: left; padding: 0 0 .4rem; font-size: .9rem; }
caption::before { counter-increment: table; content: "Table " counter(table) ". ";
  font-weight: 600; color: var(--ink); }
thead { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); }
th, td { padding: .22rem 1.1rem .22rem 0; text-align: right; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
.left { text-align: left; }
td.left { overflow-wrap: break-word; }
td.long { min-width: 11rem; }
td.number { white-space: nowrap; }
figure { margin: 1.5rem 0; }
figure svg { display: block; width: 100%; height: auto; background: #fff; border-radius: 3px; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: .9rem; margin-top: .5rem; }
figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; font-weight: 600;
  color: var(--ink); }
.note { border-left: 3px solid var(--warn); background: var(--tint); padding: .55rem .9rem; margin: .9rem 0; }
.note b { color: var(--warn); }
.bad { color: var(--warn); font-weight: 600; }
@media print { @page { margin: 2cm; } body { max-width: none; padding: 0; font-size: 10.5pt; }
  .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } tr, figure, .note { break-inside: avoid; }
  thead { display: table-header-group; } }
"""


_LONG = 24
"""Letters from which a cell is kept wide enough to be read where the page is narrow."""
_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_LEVEL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789−")


def document(title: str, body: Iterable[str]) -> str:
    """A whole page."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Cells are HTML already; the columns of these indices are text, on the left, and the others numbers."""

    def cell(tag: str, index: int, text: str) -> str:
        letters = len(re.sub("<[^>]*>", "", text))
        kind = "number" if index not in left else "left long" if letters > _LONG else "left"
        return f'<{tag} class="{kind}">{raised(text)}</{tag}>'

    head = "".join(cell("th", index, column) for index, column in enumerate(columns))
    body = "\n".join(f"<tr>{''.join(cell('td', index, text) for index, text in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def figure(plot: Plot) -> str:
    """A plot with its caption, which is also what a screen reader says of it."""
    drawn = svg(plot)
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", drawn).replace("xlink:href", "href")
    width = f'style="max-width: {plot.figure.get_figwidth() / 7:.0%}"'
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{escape(plot.caption)}" {width}', 1)
    return f"<figure>\n{drawn}\n<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"


def paragraph(text: str) -> str:
    """Of plain text."""
    return f"<p>{plain(text)}</p>"


def note(kind: str, text: str) -> str:
    """What must not be overlooked; the text is HTML."""
    return f'<p class="note"><b>{escape(kind)}:</b> {text}</p>'


def bullets(items: Iterable[str]) -> str:
    """A list of sentences in HTML."""
    return "\n".join(["<ul>", *(f"<li>{item}</li>" for item in items), "</ul>"])


def plain(text: str, names: Iterable[str] = ()) -> str:
    """Plain text as HTML, with powers of ten raised, and the names of parameters (those of one letter aside) in
    their symbols."""
    found = escape(text)
    for name in sorted({name for name in names if len(name) > 1}, key=len, reverse=True):
        found = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", symbol(name), found)
    return raised(found)


def raised(text: str) -> str:
    """HTML with small figures that stand above the line, as in 10²³, as proper exponents: fonts draw those unevenly."""
    return _POWER.sub(lambda power: f"<sup>{power.group().translate(_LEVEL)}</sup>", text)


def name(text: str) -> str:
    """A run's name in HTML, which may be broken after a comma or a slash."""
    return re.sub(r"([,/])", r"\1<wbr>", plain(text))


def source(text: str) -> str:
    """A citation, with each arXiv number in it a link."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>'
    return re.sub(r"arXiv[: ]?(\d{4}\.\d{4,5})", link, escape(text))
