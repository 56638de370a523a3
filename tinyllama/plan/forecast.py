"""What published laws foretell of a run, and which size and length would serve as well for less over its life."""

from __future__ import annotations

from dataclasses import dataclass

from tinyllama.plan.laws import (
    BESIROGLU,
    HOFFMANN,
    MUENNIGHOFF,
    Allocation,
    Parametric,
    least_lifetime,
    lifetime_flops,
)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A held-out loss foretold by one law, on the corpus and tokenizer that it was fitted to."""

    law: str
    loss: float
    parameters_beyond: float
    """Times that the size is beyond what the law was fitted on; 1 within."""
    tokens_beyond: float
    """The same of the length."""


def forecasts(
    parameters: int, *, tokens: int, unique_tokens: int | None, effective_tokens: int | None
) -> tuple[Forecast, ...]:
    """By every published law; the one of repeats only where the unique tokens are known, and what all are worth."""
    told = [_forecast(law, law.loss(parameters, tokens), parameters, tokens) for law in (HOFFMANN, BESIROGLU)]
    if unique_tokens and effective_tokens:
        loss = MUENNIGHOFF.loss_of_mixture(parameters, effective_tokens, unique_tokens)
        told.append(_forecast(MUENNIGHOFF.fresh, loss, parameters, tokens))
    return tuple(told)


def _forecast(law: Parametric, loss: float, parameters: int, tokens: int) -> Forecast:
    return Forecast(
        law=law.source,
        loss=loss,
        parameters_beyond=law.parameters.outside(parameters),
        tokens_beyond=law.tokens.outside(tokens),
    )


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """A run beside the size and length of least compute over its life at the same loss, by Hoffmann's law."""

    inference_tokens: int
    loss: float
    flops: float
    """Of the run: 6 N D to train and 2 N for each token of inference."""
    best: Allocation
    best_flops: float
    beyond: float
    """Times that the run or the best is beyond what the law was fitted on; 1 within."""

    @property
    def saved(self) -> float:
        """The share of the run's compute that the best would save."""
        return 1 - self.best_flops / self.flops


def lifetime(parameters: int, *, tokens: int, inference_tokens: int | None) -> Lifetime | None:
    """None where no inference is planned for."""
    if inference_tokens is None:
        return None
    loss = HOFFMANN.loss(parameters, tokens)
    best = least_lifetime(HOFFMANN, loss=loss, inference_tokens=inference_tokens)
    return Lifetime(
        inference_tokens=inference_tokens,
        loss=loss,
        flops=lifetime_flops(Allocation(parameters, tokens), inference_tokens=inference_tokens),
        best=best,
        best_flops=lifetime_flops(best, inference_tokens=inference_tokens),
        beyond=max(
            *(HOFFMANN.parameters.outside(size) for size in (parameters, best.parameters)),
            *(HOFFMANN.tokens.outside(length) for length in (tokens, best.tokens)),
        ),
    )
