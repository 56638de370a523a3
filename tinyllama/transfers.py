"""The tasks that carry trained models out and in: export, import."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tinyllama.config.load import ConfigError, as_dict, digest, validate
from tinyllama.config.schema import RunConfig
from tinyllama.launch import runs
from tinyllama.models import name_of, trained_at
from tinyllama.plan.count import count_parameters
from tinyllama.tracking.folder import PLAN, RESULT
from tinyllama.tracking.record import refuse_what_is_there, write_json

if TYPE_CHECKING:
    from tinyllama.exchange.trained import Trained

IMPORTED_CARD = "card.md"
"""In an import's folder: the model card that came with it, which its exports have again."""


def export(config: RunConfig, *, console: Console) -> None:
    """task=export: a run's weights as a folder that other programs load."""
    how = config.export
    assert how.run is not None and how.out is not None  # a rule of the gate
    run_dir, out = Path(how.run), Path(how.out)
    refuse_what_is_there(out, key="export.out")
    if runs.is_published(run_dir):
        raise ValueError(f"export.run: {run_dir} is an export itself: import it first, task=import hf.source={run_dir}")
    frozen, result = runs.with_checkpoint(run_dir), runs.finished(run_dir)
    step, place = _step_to_export(run_dir, frozen, result, how.at_step)

    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.engine.checkpoint import Checkpoint
    from tinyllama.exchange.card import card
    from tinyllama.exchange.export import export as write

    one = Checkpoint.at(place)
    trained = trained_at(run_dir, frozen, one)
    parameters = count_parameters(trained.shape).total
    told = f"exported step {step:,} of {run_dir}, {parameters:,} parameters in {how.dtype}, to {out}"
    if how.format == "gguf":
        from tinyllama.exchange.gguf import write_gguf

        write_gguf(trained, out, dtype=how.dtype, name=frozen.config.name)
        console.print(told)
        return
    if frozen.origin:
        text = _bytes_of(run_dir / IMPORTED_CARD)
    else:
        text = card(
            frozen.config,
            plan=json.loads(_bytes_of(run_dir / PLAN)),
            result=result if result and step == result["steps"] else None,
            step=step,
            tokens=one.meta["tokens"],
            end=Tokenizer.load(trained.tokenizer).end_piece,
        ).encode()
    write(trained, out, card=text, dtype=how.dtype, shard_bytes=how.shard_bytes, console=console)
    console.print(told)


def _step_to_export(
    run_dir: Path, frozen: runs.Frozen, result: dict[str, Any] | None, at_step: int | None
) -> tuple[int, Path]:
    """The step that is meant and where its checkpoint is.

    Raises ValueError where there is none of that step, and where none is named of a run that has not finished.
    """
    places = dict(sorted(runs.checkpoints(run_dir)))
    there = f"there is: {', '.join(map(str, places))}"
    step = at_step
    if step is None and result:
        step = result["steps"]
    elif step is None and frozen.origin:
        step = 0
    if step is None:
        raise ValueError(
            f"export.run: {run_dir} has not finished: let it, or name a step, export.at_step={max(places)}; {there}"
        )
    if step not in places:
        raise ValueError(f"export.at_step: {run_dir} has no checkpoint of step {step}; {there}")
    return step, places[step]


def _bytes_of(path: Path) -> bytes:
    """What a file of a run holds. Raises ValueError where it is not there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"export.run: {path} cannot be read ({error.strerror}): restore it") from error


def import_(config: RunConfig, *, console: Console) -> None:
    """task=import: a model in Hugging Face's format as a run folder, to go on from, to evaluate, to generate from."""
    assert config.hf.source is not None and config.hf.out is not None  # a rule of the gate
    source, out = Path(config.hf.source), Path(config.hf.out)
    refuse_what_is_there(out, key="hf.out")

    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.exchange import published
    from tinyllama.exchange.adopt import write_checkpoint
    from tinyllama.exchange.export import CARD
    from tinyllama.exchange.folder import new_folder
    from tinyllama.exchange.tokenizers import check_vocabulary

    trained = published.open_published(source, name=name_of(out), key="hf.source")
    frozen = _as_run(config, trained, out)
    if (source / published.TOKENIZER_JSON).is_file():
        left_out = check_vocabulary(source / published.TOKENIZER_JSON, Tokenizer.load(trained.tokenizer))
        if left_out:
            console.print(f"left out, since tokenizer.model has them not: {' '.join(left_out[:20])}")
    with new_folder(out, key="hf.out") as folder:
        runs.write_down(folder, frozen)
        shutil.copyfile(trained.tokenizer, runs.tokenizer(folder))
        there = source / CARD
        card = there.read_bytes() if there.is_file() else f"# {frozen.config.name}\n".encode()
        (folder / IMPORTED_CARD).write_bytes(card)
        write_checkpoint(trained, folder / runs.CHECKPOINTS, console=console)
        what = {"status": "imported", "name": frozen.config.name, "source": str(source)}
        write_json(folder / RESULT, what | {"parameters": {"total": count_parameters(trained.shape).total}})
    shape = as_dict(frozen.config)["model"]
    line = [f"init_from={out}", f"data.tokenizer.model={out / runs.tokenizer(out).name}"]
    line += [f"data.tokenizer.vocab_size={frozen.config.data.tokenizer.vocab_size}"]
    line += [f"model.{key}={value}" for key, value in shape.items()]
    if frozen.config.train.eval_tokens != config.train.eval_tokens:
        line += [f"train.eval_tokens={frozen.config.train.eval_tokens}"]
    console.print(f"imported {count_parameters(trained.shape).total:,} parameters to {out}; to train on from them:")
    console.print(f"    python main.py {shlex.join(line)}")


def _as_run(config: RunConfig, trained: Trained, out: Path) -> runs.Frozen:
    """What the folder of an import says it is: a run from those weights that has taken no step."""
    from tinyllama.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(trained.tokenizer)
    whole = as_dict(replace(config, name=name_of(out), task="train", init_from=str(trained.folder), run_dir=str(out)))
    whole["model"] = asdict(trained.shape)
    whole["data"]["tokenizer"] |= {
        "model": str(runs.tokenizer(out)),
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
    }
    whole["train"]["eval_tokens"] = max(config.train.eval_tokens, trained.shape.context)
    try:
        run = validate(whole)
    except ConfigError as error:
        raise ValueError(f"hf.source: {trained.folder} cannot be a run here:\n{error}") from error
    return runs.Frozen(
        config=run,
        digest=digest(run),
        data=runs.DataIdentity(folder="", manifest_sha256="", tokenizer_sha256=tokenizer.sha256),
        origin=runs.Origin(source=str(trained.folder), start=trained.start, adds_start=trained.adds_start),
    )
