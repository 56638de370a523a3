"""What a run draws from each of its sources, and whether they hold enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tinyllama.config.load import Problem
from tinyllama.config.schema import RunConfig
from tinyllama.plan.laws import MUENNIGHOFF


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One source's part in a run."""

    share: float
    """Of the training tokens."""
    tokens: int
    """Training tokens drawn from it."""
    unique_tokens: int | None
    """Training tokens it holds, or as many of them as are taken; None where nobody knows yet."""
    measured: bool
    """Whether unique_tokens is exact, or what is declared of data that is not prepared."""
    epochs: float | None
    """Times it is seen."""
    effective_tokens: int | None
    """Unseen tokens that they are worth, repeats counting for less and less (arXiv 2305.16264)."""


def source_plan(given: float, tokens: int, size: int | None, *, measured: bool) -> SourcePlan:
    """Of a source that gives so many of a run's tokens and holds that many unique ones."""
    return SourcePlan(
        share=given / tokens,
        tokens=round(given),
        unique_tokens=size,
        measured=measured,
        epochs=given / size if size else None,
        effective_tokens=round(MUENNIGHOFF.effective_tokens(given, size)) if size else None,
    )


def drawn_once(sources: Mapping[str, SourcePlan]) -> int | None:
    """The unique tokens that a run sees; None where a source's size is not known."""
    seen = [source.unique_tokens and min(source.unique_tokens, source.tokens) for source in sources.values()]
    return None if None in seen else sum(size for size in seen if size is not None)


def too_small(config: RunConfig, unique: Mapping[str, int | None]) -> Iterator[Problem]:
    """Sources that hold no sequence."""
    for name, size in unique.items():
        if size is not None and size <= config.model.context:
            says = f"{size:,} training tokens are too few for one sequence, which takes model.context + 1 = "
            says += f"{config.model.context + 1:,}: give it more documents or use a smaller model.context"
            yield Problem(f"data.sources.{name}", says)


def too_little_taken(config: RunConfig, measured_tokens: Mapping[str, int] | None) -> Iterator[Problem]:
    """Parts of sources that are no part of them, or hold no sequence."""
    for name, tokens in config.data.unique_tokens.items():
        key, size = f"data.sources.{name}.unique_tokens", (measured_tokens or {}).get(name)
        if tokens < config.model.context:
            yield Problem(
                key, f"{tokens:,} are less than one sequence of model.context={config.model.context}: raise it"
            )
        if size is not None and tokens >= size:
            yield Problem(
                key, f"{tokens:,} are not fewer than the {size:,} training tokens it has: lower it, or null for all"
            )


def repeated_too_often(config: RunConfig, sources: Mapping[str, SourcePlan]) -> Iterator[Problem]:
    """Sources of which a run takes more epochs than they allow."""
    for name, source in sources.items():
        most = config.data.sources[name].max_epochs
        if source.epochs is not None and most is not None and source.epochs > most:
            yield Problem(
                f"data.sources.{name}.max_epochs",
                f"the run would repeat it {source.epochs:.2f} times, more than "
                f"{most:g}: lower the budget or its weight, or raise the limit",
            )
