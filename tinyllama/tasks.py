"""The tasks beside training, from plan to sync. Each is a function of a run's configuration.

What a task needs is imported in it, so that a plan waits neither for torch nor for the readers of raw files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tinyllama.config.load import ConfigError, Problem, run_folder
from tinyllama.config.schema import RunConfig
from tinyllama.launch import forkserver, launcher, rates, runs, trunk
from tinyllama.launch.signals import requests
from tinyllama.plan.plan import Plan, make_plan, settled
from tinyllama.plan.render import render, short
from tinyllama.tracking.folder import PLAN, alone
from tinyllama.tracking.record import write_json
from tinyllama.tracking.store import tracking_uri, ui_command

if TYPE_CHECKING:
    from tinyllama.data.manifest import Manifest
    from tinyllama.data.mixture import Stage


def check(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError for all that can be known not to work before anything is begun, of any point."""
    problems = [problem for config in configs for problem in _problems(config)]
    if problems:
        raise ConfigError(list({str(problem): problem for problem in problems}.values()))  # points repeat each other


def _problems(config: RunConfig) -> Iterator[Problem]:
    from tinyllama.data import find as sets
    from tinyllama.evaluate import names

    if config.task in ("train", "evaluate"):
        yield from names.problems(config.evaluate)
    if config.task not in ("plan", "train", "inspect"):
        return
    manifest = sets.find(config.data, data_dir=Path(config.data_dir))
    if config.task != "plan" and not sets.is_embedded(config.data):
        line = [word for word in sys.argv[1:] if "=" in word]
        if says := sets.missing(config.data, data_dir=Path(config.data_dir), line=line):
            yield Problem("data", says)
    looks: list[Callable[[], None]] = [lambda: check_stages(make_plan(config, measured_tokens=sizes(manifest)))]
    if config.task == "train" and config.study.launcher == "here":
        looks.append(lambda: launcher.check_gpus(config.parallelism))
    for look in looks:
        try:
            look()
        except ConfigError as error:
            yield from error.problems


def manifest_of(config: RunConfig) -> Manifest | None:
    """Of a run's prepared data; None where it is not prepared."""
    from tinyllama.data import find as sets

    return sets.find(config.data, data_dir=Path(config.data_dir))


def identity_of(config: RunConfig) -> runs.DataIdentity:
    """Which prepared data a run is trained on."""
    from tinyllama.data import find as sets

    manifest = manifest_of(config)
    assert manifest is not None  # it has been prepared
    folder = sets.dataset_dir(config.data, data_dir=Path(config.data_dir)).resolve()
    return runs.DataIdentity.of(folder, tokenizer_sha256=manifest.tokenizer.sha256)


def plan_of(config: RunConfig, *, manifest: Manifest | None) -> Plan:
    """What a run will take, at the rate that earlier runs measured, if there were any."""
    return make_plan(config, measured_tokens=sizes(manifest), measured_rate=rates.measured_rate(config))


def plan(config: RunConfig, *, console: Console) -> None:
    """task=plan: what the run will take, from the configuration alone."""
    whole = planned_and_written(config)
    for part in render(whole, title=f"{config.name}: {config.model.name} on {config.data.name}"):
        console.print(part)
    place = run_folder(config) / PLAN
    console.print(f"{place} stays that of the run there" if runs.is_begun(place.parent) else f"written to {place}")


def planned(config: RunConfig) -> Plan:
    """A run's plan, by its data where that is prepared."""
    return plan_of(config, manifest=manifest_of(config))


def planned_and_written(config: RunConfig) -> Plan:
    """A run's plan, written to its folder unless the run has begun there."""
    whole = planned(config)
    if not runs.is_begun(run_folder(config)):  # what a run was begun by stays
        write_json(run_folder(config) / PLAN, whole.as_dict())
    return whole


def train(config: RunConfig, *, rank: launcher.RankFunction, preload: str, console: Console) -> None:
    """task=train: prepare what can be prepared on the spot, plan, freeze, start the ranks, tell what came out.

    preload is the module that imports what the ranks will need.
    """
    if config.parallelism.device == "cpu":  # on a GPU each rank imports for itself: none may be forked with CUDA begun
        forkserver.start(preload)
    manifest, folder = prepared(config, console=console)
    config = runs.settled_before(config)
    identity = runs.DataIdentity.of(folder, tokenizer_sha256=manifest.tokenizer.sha256)
    planned = plan_of(config, manifest=manifest)
    runs.check_init(config, identity)
    run_dir = run_folder(config)
    # of several machines one writes the run down, and the ranks of all read it
    with alone(run_dir, meet=config.parallelism.rendezvous) as first:
        if config.resume == "never" and (aside := runs.set_aside(run_dir)):
            console.print(f"the earlier run is now {aside}")
        if runs.freeze(run_dir, settled(config, planned.micro_batch), identity, planned, writes=first):
            manifest.verify_small(folder)
            if first and (branch := trunk.adopt(config, planned, run_dir=run_dir, data=identity)):
                console.print(f"begins after step {branch.step:,} of {branch.run}, which is the same up to there")
            planned = _started(config, planned, rank, run_dir, identity, manifest, console)
        else:
            console.print(f"{run_dir} has finished already; resume=never trains it again")
    tell_result(config, planned, console=console)


def _started(
    config: RunConfig,
    planned: Plan,
    rank: launcher.RankFunction,
    run_dir: Path,
    identity: runs.DataIdentity,
    manifest: Manifest,
    console: Console,
) -> Plan:
    """Start the ranks; where an automatic micro-batch was too large, once again with half. Returns the last plan."""
    for line in short(planned):
        console.print(line)
    ranks = partial(launcher.start_ranks, rank, run_dir, requests=requests, report=console.print)
    try:
        ranks(config.parallelism)
    except launcher.RankError as error:
        half, layout = planned.half_micro_batch, config.parallelism
        if not error.out_of_memory or layout.micro_batch != "auto" or layout.nodes > 1 or half is None:
            raise
        console.print(f"out of memory: once again with parallelism.micro_batch={half}")
        config = settled(config, half)
        planned = plan_of(config, manifest=manifest)
        runs.freeze(run_dir, config, identity, planned, writes=True)
        ranks(config.parallelism)
    return planned


def tell_result(config: RunConfig, planned: Plan, *, console: Console) -> None:
    """What came of a finished run, and where it is to be seen."""
    from tinyllama.train import outcome

    run_dir = run_folder(config)
    result = runs.finished(run_dir)
    assert result is not None  # a rank that fails raises
    for part in outcome.render(result, planned=planned):
        console.print(part)
    console.print(f"run folder: {run_dir}")
    if config.tracking.name == "mlflow":
        console.print(f"compare runs: {ui_command(tracking_uri(config.tracking, runs_dir=Path(config.runs_dir)))}")


def download(config: RunConfig, *, console: Console) -> None:
    """task=download: raw files of the sources that are on a hub."""
    from tinyllama.data import download as hub

    hub.download(config.data, report=console.print)


def prepare(config: RunConfig, *, console: Console) -> None:
    """task=prepare: raw files to token shards, or this machine's part of them."""
    from tinyllama.data import find as sets
    from tinyllama.data import prepare as shards

    data_dir = Path(config.data_dir)
    if shards.prepare(config.data, data_dir=data_dir, how=config.prepare, console=console):
        console.print(f"data set: {sets.dataset_dir(config.data, data_dir=data_dir)}")


def prepared(config: RunConfig, *, console: Console) -> tuple[Manifest, Path]:
    """The data set, prepared on the spot where it is embedded, and its folder."""
    from tinyllama.data import find as sets

    data_dir, whole = Path(config.data_dir), replace(config.prepare, part=None)
    if (manifest := sets.find(config.data, data_dir=data_dir)) is None:
        from tinyllama.data import prepare as shards

        manifest = shards.prepare(config.data, data_dir=data_dir, how=whole, console=console)
        assert manifest is not None  # nobody else has a part of it
    for name, source in manifest.sources.items():
        if source.raw.skips is not None:
            console.print(f"warning: {source.raw.skipped:,} of {name} could not be read when it was prepared")
    return manifest, sets.dataset_dir(config.data, data_dir=data_dir).resolve()


def inspect(config: RunConfig, *, console: Console) -> None:
    """task=inspect: what a prepared set holds and what the run would make of it, or which documents make up a step.

    A run that has left samples out is shown as it went on.
    """
    from tinyllama.data.inspect import show
    from tinyllama.train.spikes import decisions, skips_of

    manifest, folder = prepared(config, console=console)
    planned, step = make_plan(config, measured_tokens=sizes(manifest)), config.inspect.at_step
    if step is not None and step >= planned.steps:
        raise ValueError(f"inspect.at_step: {step} is none of the run's steps, 0 to {planned.steps - 1}: choose one")
    taken = skips_of(config.spikes, decisions(run_folder(config)))
    for part in show(
        manifest,
        folder,
        how=config.inspect,
        stages=mixture_stages(planned),
        sequences=planned.sequences_of(planned.steps - 1).stop,
        step=None if step is None else [k for piece in taken.samples(planned.sequences_of(step)) for k in piece],
        unique_tokens=config.data.unique_tokens,
        context=config.model.context,
        seed=config.seed,
    ):
        console.print(part)
    for warning in planned.warnings:
        console.print(f"warning: {warning}")


def sync(config: RunConfig, *, console: Console) -> None:
    """task=sync: bring to MLflow what it lacks of one run, or of all in runs_dir."""
    from tinyllama.tracking import sync as journals

    found = [Path(config.sync.run)] if config.sync.run else journals.find_runs(Path(config.runs_dir))
    journals.sync(found, uri=config.tracking.uri, report=console.print)


def mixture_stages(planned: Plan) -> list[Stage]:
    """A plan's stages as the data's order takes them, the last without an end."""
    from tinyllama.data.mixture import Stage

    stages = [Stage(stage.sequences, stage.weights, stage.ramp) for stage in planned.stages]
    return [*stages[:-1], stages[-1]._replace(samples=None)]


def check_stages(planned: Plan) -> None:
    """Raise ConfigError where a stage is too short for its sources to have their shares in it."""
    from tinyllama.data.mixture import Mixture

    try:
        Mixture(mixture_stages(planned), windows=dict.fromkeys(planned.sources, 1), seed=0)
    except ValueError as error:
        raise ConfigError([Problem("stages", str(error))]) from error


def sizes(manifest: Manifest | None) -> dict[str, int] | None:
    """Each source's training tokens, where the data is prepared."""
    return {name: source.train.tokens for name, source in manifest.sources.items()} if manifest else None
