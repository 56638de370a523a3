"""The page: well formed, alone, whole, and safe to show whatever runs are called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.scaling.fitted import bare, interval, law, planted, point, points
from tinyllama.plan.render import counted
from tinyllama.scaling import limits, page, report

VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would find: every tag closed in order, ids, links, loads and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{tag} closes what is not open")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.parts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.parts))

    def loads(self) -> list[str]:
        """What it would fetch when it is opened."""
        found = [
            value or ""
            for tag, attributes in self.tags
            for name, value in attributes.items()
            if name in ("src", "srcset", "data", "poster", "action", "background")
            or (name in ("href", "xlink:href") and tag != "a")
        ]
        return [value for value in found if not value.startswith("#")]


RUNS: list[dict[str, Any]] = [
    {
        "name": "model=44m,budget.tokens=880M", "status": "done", "params": 44e6, "tokens": 880e6,
        "trained_tokens": 880e6, "loss": 3.8941, "seconds": 5400.0, "note": "",
    },
    {
        "name": "model=550m", "point": "lr=2e-4", "status": "failed", "params": 550e6, "tokens": 11e9,
        "trained_tokens": 2.1e9, "loss": None, "seconds": None, "note": "the loss was not finite at step 1,204",
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "study" / "report.html"
    report.write(planted(), path, title="Token budgets", runs=RUNS, summary=["Trunks saved 39% of the compute."])
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(html: str) -> Page:
    return Page(html)


def test_it_is_well_formed(read: Page) -> None:
    assert read.wrong == []
    assert Page("<p><b>x</p></b><i>").wrong, "the check itself can fail"
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 200


def test_every_reference_of_its_plots_leads_into_them(html: str, read: Page) -> None:
    ids = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    assert set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r' href="#([^"]*)"', html)) <= ids
    assert sum(tag == "svg" for tag, _ in read.tags) == 10 == sum(tag == "figcaption" for tag, _ in read.tags)
    assert all(attributes.get("aria-label") for tag, attributes in read.tags if tag == "svg")


def test_it_needs_neither_network_nor_script(html: str, read: Page) -> None:
    assert read.loads() == []
    assert not {"script", "link", "iframe", "img", "object", "embed"} & {tag for tag, _ in read.tags}
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    links = {attributes["href"] for tag, attributes in read.tags if tag == "a"}
    assert links == {
        f"https://arxiv.org/abs/{number}" for number in ("2203.15556", "2305.16264", "2403.08540", "2401.00448")
    }
    assert len(re.findall("https?:", html)) == 4
    assert Page('<img src="https://x/y"><link href="z.css">').loads() == ["https://x/y", "z.css"]


def numbers(fit: dict[str, Any]) -> Iterator[str]:
    """What a reader must find of a fit, as it is written."""
    for row in fit["points"]:
        yield from (row["name"], counted(row["params"]), counted(row["tokens"]), f"{row['loss']:.3f}")
    for found in fit["laws"].values():
        yield from (found["title"], found["source"], "0.01583", "0.31%")
        for one in found["parameters"].values():
            yield from (f"{one[end]:#.4g}".rstrip(".") for end in one if 1e-3 < one[end] < 1e3)
        for row in found["held_out"]:
            yield f"{row['loss']:.3f}{row['predicted']['value']:.3f}"
            yield f"[{row['predicted']['low']:.3f}, {row['predicted']['high']:.3f}]"
        yield from filter(None, found["warnings"])
    for budget in fit["isoflop"]["budgets"]:
        yield from (counted(budget["params_best"]), counted(budget["tokens_best"]), f"{budget['loss_best']:.3f}")
        yield from (f"{abs(c):#.4g}" for c in budget["curve"])
        yield budget["reason"] or "yes"
    for name in ("params_power", "tokens_power"):
        for one in fit["isoflop"][name].values():
            yield from (f"{one[end]:#.4g}" for end in one)
    for row in fit["frontier"]:
        for name in ("params", "tokens"):
            yield f"{counted(row[name]['value'])}[{counted(row[name]['low'])}, {counted(row[name]['high'])}]"
        yield f"{row['loss']['value']:.3f}[{row['loss']['low']:.3f}, {row['loss']['high']:.3f}]"
    life = fit["lifetime"]
    yield from (counted(life[name][end]) for name in ("params", "tokens") for end in life[name])
    yield from (f"{life['loss']:.3f}", "2T tokens of inference", "16.3%[15.5%, 17.1%]")
    yield from fit["conventions"].values()
    yield from (value for run in fit["excluded"] for value in run.values())


def test_every_number_of_the_fit_is_there(read: Page) -> None:
    missing = [number for number in numbers(planted()) if number not in read.text]
    assert missing == []


def test_what_is_not_identified_is_set_apart(html: str) -> None:
    symbol = "<i>R</i><sub><i>D</i></sub><sup>*</sup>"
    assert f'<p class="note"><b>Not identified:</b> {symbol} has no upper bound on these points</p>' in html
    assert f'{symbol}</td><td class="number">9.007</td><td class="number">[8.106, ∞]</td><td class="left">no' in html
    assert '<p class="note"><b>Warning:</b> 3 of 200 resampled fits' in html


def test_formulas_are_set_with_exponents(html: str) -> None:
    assert "<i>A</i>/<i>N</i><sup><i>α</i></sup> + <i>B</i>/<i>D</i><sup><i>β</i></sup></p>" in html
    assert "10<sup>18</sup>" in html


def test_the_runs_of_a_study_are_on_top_with_what_failed(html: str, read: Page) -> None:
    assert "Trunks saved 39% of the compute." in read.text
    assert "1 of 2 runs are done. 1 is not; the last column says why." in read.text
    assert "model=44m,budget.tokens=880Mdone44M880M880M3.89490.0 minutes" in read.text
    assert "model=550mlr=2e-4failed550M11B2.1B––the loss was not finite at step 1,204" in read.text
    assert '<span class="bad">failed</span>' in html
    assert read.text.index("39%") < read.text.index("model=550m") < read.text.index("Overview")


def test_the_same_fit_gives_the_same_page(tmp_path: Path) -> None:
    fit = bare() | {"points": points()[:3]}
    for name in ("one", "two"):
        report.write(fit, tmp_path / name, title="t")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


EVIL = "<script>alert('x')</script>\"&$x$"


def test_names_and_reasons_are_text_wherever_they_stand(tmp_path: Path) -> None:
    rows = [{**row, "name": EVIL} for row in points()]
    evil = law("hoffmann", rows) | {"title": EVIL, "source": EVIL, "formula": EVIL, "warnings": [EVIL]}
    evil["identified"] = {"E": EVIL}
    budget = planted()["isoflop"]["budgets"][3] | {"reason": EVIL}
    fit = bare() | {
        "source": EVIL, "points": rows, "laws": {"hoffmann": evil}, "not_fitted": {"repeated": EVIL},
        "excluded": [{"name": EVIL, "reason": EVIL}], "conventions": {EVIL: EVIL},
        "isoflop": {"budgets": [budget], "tokens_power": None, "params_power": None},
    }  # fmt: skip
    run = dict.fromkeys(("params", "tokens", "trained_tokens", "loss", "seconds"))
    runs = [{**run, "name": EVIL, "point": EVIL, "status": EVIL, "note": EVIL}]
    report.write(fit, tmp_path / "report.html", title=EVIL, runs=runs, summary=[EVIL])
    html = (tmp_path / "report.html").read_text()
    found = Page(html)
    assert found.wrong == []
    assert not [tag for tag, _ in found.tags if tag == "script"] and "<script" not in html
    assert found.text.count(EVIL) > 40
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)


def test_a_fit_of_nothing_is_a_page_too(tmp_path: Path) -> None:
    report.write(bare(), tmp_path / "report.html", title="Nothing")
    found = Page((tmp_path / "report.html").read_text())
    assert found.wrong == []
    assert "There are no points: nothing was fitted." in found.text
    assert not [tag for tag, _ in found.tags if tag in ("svg", "table", "a")]


def test_a_law_that_could_not_be_fitted_says_why(tmp_path: Path) -> None:
    fit = bare() | {"points": points()[:2], "not_fitted": {"repeated": "it takes at least 8 points: there are 2"}}
    report.write(fit, tmp_path / "report.html", title="t")
    assert (
        "Law “repeated” not fitted: it takes at least 8 points: there are 2"
        in Page((tmp_path / "report.html").read_text()).text
    )


def test_a_long_frontier_is_thinned_to_its_largest_budget(tmp_path: Path) -> None:
    row = planted()["frontier"][0]
    fit = bare() | {"frontier": [row | {"flops": 10.0**exponent} for exponent in range(3, 36)]}
    report.write(fit, tmp_path / "report.html", title="t")
    html = (tmp_path / "report.html").read_text()
    assert "33 budgets were worked out, some are shown" in html
    assert re.findall(r'<tr><td class="number">10<sup>(\d+)</sup>', html) == [str(power) for power in range(5, 36, 3)]


def sentences(**changes: Any) -> str:
    return " ".join(limits.does_not_show(planted() | changes))


def test_what_is_shown_is_worked_out_from_the_fit() -> None:
    span, first, *_ = limits.shows(planted())
    assert span == (
        "Measured: 28 points of 5 sizes; 44M to 1.1B parameters, 880M to 2.2T tokens, 20 to 2,000 tokens a "
        "parameter, 2.32×10¹⁷ to 1.45×10²² FLOPs (4.8 orders of magnitude)."
    )
    assert first == (
        "“Size and length” misses the points it was fitted to by 0.31% (RMSE of ln L), and 3 held-out points by 1.0% "
        "on average; 3 of 3 lie in the 90% intervals predicted."
    )


def test_what_is_not_shown_is_worked_out_from_the_fit() -> None:
    said = sentences()
    assert "The largest held-out point takes 10 times the compute of the largest of those" in said
    assert "The frontier goes to 10²⁴ FLOPs, 68.9 times the largest run measured" in said
    assert "“Size and length with repeated tokens”: R_D* has no upper bound on these points." in said
    assert "sizes or more are needed" not in said and "orders of magnitude" not in said
    assert "lifetime optimum" not in said and "count a token seen again" not in said

    few = [row for row in points() if row["params"] > 5e8 and not row["held_out"]]
    said = sentences(points=few, laws={"hoffmann": law("hoffmann", few)}, frontier=[])
    assert "With 2 sizes the exponent of size can hardly be told" in said
    assert "Compute spans a factor of 40, less than two orders of magnitude" in said
    assert "No point was held out" in said
    assert "The lifetime optimum of 450B training tokens lies 1.36 times beyond" in said
    assert "The frontier" not in said

    said = sentences(
        laws={"hoffmann": law("hoffmann", points())}, lifetime=planted()["lifetime"] | {"params": interval(5e9)}
    )
    assert "3 points of 28 saw tokens more than once, and no law of repeats" in said
    assert "The lifetime optimum of 5B parameters lies 4.55 times beyond the measured range of 44M to 1.1B." in said


def test_few_valleys_and_near_held_out_points_are_owned_up_to() -> None:
    isoflop = planted()["isoflop"]
    said = sentences(isoflop=isoflop | {"budgets": isoflop["budgets"][2:]})
    assert "1 IsoFLOP budget of 2 can be used" in said
    rows = [row | {"held_out": index == 0} for index, row in enumerate(points())]
    assert "No held-out point takes more compute than the others" in sentences(points=rows)
    assert limits.does_not_show(bare()) == ["There are no points: nothing was fitted."]
    assert limits.shows(bare()) == []
    lone = bare() | {"points": [point("a", 1e9, 1e10, 3.0)]}
    assert limits.shows(lone)[0].startswith("Measured: 1 point of 1 size; ")
    assert limits.does_not_show(lone) == ["No law could be fitted: the points say nothing beyond themselves."]


def test_parts_of_a_page() -> None:
    assert page.name("a=1,b/c") == "a=1,<wbr>b/<wbr>c"
    assert page.plain("beta, not eta <R_D>", ["eta", "beta", "R_D", "a"]) == (
        "<i>β</i>, not <i>η</i> &lt;<i>R</i><sub><i>D</i></sub>&gt;"
    )
    cells = page.table("c", ["a", "b"], [["x" * 25, '<span class="bad">failed</span>']], left=(0, 1))
    assert 'class="left long">xxx' in cells and 'class="left"><span' in cells
    assert page.raised("10⁻⁷") == "10<sup>−7</sup>"
    assert (
        page.source("A 2022, arXiv 2203.15556")
        == 'A 2022, <a href="https://arxiv.org/abs/2203.15556">arXiv 2203.15556</a>'
    )
    assert unescape(page.bullets(["x"])) == "<ul>\n<li>x</li>\n</ul>"
