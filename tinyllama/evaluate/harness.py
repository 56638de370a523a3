"""The one door to lm-evaluation-harness: its tasks, asked of a model of ours. Importing this takes seconds.

Text becomes tokens here as in the harness' own `hf` backend on an export of the model, so that both score alike.
"""

from __future__ import annotations

import difflib
import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

# libraries of the harness' read these when they are imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_MULTIPROC", "1")  # a bootstrap would fork a process that holds a model

import datasets
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.tasks
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from tinyllama.data.tokenizer import Tokenizer
from tinyllama.evaluate.answers import Answerer, Row
from tinyllama.evaluate.loss import Interrupted, Tell
from tinyllama.evaluate.results import Scores

# the harness and its readers tell each step, with bars of their own; what fails is raised
for _name in ("lm_eval", "datasets", "huggingface_hub"):
    logging.getLogger(_name).setLevel(logging.ERROR)
datasets.disable_progress_bars()
lm_eval.api.task.tqdm = partial(tqdm, disable=True)

VERSION = metadata.version("lm_eval")
SEED = 1234
"""Of what the harness draws at random, as examples: its own default."""
MAX_NEW_TOKENS = 256
"""Of a continuation, where a task does not say: the harness' own default."""
_TOLD = 300


class Subject(TemplateLM):  # type: ignore[misc]
    """A model of ours as the harness asks it."""

    def __init__(
        self,
        answerer: Answerer,
        tokenizer: Tokenizer,
        *,
        start: int,
        adds_start: bool,
        context: int,
        batch: int,
        tell: Tell = lambda *_: None,
    ) -> None:
        """start stands before a text that has nothing before it, and before every text where adds_start.

        So many rows are asked at once. tell hears how many rows of a kind are answered, and of how many.
        """
        super().__init__()
        self._answerer = answerer
        self._tokenizer = tokenizer
        self._start = start
        self._adds_start = adds_start
        self._batch = batch
        self._tell = tell
        self.max_length = context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self._tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """The token that a text begins with which has nothing before it."""
        return self._start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """The tokens of a text."""
        begins = self._adds_start and add_special_tokens is not False
        return [self._start] * begins + self._tokenizer.encode(string)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002
        """How likely each continuation is after its context, and whether it is the likeliest."""
        scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scored

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        rows = []
        for what, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"{str(what)[:80]!r} has a continuation of {len(continuation)} tokens: the model's context takes "
                    f"1 to {self.max_length}"
                )
            # what does not fit is cut at its beginning; the last token is a target only
            rows.append(Row([*context, *continuation][-(self.max_length + 1) :][:-1], continuation))
        scored: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index].inputs))
        for begin in range(0, len(rows), self._batch):
            together = longest_first[begin : begin + self._batch]
            answers = self._answerer.answers([rows[index] for index in together])
            for index, answer in zip(together, answers, strict=True):
                scored[index] = answer.log_likelihood, answer.greedy
            self._tell("rows", min(begin + self._batch, len(rows)), len(rows))
        return scored

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        """How likely each text is as a whole, in windows that score every token once."""
        pieces = []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces += [(index, *make_disjoint_window(window)) for window in windows]
        sums = [0.0] * len(requests)
        for (index, *_), (nats, _) in zip(pieces, self._loglikelihood_tokens(pieces), strict=True):
            sums[index] += nats
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """The likeliest continuation of each context, up to the first of its stop strings. Raises ValueError where a
        task asks for one drawn at random."""
        texts = []
        for index, request in enumerate(requests, start=1):
            context, settings = request.args
            how = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
            if how.get("do_sample"):
                raise ValueError("its generation_kwargs draw at random (do_sample): only the likeliest text is scored")
            texts.append(self._continued(context, how["until"], how["max_gen_toks"]))
            self._tell("texts", index, len(requests))
        return texts

    def _continued(self, context: str, until: list[str], max_tokens: int) -> str:
        room = self.max_length - max_tokens
        if room < 1:
            raise ValueError(
                f"{max_tokens} new tokens fill a context of {self.max_length}: set the task's max_gen_toks lower"
            )
        stops = [stop for stop in until if stop]
        prompt = self.tok_encode(context)[-room:] or [self._start]
        decode = self._tokenizer.decode

        def ended(tokens: list[int]) -> bool:
            text = decode(tokens)
            return any(stop in text for stop in stops)

        text = decode(self._answerer.continued(prompt, max_tokens=max_tokens, ended=ended))
        for stop in stops:
            text = text.split(stop)[0]
        return text


def unknown(names: Sequence[str], tasks_dir: Path | None) -> dict[str, list[str]]:
    """Those names that neither the harness nor the folder has a task of, and names that are near each."""
    known = set(_manager(tuple(names), tasks_dir).all_tasks)
    if known.issuperset(names):
        return {}
    near = partial(difflib.get_close_matches, possibilities=sorted({*known, *_named()[0]}), n=3)
    return {name: near(name) for name in names if name not in known}


def broken_files(tasks_dir: Path) -> dict[Path, str]:
    """The YAML files of a folder that the harness passes over as it cannot read them, and why."""
    broken = {}
    for path in sorted(tasks_dir.glob("**/*.yaml")):
        try:
            lm_eval.tasks._yaml_loader.load_yaml(path, resolve_func=False)
        except Exception as error:
            broken[path] = in_a_line(error)
    return broken


def ask(
    subject: Subject,
    names: Sequence[str],
    *,
    tasks_dir: Path | None,
    shots: int | None,
    limit: int | None,
    say: Callable[[str], None] = lambda _: None,
    hear: Callable[[str, Scores], None] = lambda *_: None,
) -> Scores:
    """Ask tasks one after the other; a group's stand in its place. What fails is told and stops no other.

    `say` hears the name of each task before it is asked, `hear` what came of it, at once. A task that wants to end the
    process has failed: whoever ends it by such means says so once more in `hear`. Raises Interrupted where the answerer
    does, and what `hear` raises.
    """
    whole = Scores(tasks={}, failed={})
    for name in names:
        say(name)
        try:
            with _own_randomness():
                tasks = _asked(subject, name, _manager(tuple(names), tasks_dir), shots=shots, limit=limit)
            one = Scores(tasks=tasks, failed={})
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            one = Scores(tasks={}, failed={name: in_a_line(error)})
        whole.tasks.update(one.tasks)
        whole.failed.update(one.failed)
        hear(name, one)
    return whole


def in_a_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_TOLD]


def _asked(
    subject: Subject, name: str, manager: Any, *, shots: int | None, limit: int | None
) -> dict[str, dict[str, float]]:
    loaded = manager.load([name])
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):  # a task that says 0 takes none, as in the harness
            task.set_config("num_fewshot", shots or 0)
        task.set_fewshot_seed(SEED)
    whole = evaluator.evaluate(subject, loaded, limit=limit, log_samples=False, bootstrap_iters=1000)
    taken = whole["n-shot"]
    return {task: metrics for task, found in whole["results"].items() if (metrics := _metrics(found, taken.get(task)))}


def _metrics(found: Mapping[str, Any], shots: int | None) -> dict[str, float]:
    """The harness' numbers by plain names: `acc,none` is acc, and what a filter made of it `acc.filter`; HOW_ASKED."""
    metrics = {}
    for key, value in found.items():
        metric, comma, chosen = key.partition(",")
        if comma and isinstance(value, int | float | np.number):
            metrics[metric if chosen == "none" else f"{metric}.{chosen}"] = float(value)
    how = {"questions": found.get("sample_len"), "shots": shots}  # a group's tasks may differ in them
    return metrics and metrics | {name: number for name, number in how.items() if number is not None}


@lru_cache(maxsize=1)
def _manager(names: tuple[str, ...], tasks_dir: Path | None) -> Any:
    """An index that has these names, where there are such tasks.

    The harness' own tasks are 14,000 files, half a minute to index: where all names are single tasks, only their
    folders are.
    """
    own = [str(tasks_dir)] if tasks_dir else []
    manager = TaskManager(include_path=own, include_defaults=False)
    if missing := set(names) - set(manager.all_subtasks):
        folders = sorted({folder for name in missing for folder in _named()[0].get(name, ())})
        manager = TaskManager(include_path=[*folders, *own], include_defaults=False)
    missing = set(names) - set(manager.all_subtasks)
    return TaskManager(include_path=own) if missing & _named()[1] else manager


@lru_cache(maxsize=1)
def _named() -> tuple[dict[str, set[str]], set[str]]:
    """By the text of the harness' own files: the folders that a task or group may be in, and all that may be names."""
    line = re.compile(r"^(?:(task|group|tag):|\s+-)\s*['\"]?([\w.\-]+)['\"]?\s*$", re.MULTILINE)
    folders: dict[str, set[str]] = {}
    words = set()
    for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"):
        for key, name in line.findall(path.read_text(errors="replace")):
            words.add(name)
            if key:
                folders.setdefault(name, set()).add(str(path.parent))
    return folders, words


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Tasks draw from the generators that all libraries share: the same each time, and nobody else's numbers."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(SEED)
            np.random.seed(SEED)
            torch.default_generator.manual_seed(SEED)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
