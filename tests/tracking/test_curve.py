"""The picture: what it refuses, what it leaves out, and that its labels do not overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tinyllama.tracking.curve import draw_curve, short_count, spread


def lines(count: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(count + 1):
        loss = 9.0 / (1 + step) + (step % 7) * 0.05
        records.append({"kind": "train", "step": step, "tokens": 32 * step, "loss": loss})
        if step % max(1, count // 10) == 0:
            losses, bits = {"code": loss, "text": loss + 0.01}, {"code": loss / 2, "text": None}
            records.append({"kind": "eval", "step": step, "tokens": 32 * step, "losses": losses, "bits_per_byte": bits})
    records.append({"kind": "train", "step": count + 1, "tokens": 32 * count + 32, "loss": None})
    return [{"kind": "start"}, *records, {"kind": "end"}]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of the figures that the test saves."""
    seen: list[Axes] = []
    save = Figure.savefig

    def spy(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        seen.extend(self.axes)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def test_two_panels_show_what_was_recorded(tmp_path: Path, panels: list[Axes]) -> None:
    path = tmp_path / "run" / "curve.png"
    draw_curve(lines(5000), path, title="run", references={"code": 3.0, "unseen": 9.0})
    with Image.open(path) as picture:
        assert picture.size == (1224, 444)
    assert path.stat().st_size < 25_000, "the palette keeps it light"
    loss, bits = panels
    drawn: list[Any] = [line.get_xydata() for line in loss.lines]
    assert [len(line) for line in drawn] == [5000, 10, 10], "zero tokens and missing numbers are left out"
    assert list(drawn[1][0]) == pytest.approx([32 * 500, 9.0 / 501 + 0.15])
    curve, gzip = bits.lines
    assert gzip.get_ydata() == [3.0, 3.0]
    assert gzip.get_color() == curve.get_color()
    assert [text.get_text() for text in bits.texts] == ["code 0.05", "gzip, code"]


def test_labels_do_not_overlap(tmp_path: Path, panels: list[Axes]) -> None:
    draw_curve(lines(50), tmp_path / "curve.png", title="run")
    boxes = [text.get_window_extent() for text in panels[0].texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_a_run_without_evals_has_one_panel(tmp_path: Path, panels: list[Axes]) -> None:
    draw_curve([line for line in lines(20) if line["kind"] != "eval"], tmp_path / "curve.png", title="run")
    assert len(panels) == 1


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="'run' has no train or eval line with tokens to draw; train for at least log_e"
    ):
        draw_curve([{"kind": "start"}], tmp_path / "curve.png", title="run")


@pytest.mark.parametrize(
    ("wished", "placed"),
    [
        ([0.5], [0.5]),
        ([0.8, 0.2], [0.8, 0.2]),
        ([0.52, 0.48], [0.55, 0.45]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.0, 0.01, 0.9], [0.0, 0.1, 0.9]),
        ([1.0, 0.99], [1.0, 0.9]),
        ([-0.2, 0.5], [0.0, 0.5]),
        ([], []),
    ],
)
def test_labels_move_no_further_than_they_must(wished: list[float], placed: list[float]) -> None:
    assert spread(wished, gap=0.1) == pytest.approx(placed)


def test_token_counts_are_spelled_as_in_configs() -> None:
    assert [short_count(n) for n in (500, 20e3, 3e6, 1.5e9, 3e12)] == ["500", "20K", "3M", "1.5B", "3T"]
