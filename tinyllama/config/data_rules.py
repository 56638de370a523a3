"""Rules between values about data: sources, stages, what a task needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tinyllama.config.data import Data, Prepare
from tinyllama.config.schema import Stage

Broken = Iterator[tuple[str, str]]


def stages_follow(stages: tuple[Stage, ...], data: Data) -> Broken:
    """Stages follow each other to the end of the budget, each with weights for sources that there are."""
    for index, stage in enumerate(stages):
        key, is_last = f"stages.{index}", index == len(stages) - 1
        if is_last and stage.tokens is not None:
            yield f"{key}.tokens", f"{stage.tokens}: the last stage lasts until the budget ends, leave it out"
        if not is_last and stage.tokens is None:
            yield f"{key}.tokens", "is null: say how long it is, only the last stage lasts until the budget ends"
        if stage.ramp and not index:
            yield f"{key}.ramp", f"{stage.ramp}: there is no stage before the first to come from, leave it out"
        if stage.ramp and stage.tokens and stage.ramp > stage.tokens:
            yield f"{key}.ramp", f"{stage.ramp} is longer than its stage of {stage.tokens} tokens: shorten it"
        if stage.weights is None:
            continue
        for name in stage.weights.keys() - data.sources.keys():
            yield f"{key}.weights.{name}", f"no such source; there is: {', '.join(data.sources)}"
        if not any(stage.weights.values()):
            yield f"{key}.weights", "are all zero: give at least one source a share"


def weights_are_of_one_kind(data: Data) -> Broken:
    """Natural weights are sizes in tokens, which mean nothing beside relative numbers."""
    natural = [name for name, source in data.sources.items() if source.weight == "natural"]
    for name, source in data.sources.items():
        if natural and source.weight != "natural":
            yield (
                f"data.sources.{name}.weight",
                f"{source.weight:g} beside the natural weight of {natural[0]}: make all of them natural, or none",
            )


def sources_have_raw_files(task: str, data: Data) -> Broken:
    """Preparing and downloading need to know where the raw files are."""
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        if source.is_embedded:
            for field in ("raw", "hub"):
                if (value := getattr(source, field)) is not None:
                    yield f"{key}.{field}", f"{value!r}: format {source.format} reads no files, leave it out"
        elif source.raw is None and (task == "prepare" or (task == "download" and source.hub)):
            yield f"{key}.raw", "is null: say where its raw files are"
    if task == "download" and not any(source.hub for source in data.sources.values()):
        yield "data", f"{data.name} has no source on a hub: set data.sources.NAME.hub, as in hub=OWNER/DATASET"


def filters_say_how(data: Data) -> Broken:
    """A filter keeps what it names or leaves it out."""
    for name, source in data.sources.items():
        rule = source.filter
        if rule is not None and (rule.keep is None) == (rule.not_in is None):
            yield f"data.sources.{name}.filter", "takes exactly one of in and not_in: say what to keep or to leave out"


def part_is_one_of_them(prepare: Prepare) -> Broken:
    """Parts are counted from 0."""
    if prepare.part is not None and prepare.part >= prepare.parts:
        yield "prepare.part", f"{prepare.part} is none of 0 to {prepare.parts - 1}: raise prepare.parts or choose one"


def hash_has_a_file(task: str, data: Data) -> Broken:
    """A tokenizer that is known by its hash is somebody's file: training another in its place would be another run."""
    if task in ("train", "prepare") and data.tokenizer.sha256 and data.tokenizer.model is None:
        yield (
            "data.tokenizer.model",
            f"is null, and the tokenizer must hash to {data.tokenizer.sha256}: say where that file is, or set "
            "data.tokenizer.sha256=null to train one",
        )


DATA_RULES: tuple[Callable[..., Broken], ...] = (
    stages_follow,
    weights_are_of_one_kind,
    sources_have_raw_files,
    filters_say_how,
    part_is_one_of_them,
    hash_has_a_file,
)
