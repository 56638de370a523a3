"""Knobs of the tasks that come after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tinyllama.config.kinds import Count, Name, NonNegativeFloat, NonNegativeInt, PositiveInt, Section, Texts


@dataclass(frozen=True, kw_only=True)
class Export(Section):
    """What task=export writes: a folder that other programs load a model from."""

    run: str | None
    """Folder of a finished run or of an import."""
    out: str | None
    """The folder to write, which must not be there yet; a file for gguf."""
    at_step: NonNegativeInt | None
    """The checkpoint of this step, of an unfinished run too; null takes the last one of a finished run."""
    dtype: Literal["fp32", "bf16"]
    """What the weights are written in: fp32 as they were trained, or rounded to bf16."""
    shard_bytes: Count
    """Bytes of weights in one file at most; a larger tensor has a file of its own."""
    format: Literal["huggingface", "gguf"]
    """A Hugging Face folder, or one file for llama.cpp."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Section):
    """What task=import reads: a Llama in Hugging Face's format."""

    source: str | None
    """Folder with config.json, safetensors and tokenizer.model."""
    out: str | None
    """The run folder to write, which must not be there yet."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Section):
    """What a model is asked, by task=evaluate and during training."""

    name: Name
    """What the option is called."""
    run: str | None
    """Folder of a run, an import or an export; task=evaluate needs it."""
    held_out: bool
    """Measure the loss on held-out text: for a run its own, otherwise that of `data`."""
    tasks: Texts
    """Tasks of lm-evaluation-harness by name; training asks them at its end."""
    tasks_dir: str | None
    """Folder of more tasks, as the harness' YAML files."""
    shots: NonNegativeInt | None
    """Solved examples before each question; null takes each task's own number."""
    limit: PositiveInt | None
    """Questions of each task at most; null takes all."""
    batch: PositiveInt
    """Sequences that go through the model at once."""
    every: PositiveInt | None
    """Steps of training between two times that the tasks are asked; null asks them at the end alone."""


@dataclass(frozen=True, kw_only=True)
class Generate(Section):
    """How text is sampled, at the end of a run and by task=generate."""

    run: str | None
    """Folder of a run, an import or an export to continue text with; task=generate needs it."""
    prompt: Texts
    """The text to continue, or several."""
    samples: PositiveInt
    """Continuations of each prompt."""
    max_tokens: PositiveInt
    """Tokens to add at most."""
    temperature: NonNegativeFloat
    """Divides the logits; 0 takes the likeliest token."""
    top_k: PositiveInt | None
    """Sample among this many likeliest tokens; null takes all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    """Sample among the likeliest tokens that together have this probability; null takes all (arXiv 1904.09751)."""
    stop: Texts
    """End a continuation before the first of these that it would hold."""


@dataclass(frozen=True, kw_only=True)
class Sync(Section):
    """What task=sync brings to MLflow."""

    run: str | None
    """Folder of the run; null takes every run in runs_dir."""


@dataclass(frozen=True, kw_only=True)
class Fitting(Section):
    """What task=fit reads and how it fits."""

    runs: str | None
    """Run folders: a folder of them, a pattern such as runs/60m-*; a CSV file with the columns params, tokens, loss and
    maybe unique_tokens; or mlflow:EXPERIMENT. Null takes runs_dir."""
    source: Name | None
    """The data source whose held-out loss is fitted; null takes all of a run's, by their shares of its training."""
    held_out: Annotated[float, Field(ge=0, lt=1)]
    """Share of the points, those of most compute, that are foretold by a fit to the others."""
    replicates: PositiveInt
    """Of the bootstrap, for the 90% intervals."""
    folder: str | None
    """Where fit.json, report.html and the plots go; null is the study's folder, or runs_dir/fit."""


@dataclass(frozen=True, kw_only=True)
class Predict(Section):
    """What task=predict reads."""

    fit: str | None
    """A fit.json, or the folder that it is in."""
