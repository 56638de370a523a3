"""Faults of rank 1 alone: `torchrun ... two_ranks.py OUT` writes what each of both ranks came to.

The disk that fails is a function that raises; all else is real: two processes, their sums, the files.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from hydra import compose, initialize_config_dir

from tests.engine.both import CPU, Here, votes
from tests.train.loops import Steps, pretend
from tinyllama.config import resolvers
from tinyllama.config.load import load
from tinyllama.config.resilience import Spikes
from tinyllama.data.skips import Skips
from tinyllama.engine import checkpoint, saving
from tinyllama.engine.checkpoint import Checkpoint
from tinyllama.engine.distributed import Ranks, leave, meet, use_device
from tinyllama.engine.saving import Saver
from tinyllama.engine.start import newest_whole
from tinyllama.engine.zero import StepRecord
from tinyllama.plan.plan import make_plan
from tinyllama.tracking.journal import Journal, superseded
from tinyllama.tracking.tracker import Tracker
from tinyllama.train import loop
from tinyllama.train.recovery import Recovery
from tinyllama.train.spikes import Judge

FAULTS: dict[str, Callable[[], Exception]] = {
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "memory": lambda: MemoryError("out of memory"),
}
SLOW = 0.6
"""Seconds."""


@contextmanager
def instead(where: Any, name: str, what: Any) -> Iterator[None]:
    before = getattr(where, name)
    setattr(where, name, what)
    yield
    setattr(where, name, before)


def raised(work: Callable[[], object]) -> str:
    """What went wrong, without the folder's name; nothing where nothing did."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def trained_on(saver: Saver) -> None:
    """What the loop does at its next steps about a checkpoint in hand."""
    while True:
        written, failed, in_hand = votes(saver.written, saver.failed, saver._step is not None)
        if failed:
            saver.finish()
        if written == 2:
            saver.commit()
        elif not in_hand:
            return


def longest(beats: list[float], began: float) -> float:
    """The longest silence since then, in seconds."""
    return max(b - a for a, b in zip([began, *beats], [*beats, time.monotonic()], strict=True))


def saves(folder: Path, ranks: Ranks) -> dict[str, object]:
    """A disk or a memory of rank 1 that is full, whenever the ranks hear of it, and however each would write."""
    found: dict[str, object] = {}
    for memory, left in {"beside": 10**9, "parts": 0, "parts on rank 1": 0 if ranks.rank else 10**9}.items():
        for fault, error in FAULTS.items():
            for heard in ("finish", "next save", "training"):
                here = Here(folder, ranks)
                here.save(1)

                def fails(*_: object, error: Callable[[], Exception] = error) -> None:
                    raise error()

                writes = fails if ranks.rank else saving.save_file
                with instead(saving, "_memory_left", lambda left=left: left), instead(saving, "save_file", writes):
                    here.saver.save(2, meta={})
                    said = raised(
                        {
                            "finish": here.saver.finish,
                            "next save": lambda here=here: here.saver.save(3, meta={}),
                            "training": lambda here=here: trained_on(here.saver),
                        }[heard]
                    )
                names = here.listed()
                here.save(4)
                whole = Checkpoint.at(here.saver.place_of(4))
                whole.verify()
                found[f"{memory}, {fault}, {heard}"] = [said, names, len(whole.sha256), votes(True)]
    here = Here(folder, ranks)
    here.save(1)

    def unnamed(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with instead(checkpoint, "write_state", unnamed):
        here.saver.save(2, meta={})
        found["unnamed"] = [raised(lambda: trained_on(here.saver)), here.listed()]
    return found


def silences(folder: Path, ranks: Ranks) -> dict[str, object]:
    """How long each rank gives no sign of life while rank 1's disk is slow."""
    found: dict[str, object] = {}
    write, hashed = saving.save_file, checkpoint.sha256_of

    def slowly(*what: Any) -> None:
        time.sleep(SLOW * ranks.rank)
        write(*what)

    for memory, left in {"beside": 10**9, "parts on rank 1": 0 if ranks.rank else 10**9}.items():
        here = Here(folder, ranks)
        with instead(saving, "_memory_left", lambda left=left: left), instead(saving, "save_file", slowly):
            began = time.monotonic()
            here.save(1)
        found[f"saving, {memory}"] = longest(here.engine.beats, began)

    def slow_to_hash(path: Path, **how: Any) -> str:
        time.sleep(SLOW * ranks.rank)
        return hashed(path, **how)

    beats: list[float] = []
    with instead(checkpoint, "sha256_of", slow_to_hash):
        began = time.monotonic()
        newest_whole(folder, ranks=ranks, device=CPU, report=print, beat=lambda: beats.append(time.monotonic()))
    found["hashing"] = longest(beats, began)
    return found


def starts(folder: Path, ranks: Ranks) -> dict[str, object]:
    """What rank 1 alone finds wrong with the newer of two checkpoints when a run starts."""
    found: dict[str, object] = {}

    def lost(number: int) -> Callable[..., str]:
        def fails(path: Path, **_: object) -> str:
            if ranks.rank and path.parent.name.endswith("2"):
                raise OSError(number, "no")
            return hashed(path)

        return fails

    hashed = checkpoint.sha256_of
    for what in ("whole", "damaged", "bad sector", "stale", "no folder", "no state"):
        here = Here(folder, ranks)
        here.save(1, 2)
        if ranks.is_first and what == "damaged":
            (here.saver.place_of(2) / "exp_avg-00001.safetensors").write_bytes(b"damaged")
        fails = {"bad sector": lost(errno.EIO), "stale": lost(errno.ESTALE)}.get(what, hashed)
        place = Path(f"{folder}-elsewhere") if ranks.rank and what == "no folder" else folder
        if what == "no state" and ranks.is_first:
            (here.saver.place_of(2) / checkpoint.STATE).unlink()
        dist.barrier()
        told: list[str] = []
        step: list[int] = []

        def look(place: Path = place, told: list[str] = told, step: list[int] = step) -> None:
            one = newest_whole(place, ranks=ranks, device=CPU, report=told.append)
            step.append(one.step if one else 0)

        with instead(checkpoint, "sha256_of", fails):
            said = raised(look)
        found[what] = [step, said.replace(str(folder), "HERE"), here.listed(), len(told), votes(True)]
    return found


def back(folder: Path, ranks: Ranks) -> dict[str, object]:
    """A run of three steps whose third is refused twice, and rank 1 finds checkpoints damaged on the way back."""
    found: dict[str, object] = {}
    plan: Any = SimpleNamespace(sequences_of=lambda step: range(step * 4, step * 4 + 4))
    for name, damaged in {"none": [], "one": [2], "all": [1, 2]}.items():
        here = Here(folder, ranks)
        here.save(1, 2, 3)
        for step in damaged:
            if ranks.is_first:
                (here.saver.place_of(step) / "weights-00001.safetensors").write_bytes(b"damaged")
        spikes = Spikes(threshold=10.0, window=8, max_skips=20, skip=())
        tracker, journal = Tracker(), folder.with_name("metrics.jsonl")
        journal.unlink(missing_ok=True)
        dist.barrier()
        if ranks.is_first:
            tracker = Tracker(Journal(journal))
            for step in (1, 2, 3):
                tracker.tell("train", step=step, loss=2.0)
        engine: Any = here.engine
        judge = Judge(spikes)
        recovery = Recovery(
            plan=plan, judge=judge, skips=Skips(), engine=engine, saver=here.saver, tracker=tracker, report=str
        )
        record, steps = StepRecord(9.0, float("inf"), ()), list[int]()

        def refused(
            recovery: Recovery = recovery, record: StepRecord = record, steps: list[int] = steps, step: int = 3
        ) -> None:
            steps.append(recovery.after_refusal(step, record, recovery.samples(step)))
            steps.append(recovery.after_refusal(step, record, recovery.samples(step)))

        said = raised(refused)
        tracker.close("FINISHED")
        kept = recovery.state()
        found[name] = {
            "steps": steps,
            "said": said,
            "seated": here.engine.seated,
            "kept": [kept["losses"], kept["skipped"]],
            "samples": [[[piece.start, piece.stop] for piece in recovery.samples(step)] for step in (1, 2)],
            "there": here.listed(),
            "in step": votes(True),
        }
        if ranks.is_first:
            lines = [json.loads(line) for line in journal.read_text().splitlines()]
            found[f"{name}, told"] = [
                [(line["kind"], line["to"], line["samples"]) for line in lines if line["kind"] in ("skip", "rollback")],
                superseded(journal),
            ]
    return found


def due(ranks: Ranks) -> dict[str, object]:
    """The steps at which each rank saves, where rank 0's clock goes 25 s a step and rank 1's a year."""
    resolvers.register()
    short = ["budget.tokens=100K", "schedule.warmup_steps=1", "train.batch_tokens=8_192", "parallelism.micro_batch=8"]
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = load(compose("config", overrides=[*short, "checkpoint.every=1000", "checkpoint.minutes=1"]))
    judge = Judge(config.spikes)
    recovery = SimpleNamespace(judge=judge, samples=lambda step: [range(step * 32, step * 32 + 32)])
    engine = Steps(ranks, lambda mine: votes(*map(bool, mine)))
    pace = 3e7 if ranks.rank else 25.0
    clock = SimpleNamespace(monotonic=lambda: pace * len(engine.taken), perf_counter=time.perf_counter)
    saved: list[int] = []
    with instead(loop, "time", clock):
        pretend(config, plan=make_plan(config), engine=engine, recovery=recovery, save=saved.append)
    return {"due": saved}


def main() -> None:
    ranks = Ranks.from_environment()
    meet(use_device("cpu", ranks, threads=1, ranks_here=2), patience=60)
    out = Path(sys.argv[1])
    folder = out.with_name("checkpoints")
    found = {
        "saves": saves(folder, ranks),
        "silences": silences(folder, ranks),
        "starts": starts(folder, ranks),
        "back": back(folder, ranks),
        **due(ranks),
    }
    both: list[dict[str, object]] = [{}, {}]
    dist.all_gather_object(both, found)
    if ranks.is_first:
        out.write_text(json.dumps(both, indent=2))
    leave()


if __name__ == "__main__":
    main()
