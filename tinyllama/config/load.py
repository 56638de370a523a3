"""The gate: a composed configuration becomes a frozen `RunConfig` here, once, or is refused with every mistake named.

Hydra composes data and nothing more. Each section is validated on its own, so that one report holds the mistakes of
all of them, and so that the rules between sections still run where the sections they need are sound.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

from tinyllama.config.kinds import PATTERNS
from tinyllama.config.rules import broken_rules
from tinyllama.config.schema import RunConfig


@dataclass(frozen=True)
class Problem:
    """One mistake: the dotted key it is at, what was found and the rule it breaks, what to do."""

    key: str
    says: str

    def __str__(self) -> str:
        return f"{self.key}: {self.says}"


class ConfigError(ValueError):
    """A configuration was refused; `problems` holds every mistake that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def load(composed: DictConfig) -> RunConfig:
    """Check a composed configuration and freeze it. Raises ConfigError with every mistake in it."""
    try:
        container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError([Problem(error.full_key or "config", "is missing: set it")]) from error
    except OmegaConfBaseException as error:
        says = str(error.msg or error).splitlines()[0].rpartition(" raised while resolving interpolation: ")[2]
        raise ConfigError([Problem(error.full_key or "config", says)]) from error
    assert isinstance(container, dict)
    container.pop("sweeps", None)
    container.pop("experiment", None)
    return validate({str(key): value for key, value in container.items()})


def validate(container: dict[str, Any]) -> RunConfig:
    """The same from plain data. Raises ConfigError."""
    problems: list[Problem] = []
    sound: dict[str, Any] = {}
    hints = get_type_hints(RunConfig, include_extras=True)
    for name, hint in hints.items():
        if name not in container:
            problems.append(Problem(name, "is missing: compose from conf/config.yaml or set it"))
            continue
        try:
            sound[name] = TypeAdapter(hint).validate_json(json.dumps(container[name]), strict=True)
        except ValidationError as error:
            problems += _explain(name, error)
    problems += [Problem(key, unknown_key(key)) for key in container if key not in hints]
    problems += [Problem(key, says) for key, says in broken_rules(sound)]
    if problems:
        raise ConfigError(problems)
    return RunConfig(**sound)


def _explain(section: str, error: ValidationError) -> Iterator[Problem]:
    # a union reports once for each of its members and puts the member's name in the path: one line is enough
    told: set[str] = set()
    known = set(_keys(RunConfig))
    for item in error.errors():
        parts = [section, *(str(part) for part in item["loc"])]
        while item["type"] != "unexpected_keyword_argument" and _star(".".join(parts))[0] not in known:
            parts.pop()
        key = ".".join(parts)
        if key not in told:
            told.add(key)
            yield Problem(key, _reword(key, item))


_PLAIN = {
    "be an object": "be a section of keys",
    "be a valid array": "be a list, as in [a, b]",
    "be a valid boolean": "be true or false",
    "be a valid integer": "be a whole number",
    "be a valid number": "be a number",
    "be a valid string": "be text",
}


def _reword(key: str, item: Any) -> str:
    value, context = _shown(key, item["input"]), item.get("ctx", {})
    rule = str(item["msg"]).partition(" should ")[2]
    match item["type"]:
        case "unexpected_keyword_argument":
            return unknown_key(key)
        case "missing" | "missing_keyword_only_argument" if isinstance(item["loc"][-1], int):
            return f"{value} holds too few values: it needs {item['loc'][-1] + 1}"
        case "missing" | "missing_keyword_only_argument":
            return "is missing: set it"
        case "literal_error":
            expected = str(context["expected"]).replace("'", "")
            choices = expected.replace(" or ", ", ").split(", ")
            near = difflib.get_close_matches(str(item["input"]), choices, n=1, cutoff=0.7) if len(choices) > 1 else []
            return f"{value} should be {expected}" + (f"; did you mean {near[0]}?" if near else "")
        case "string_pattern_mismatch":
            return f"{value} is not {PATTERNS[context['pattern']]}"
        case "value_error":
            return str(context["error"])
        case "too_short":
            return f"{value} holds too few values: it needs {context['min_length']}"
        case "too_long":
            return f"{value} holds too many values: it takes {context['max_length']}"
        case "int_type" if isinstance(item["input"], float) and item["input"].is_integer():
            return f"{value} should be a whole number: write {int(item['input'])}"
        case _:
            return f"{value} should {_PLAIN.get(rule, rule)}"


def _shown(key: str, value: Any) -> str:
    """A value as its user wrote it; what stands where a password may is not repeated."""
    if key == "tracking.uri":
        return "what is given"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def unknown_key(key: str) -> str:
    """What to say of a dotted key that no run has: the nearest one that exists."""
    near = nearest_key(key)
    return "no such key" + (f"; did you mean {near}?" if near else "; see --cfg job for all that exist")


def near_miss(refusal: str) -> str:
    """Hydra's refusal of a key that is not composed, with the nearest one that exists."""
    unknown = re.search(r"Could not override '([^'=]+)'", refusal)
    if unknown is None:
        return refusal.partition("\nConfig search path")[0]
    key = unknown[1]
    # some keys of a source have defaults that no file repeats
    known = _star(key)[0] in _keys(RunConfig)
    return f"{key}: {f'is not set by any file: add it, +{key}=VALUE' if known else unknown_key(key)}"


def broken_yaml(error: YAMLError) -> str:
    """What to say of a file that is no plain YAML, on one line. No tag in it is ever acted on."""
    mark, says = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
    return f"{where}{' '.join(says.split())}: write plain YAML, without tags and with each key once"


def nearest_key(key: str) -> str | None:
    """The existing dotted key most like this one, by its whole path or else by its last part."""
    starred, source = _star(key)
    known = [name for name in _keys(RunConfig) if ".*." not in name or ".*." in starred]
    whole = difflib.get_close_matches(starred, known, n=1, cutoff=0.8)
    if whole:
        return whole[0].replace("*", source)
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    leaf = difflib.get_close_matches(key.rpartition(".")[2], list(leaves), n=1, cutoff=0.8)
    return leaves[leaf[0]].replace("*", source) if leaf else None


def _star(key: str) -> tuple[str, str]:
    """A dotted key with what its user chose, a data source's name or a stage's number, as a star; and that."""
    parts = key.split(".")
    for prefix in (["data", "sources"], ["stages"]):
        depth = len(prefix)
        if parts[:depth] == prefix and len(parts) > depth:
            return ".".join([*prefix, "*", *parts[depth + 1 :]]), parts[depth]
    return key, ""


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        path = prefix + field.name
        yield path
        for inner, star in _sections(hints[field.name]):
            if star:
                yield f"{path}.*"
            yield from _keys(inner, f"{path}.*." if star else f"{path}.")


def _sections(hint: Any, star: bool = False) -> Iterator[tuple[type, bool]]:
    """The dataclasses that a field may hold, and whether it holds them by name."""
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint, star
    elif get_origin(hint) in (Annotated, Union, types.UnionType):
        for part in get_args(hint):
            yield from _sections(part, star)
    elif get_origin(hint) is dict:
        yield from _sections(get_args(hint)[1], True)
    elif get_origin(hint) is tuple:
        yield from _sections(get_args(hint)[0], True)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """A run's configuration as plain data that JSON holds and `validate` takes back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def essence(config: RunConfig) -> dict[str, Any]:
    """All that determines a run's trajectory, as plain data.

    That is seed, initial weights, model, data (but for where the raw files lie and what is only declared about them),
    stages, budget, batch, precision, document mask, optimizer, schedule and what counts as a spike. How the work is
    spread over GPUs, the kernels, what is logged, when it is saved and the names of things are left out: they may
    differ when a run is resumed.
    """
    whole = as_dict(config)
    kept = {
        key: whole[key] for key in ("seed", "init_from", "stages", "model", "data", "budget", "optimizer", "schedule")
    }
    kept["train"] = {key: whole["train"][key] for key in ("batch_tokens", "precision", "mask_documents")}
    kept["spikes"] = {key: whole["spikes"][key] for key in ("threshold", "window", "skip")}
    for section in ("model", "data", "budget"):
        del kept[section]["name"]
    for source in kept["data"]["sources"].values():
        for key in ("raw", "hub", "revision", "tokens", "max_epochs"):
            del source[key]
        if source["unique_tokens"] is None:
            del source["unique_tokens"]  # runs that began before there was this knob are the same runs
    if kept["data"]["tokenizer"]["model"] and kept["data"]["tokenizer"]["sha256"]:
        del kept["data"]["tokenizer"]["model"]  # the file may lie elsewhere tomorrow: its hash says what it is
    return kept


def digest(config: RunConfig) -> str:
    """The sha256 of a run's essence, in hex: runs with one digest are one run."""
    return hashlib.sha256(json.dumps(essence(config), sort_keys=True).encode()).hexdigest()


def run_folder(config: RunConfig) -> Path:
    """Where this run lives: `run_dir`, or a folder of `runs_dir` named by the run and its digest."""
    return Path(config.run_dir or Path(config.runs_dir) / f"{config.name}-{digest(config)[:8]}")
