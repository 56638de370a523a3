"""From prompts to text: where it begins, where it ends, and in which order it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny import SHAPE, build
from tinyllama.config.tasks import Generate
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.evaluate.sample import Piece, continuations, prompt_tokens, show
from tinyllama.exchange.trained import Trained
from tinyllama.model.llama import Llama

HOW = Generate(run=None, prompt=(), samples=1, max_tokens=40, temperature=1.0, top_k=None, top_p=None, stop=())
PROMPTS = ["the wor", "", "日本", "a"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(["the world is wide, the world is old", "日本語"] * 40, vocab_size=300, path=path)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def model() -> Llama:
    return build(replace(SHAPE, vocab_size=310, context=48), gain=3)


def trained(*, start: int = 2, adds_start: bool = False) -> Trained:
    return Trained(folder=Path(), shape=SHAPE, weights={}, tokenizer=Path(), start=start, adds_start=adds_start)


def told(model: Llama, pieces: Tokenizer, prompts: list[str], **how: Any) -> list[str]:
    """Each row's text."""
    settings = replace(HOW, **how)
    rows = [""] * (len(prompts) * settings.samples)
    for row, text, _ in continuations(model, pieces, prompt_tokens(trained(), pieces, prompts), settings, seed=3):
        rows[row] += text
    return rows


def test_a_text_begins_as_the_models_texts_do(pieces: Tokenizer) -> None:
    ids = pieces.encode("a")
    assert prompt_tokens(trained(), pieces, ["a", ""]) == [ids, [2]]
    assert prompt_tokens(trained(start=1, adds_start=True), pieces, ["a", ""]) == [[1, *ids], [1]]


def test_rows_are_what_they_are_alone(model: Llama, pieces: Tokenizer) -> None:
    rows = told(model, pieces, PROMPTS, samples=2, temperature=0.0)
    assert rows == [text for prompt in PROMPTS for text in told(model, pieces, [prompt], samples=2, temperature=0.0)]
    assert rows[::2] == rows[1::2]
    assert len(set(told(model, pieces, PROMPTS, samples=2))) == 8


def test_a_row_ends_before_a_stop_string_and_no_other_does(model: Llama, pieces: Tokenizer) -> None:
    whole = told(model, pieces, PROMPTS, temperature=0.0)
    stop = whole[2][5:8]
    assert told(model, pieces, PROMPTS, temperature=0.0, stop=(stop,)) == [text.partition(stop)[0] for text in whole]
    asked = []
    hook = model.embedding.register_forward_hook(lambda module, inputs, output: asked.append(inputs[0].numel()))
    told(model, pieces, PROMPTS[2:3], temperature=0.0, stop=(stop,))
    hook.remove()
    assert len(asked) < 20, "what would be cut off is not worked out"


def test_one_row_is_shown_as_it_comes() -> None:
    written: list[str] = []
    show(["a b"], 1, [Piece(0, " c", last=False), Piece(0, "d", last=True)], written.append)
    assert written == ["a b", " c", "d", "\n"]


def test_several_rows_are_shown_whole_and_in_order() -> None:
    written: list[str] = []
    parts = [(0, "x", False), (1, "y", True), (3, "z", False), (2, "", True), (0, "xx", True), (3, "", True)]
    show(["one ", "two "], 2, [Piece(*part) for part in parts], written.append)
    assert written == [
        "--- prompt 1 of 2, sample 1 of 2\none xxx\n",
        "--- prompt 1 of 2, sample 2 of 2\none y\n",
        "--- prompt 2 of 2, sample 1 of 2\ntwo \n",
        "--- prompt 2 of 2, sample 2 of 2\ntwo z\n",
    ]


def test_reading_the_text_is_no_inference(model: Llama, pieces: Tokenizer) -> None:
    for _ in continuations(model, pieces, [[5]], replace(HOW, max_tokens=3), seed=0):
        assert not torch.is_inference_mode_enabled(), "what the reader makes may be trained with"
