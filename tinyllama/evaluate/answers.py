"""What a model makes of rows of tokens: how likely their ends are, and which token comes next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinyllama.config.tasks import Generate
from tinyllama.engine.distributed import Ranks
from tinyllama.model.generate import generate
from tinyllama.model.llama import Llama

GREEDY = Generate(run=None, prompt=("",), samples=1, max_tokens=1, temperature=0.0, top_k=None, top_p=None, stop=())
"""The likeliest token, again and again."""


class Row(NamedTuple):
    """A question to a model."""

    inputs: Sequence[int]
    """As many tokens as its context holds at most."""
    targets: Sequence[int]
    """The tokens that are to follow the last inputs, one each; none asks only what comes next."""


class Answer(NamedTuple):
    """What a model says to a row."""

    log_likelihood: float
    """Of all targets, in nats."""
    greedy: bool
    """Whether each target is the likeliest token where it stands."""
    following: int
    """The likeliest token after the inputs, among those that the tokenizer has."""


class Answerer(Protocol):
    """Whom a harness asks."""

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """To every row, in order."""

    def continued(self, prompt: Sequence[int], *, max_tokens: int, ended: Callable[[list[int]], bool]) -> list[int]:
        """The likeliest tokens after a prompt, up to the end of the document or until they have `ended`."""


@torch.no_grad()
def answers(logits: Callable[[Tensor], Tensor], rows: Sequence[Row], *, device: torch.device, n_tokens: int) -> Tensor:
    """The answers as numbers, fp64 [rows, 3], from one call of logits: tokens [b, t] to [b, t, v].

    Rows are padded at their ends, which a causal model does not see before them. Probabilities are of all v tokens, in
    fp32 whatever the logits are in; the likeliest following token is one of the first n_tokens.
    """
    tokens_bt = torch.zeros(len(rows), max(len(row.inputs) for row in rows), dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens_bt[index, : len(row.inputs)] = torch.tensor(row.inputs)
    found = []
    for row, logits_tv in zip(rows, logits(tokens_bt.to(device)), strict=True):
        end, scored = len(row.inputs), len(row.targets)
        targets_t = torch.tensor(row.targets, dtype=torch.int64, device=device)
        scores_tv = logits_tv[end - scored : end].float().log_softmax(-1)
        likelihood = scores_tv.gather(1, targets_t[:, None]).double().sum()
        greedy = (scores_tv.argmax(-1) == targets_t).all()
        following = logits_tv[end - 1, :n_tokens].argmax()
        found.append(torch.stack([likelihood, greedy.double(), following.double()]))
    return torch.stack(found)


def read(numbers: Tensor) -> list[Answer]:
    """Answers from their numbers."""
    return [Answer(nats, greedy == 1, int(following)) for nats, greedy, following in numbers.tolist()]


class Alone:
    """A model with no other rank beside it and nothing to train: it measures as an engine does."""

    ranks = Ranks(rank=0, local_rank=0, world_size=1)

    def __init__(self, model: Llama, *, device: torch.device, eos: int, n_tokens: int) -> None:
        """The model on its device; eos ends a document, and n_tokens are those that the tokenizer has."""
        self.device = device
        self._model = model
        self._eos = eos
        self._n_tokens = n_tokens

    @torch.no_grad()
    def evaluate(self, tokens_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over the targets that count, and their number."""
        loss: tuple[Tensor, Tensor] = self._model(tokens_bt.to(self.device), targets_bt.to(self.device))
        return loss

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """To every row, in order."""
        return read(answers(self._model, rows, device=self.device, n_tokens=self._n_tokens))

    def continued(self, prompt: Sequence[int], *, max_tokens: int, ended: Callable[[list[int]], bool]) -> list[int]:
        """The likeliest tokens after a prompt, up to the end of the document or until they have `ended`."""
        tokens: list[int] = []
        over: set[int] = set()
        how = replace(GREEDY, max_tokens=max_tokens)
        told = generate(self._model, [prompt], how, seed=0, eos=self._eos, n_tokens=self._n_tokens, ended=over)
        for _, token in told:
            if token is not None:
                tokens.append(token)
                if ended(tokens):
                    over.add(0)
        return tokens
