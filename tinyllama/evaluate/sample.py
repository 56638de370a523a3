"""Text from a trained model: what it makes of prompts, for a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tinyllama.config.tasks import Generate
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.evaluate.stream import Stream
from tinyllama.exchange.trained import Trained
from tinyllama.model.generate import generate
from tinyllama.model.llama import Llama


class Piece(NamedTuple):
    """A part of a row's text, and whether it is the last."""

    row: int
    text: str
    last: bool


def prompt_tokens(trained: Trained, pieces: Tokenizer, prompts: Iterable[str]) -> list[list[int]]:
    """The tokens of each prompt, begun as the model's texts are."""
    encoded = map(pieces.encode, prompts)
    return [[trained.start, *ids] if trained.adds_start or not ids else ids for ids in encoded]


def continuations(
    model: Llama, pieces: Tokenizer, prompts: Sequence[Sequence[int]], how: Generate, *, seed: int
) -> Iterator[Piece]:
    """The text that follows each prompt as it comes, row by row as `model.generate` counts them.

    Raises ValueError where a prompt fills the model's context.
    """
    streams = [Stream(pieces, prompt, how.stop) for prompt in prompts for _ in range(how.samples)]
    ended: set[int] = set()
    tokens = generate(model, prompts, how, seed=seed, eos=pieces.eos, n_tokens=pieces.vocab_size, ended=ended)
    for row, token in tokens:
        stream = streams[row]
        if token is None:
            yield Piece(row, stream.finish(), last=True)
        elif text := stream.add(token):
            yield Piece(row, text, last=False)
        if stream.ended:
            ended.add(row)


def show(prompts: Sequence[str], samples: int, pieces: Iterable[Piece], write: Callable[[str], None]) -> None:
    """Write prompts and what follows: one row as it comes; several under headings, in order, each when it is whole."""
    rows = [prompt for prompt in prompts for _ in range(samples)]
    if len(rows) == 1:
        write(rows[0])
        for piece in pieces:
            write(piece.text)
        write("\n")
        return
    whole: set[int] = set()
    written = 0
    for piece in pieces:
        rows[piece.row] += piece.text
        if piece.last:
            whole.add(piece.row)
        while written in whole:
            number, sample = divmod(written, samples)
            of_prompt = f"prompt {number + 1} of {len(prompts)}, sample {sample + 1} of {samples}"
            write(f"--- {of_prompt}\n{rows[written]}\n")
            written += 1


def continue_text(trained: Trained, how: Generate, seed: int) -> str:
    """The first prompt and what a model makes of it, worked out on the CPU in fp32.

    Raises ValueError where the prompt fills the model's context, Damaged where the weights are not what was written.
    """
    pieces, prompts = Tokenizer.load(trained.tokenizer), how.prompt[:1]
    begun = prompt_tokens(trained, pieces, prompts)
    told = continuations(trained.build(), pieces, begun, replace(how, prompt=prompts, samples=1), seed=seed)
    return prompts[0] + "".join(piece.text for piece in told)
