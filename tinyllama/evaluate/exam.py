"""The tasks that a run in training is asked: every so many steps, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllama.config.schema import RunConfig
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.evaluate.loss import Ask
from tinyllama.evaluate.results import Scores, as_record, asked_at, score_line
from tinyllama.evaluate.together import Engine, Together


class Exam:
    """A run's tasks. Where none are set, it is never due and asks nothing."""

    def __init__(
        self,
        engine: Engine,
        config: RunConfig,
        *,
        tokenizer: Tokenizer,
        tell: Callable[..., None],
        say: Callable[[str], None],
        stop: Ask,
    ) -> None:
        """tell takes the journal's records and say lines for a person, on the first rank; `stop` says on any rank
        whether it is to stop."""
        self._engine = engine
        self._how = config.evaluate
        self._tokenizer = tokenizer
        self._context = config.model.context
        self._tell = tell
        self._say = say
        self._stop = stop
        self.result: dict[str, Any] = {}
        """What result.json says of the last time; empty before it and on other ranks."""

    def is_due(self, step: int) -> bool:
        """Whether to ask after a step that is not the last."""
        return self._how.every is not None and step % self._how.every == 0

    def ask(self, *, step: int, tokens: int) -> None:
        """Ask them after a step and tell the scores; what fails is told and stops nothing.

        Every rank has to call it. Raises Interrupted, on all of them, once any is to stop.
        """
        if not self._how.tasks:
            return
        model = Together(
            self._engine,
            context=self._context,
            eos=self._tokenizer.eos,
            n_tokens=self._tokenizer.vocab_size,
            stop=self._stop,
        )
        if not self._engine.ranks.is_first:
            model.follow()
            return
        self._say(f"step {step}: asking {', '.join(self._how.tasks)}")
        scores = model.lead(lambda: self._scores(model))
        for name, reason in scores.failed.items():
            self._say(f"warning: step {step}: {name} could not be asked: {reason}")
        if line := score_line(scores.tasks):
            self._say(f"step {step}: {line}")
        self._tell("tasks", step=step, tokens=tokens, **as_record(scores.tasks, scores.failed, self._how))
        self.result = {
            "tasks": scores.tasks,
            "tasks_at": asked_at(step=step, tokens=tokens, failed=scores.failed),
        }

    def _scores(self, model: Together) -> Scores:
        from tinyllama.evaluate import harness  # seconds, which no run without tasks waits for

        subject = harness.Subject(
            model,
            self._tokenizer,
            start=self._tokenizer.eos,  # documents are trained on with it between them, and nothing else
            adds_start=False,
            context=self._context,
            batch=self._how.batch,
        )
        folder = Path(self._how.tasks_dir) if self._how.tasks_dir else None
        return harness.ask(subject, self._how.tasks, tasks_dir=folder, shots=self._how.shots, limit=self._how.limit)
