"""The generation benchmark tells nothing where the tokens are not those of transformers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tests.benchmarks import patched

ran = partial(patched.ran, "generate", "run(['nano'], threads=[1], rounds=2, tokens=12, out=out)")

ANOTHER_NORM = """
def other(model):
    peer = peer_of(model)
    peer.model.norm.weight.data[:9] = 2.0
    return peer

peer_of, generate.peer_of = generate.peer_of, other
"""


def test_it_measures_both(tmp_path: Path) -> None:
    assert "transformers" in ran(tmp_path / "out.json", patch="", expect=0)
    told = json.loads((tmp_path / "out.json").read_text())
    assert [case["batch"] for case in told["cases"]] == [1, 8]
    for case in told["cases"]:
        assert {who: len(rounds) for who, rounds in case["seconds"].items()} == {"ours": 2, "transformers": 2}
        shares = [b / a for a, b in zip(case["seconds"]["ours"], case["seconds"]["transformers"], strict=True)]
        assert (case["ratio"]["min"], case["ratio"]["max"]) == (min(shares), max(shares))
    assert set(told["versions"]) == {"torch", "transformers"}


def test_other_tokens_are_seen(tmp_path: Path) -> None:
    said = ran(tmp_path / "out.json", patch=ANOTHER_NORM, expect=1)
    assert "nano, batch 1: other tokens than transformers': nothing is told" in said
    assert not (tmp_path / "out.json").exists()
