"""One command line is one run: composed by Hydra, checked, planned, then trained, or one of the other tasks.

`python main.py --help` lists the groups and their options; README.md says what can be done.
"""

from __future__ import annotations

from tinyllama.launch.signals import requests

if __name__ == "__main__":
    requests.begin()  # before the other imports, which take seconds

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllama.config.schema import RunConfig
    from tinyllama.launch.lifeline import Lifeline
    from tinyllama.tracking.mlflow import Status

# what is printed may hold anything, brackets and colons too: no markup
console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def main() -> int:
    """Do what the command line says. Returns the exit status.

    0 finished, 1 failed, 2 refused, 74 the disk is full, 75 stopped and to be started again, 130 interrupted.
    """
    return requests.around(run, say=console.print)


def run() -> int:
    """Compose, check every point, then run them one after the other."""
    if sys.argv[1:2] in (["--job"], ["--jobs"]):  # of a study, frozen: nothing is composed
        from tinyllama import jobs

        return jobs.do_frozen(sys.argv[1:], train=point, console=console)
    from hydra.errors import HydraException
    from yaml import YAMLError

    try:
        points = composed()
        if not points:  # Hydra has shown what was asked for
            return 0
        from tinyllama import tasks
        from tinyllama.config.load import load, run_folder

        configs = [load(point) for point in points]
        tasks.check(configs)
        if len(configs) > 1:
            from tinyllama import study

            study.check(configs)
    except (ValueError, YAMLError, HydraException) as error:  # Hydra's own bad values are plain ValueErrors
        from tinyllama import status

        return status.refused(error)

    from tinyllama import status

    if len(configs) > 1 and all(config.task == "plan" for config in configs):
        return status.attempt(partial(study.plan, configs, console=console), console=console)
    if all(config.task == "train" for config in configs) and (len(configs) > 1 or configs[0].study.launcher == "slurm"):
        from tinyllama import study

        grid = partial(study.run, configs, train=point, program=Path(__file__).resolve(), console=console)
        return status.attempt(grid, console=console)
    ended = 0
    for number, config in enumerate(configs, start=1):
        if len(configs) > 1:
            console.rule(f"{number} of {len(configs)}: {run_folder(config)}", align="left")
        ended = point(config) or ended
    return ended


def composed() -> list[DictConfig]:
    """The command line's points; none where Hydra was asked to show something, which it has then done."""
    import hydra
    from hydra.plugins.sweeper import Sweeper

    from tinyllama.config import resolvers

    resolvers.register()
    # Hydra composes a grid's points once before it launches them, to be sure; here that is one after the other
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    # Hydra then raises what it would print, and all refusals look alike
    os.environ["HYDRA_FULL_ERROR"] = "1"
    points: list[DictConfig] = []

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def compose(point: DictConfig) -> None:
        points.append(point)  # the program runs them afterwards

    compose()
    return points


def point(config: RunConfig, why: Callable[[str], None] = lambda _: None) -> int:
    """One of the command line's points. Returns the exit status that it would end with alone."""
    from tinyllama import status

    requests.begin_part(config.time_limit)
    return status.attempt(partial(do, config), console=console, why=why)


def do(config: RunConfig) -> None:
    """Do a configuration's task."""
    from tinyllama import fits, models, tasks, transfers

    todo: dict[str, Callable[[RunConfig], None]] = {
        "train": partial(tasks.train, rank=train_rank, preload="tinyllama.preload", console=console),
        "plan": partial(tasks.plan, console=console),
        "download": partial(tasks.download, console=console),
        "prepare": partial(tasks.prepare, console=console),
        "inspect": partial(tasks.inspect, console=console),
        "generate": models.generate,
        "evaluate": partial(models.evaluate, console=console),
        "export": partial(transfers.export, console=console),
        "import": partial(transfers.import_, console=console),
        "sync": partial(tasks.sync, console=console),
        "fit": partial(fits.fit, console=console),
        "predict": partial(fits.predict, console=console),
    }
    todo[config.task](config)


def train_rank(run_dir: Path, lifeline: Lifeline) -> bool:
    """What each rank of a run does: build the parts, run the loop, and on the first rank write down what came out.

    Returns whether the run is finished; it is not where the ranks were asked to stop.
    """
    import torch

    from tinyllama import kernels, models, tasks
    from tinyllama.data.loader import Loader, held_out
    from tinyllama.data.manifest import Manifest
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.data.verify import Verification
    from tinyllama.engine import distributed
    from tinyllama.engine.saving import Saver
    from tinyllama.engine.start import starting_state
    from tinyllama.engine.zero import Engine
    from tinyllama.evaluate.exam import Exam
    from tinyllama.evaluate.loss import Evaluator
    from tinyllama.launch import runs
    from tinyllama.model.llama import Llama
    from tinyllama.plan.plan import make_plan
    from tinyllama.tracking.folder import RESULT
    from tinyllama.tracking.record import write_json
    from tinyllama.tracking.sync import ARTIFACTS
    from tinyllama.tracking.tracker import Tracker
    from tinyllama.train import loop, outcome
    from tinyllama.train.meter import MemoryMeter, Meter, measured_matmul_flops
    from tinyllama.train.progress import TrainProgress
    from tinyllama.train.recovery import Recovery
    from tinyllama.train.spikes import Judge, decisions, skips_of

    frozen = runs.thaw(run_dir)
    config, data = frozen.config, Path(frozen.data.folder)
    layout = config.parallelism
    ranks = distributed.Ranks.from_environment()
    device = distributed.use_device(layout.device, ranks, threads=layout.threads, ranks_here=layout.gpus)
    lifeline.beat()
    memory = MemoryMeter(device)
    # the watchdog, which says where a rank hangs, comes before the collectives' own end of patience
    distributed.meet(device, patience=2 * layout.hang_after)
    console.quiet = not ranks.is_first
    if layout.device == "cpu" and torch.cuda.is_available():
        console.print("note: a GPU is here and not used; parallelism=single trains on it")
    manifest = Manifest.load(data)
    tokenizer = Tokenizer.load(data / manifest.tokenizer.file)
    planned = make_plan(config, measured_tokens=tasks.sizes(manifest))

    how, precision = config.kernels, config.train.precision
    ops = kernels.select(how.backend, attention=how.attention, device=layout.device, precision=precision)
    end = tokenizer.eos if config.train.mask_documents else None
    model = Llama(config.model, ops=ops, recompute=layout.recompute, document_end=end, compiled=how.compile)
    state, resumed = starting_state(
        model,
        checkpoints=run_dir / runs.CHECKPOINTS,
        origin=Path(config.init_from) / runs.CHECKPOINTS if config.init_from else None,
        seed=config.seed,
        ranks=ranks,
        device=device,
        report=console.print,
        beat=lifeline.beat,
    )
    start = state.step
    engine = Engine(
        model,
        state=state,
        parallelism=layout,
        optimizer=config.optimizer,
        precision=precision,
        accumulation=planned.accumulation(planned.stage_at(start)),
        ranks=ranks,
        device=device,
        beat=lifeline.beat,
    )
    del state  # weights and moments, once for each rank: the engine has its own
    stages = tasks.mixture_stages(planned)
    loader = Loader(
        manifest,
        data,
        stages=stages,
        unique_tokens=config.data.unique_tokens,
        context=config.model.context,
        seed=config.seed,
    )
    texts = held_out(manifest, data, config.data.sources, context=config.model.context)
    evaluator = Evaluator(engine, texts, token_bytes=tokenizer.token_bytes(), micro_batch=planned.micro_batch)
    peak = (config.hardware.peak_tflops or 0) * 1e12 or measured_matmul_flops(device, precision)
    meter = Meter(flops_per_token=planned.flops_per_token.causal, peak_flops=peak * ranks.world_size)
    progress = TrainProgress(steps=planned.steps, start=start, shown=ranks.is_first)
    earlier = decisions(run_dir)
    distributed.wait_for_all()  # all have read the journal, to which the first now adds
    tracker, verification = Tracker(), Verification(manifest, data)
    if ranks.is_first:
        if not manifest.is_small:
            verification.start()
        tracker = Tracker.open(run_dir, config=config, digest=frozen.digest, start=start)
    exam = Exam(engine, config, tokenizer=tokenizer, tell=tracker.tell, say=progress.say, stop=lifeline.stop_asked)
    saver = Saver(
        run_dir / runs.CHECKPOINTS,
        engine=engine,
        kept=config.checkpoint,
        ranks_here=layout.gpus,
        named=lambda step: tracker.tell("checkpoint", step=step),
        branch=planned.branch_step,
    )
    judge = Judge(config.spikes, recent=resumed.meta["losses"] if resumed else (), earlier=earlier)
    skips = skips_of(config.spikes, earlier, kept=resumed.meta.get("skipped", ()) if resumed else ())
    recovery = Recovery(
        plan=planned, judge=judge, skips=skips, engine=engine, saver=saver, tracker=tracker, report=progress.say
    )

    def save(step: int) -> None:
        verification.check()  # nothing learnt from damaged tokens is kept
        saver.save(step, meta={"tokens": planned.tokens_by(step), "digest": frozen.digest, **recovery.state()})

    result = outcome.began(config, digest=frozen.digest, plan=planned, start=start)
    if ranks.is_first:
        write_json(run_dir / RESULT, result)
    status: Status = "FAILED"
    try:
        measured = loop.train(
            config,
            plan=planned,
            start=start,
            engine=engine,
            loader=loader,
            evaluator=evaluator,
            exam=exam,
            recovery=recovery,
            saver=saver,
            save=save,
            stop_asked=lifeline.stop_asked,
            tracker=tracker,
            meter=meter,
            progress=progress,
        )
        lifeline.rest()
        result["skipped"] = [list(left_out) for left_out in recovery.skips.ranges]
        status = "KILLED" if measured is None else "FINISHED"
        if measured is None:
            result = outcome.stopped(result)
        elif ranks.is_first:
            sample = models.continued(run_dir, config)
            speed = outcome.speed(meter, memory=memory)
            result = outcome.finished(
                result, manifest=manifest, measured=measured, plan=planned, speed=speed, sample=sample
            )
            result |= exam.result
            outcome.draw(run_dir, result)
    except BaseException as error:
        result = outcome.failed(result, error)
        raise
    finally:
        progress.close()
        if ranks.is_first:
            write_json(run_dir / RESULT, result)
            tracker.tell("end", status=status)
            tracker.close(status, artifacts=[run_dir / name for name in ARTIFACTS])
    distributed.leave()  # once the result is there for every machine's launcher to read
    return measured is not None


if __name__ == "__main__":
    sys.exit(main())
