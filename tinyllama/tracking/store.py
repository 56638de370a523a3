"""Where an MLflow store is and what it is told: pure functions that need no mlflow."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllama.config.schema import Tracking
from tinyllama.tracking.journal import MEASURED

PARAM_LENGTH = 6000
"""Characters that MLflow keeps of a parameter's value; longer ones are refused."""


def default_uri(runs_dir: Path) -> str:
    """The store where none is named: a SQLite file in the runs folder, by its absolute path.

    Errors: ValueError where the path holds a character that would end the path within a URI.
    """
    path = runs_dir.resolve() / "mlflow.db"
    if set("?#%") & set(str(path)):
        raise ValueError(
            f"runs_dir={runs_dir}: an MLflow URI cannot hold ?, # or %; choose another folder or tracking.uri"
        )
    return f"sqlite:///{path}"


def tracking_uri(tracking: Tracking, *, runs_dir: Path) -> str:
    """Where the runs of a configuration are kept."""
    return tracking.uri or default_uri(runs_dir)


def sqlite_file(uri: str) -> Path | None:
    """The file behind a SQLite URI, as an absolute path; None for any other store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    """Whether the store is behind an MLflow server, which keeps artifacts itself."""
    return uri.startswith(("http://", "https://"))


def artifact_root(uri: str, *, runs_dir: Path) -> str | None:
    """Where a new experiment keeps its artifacts: beside the SQLite file, or in the runs folder for other databases.

    None leaves it to the server. MLflow's own default, ./mlruns in the working folder, would scatter them.
    """
    if is_server(uri):
        return None
    file = sqlite_file(uri)
    return ((file.parent if file else runs_dir.resolve()) / "mlartifacts").as_uri()


def ui_command(uri: str) -> str:
    """The command line that shows the runs: MLflow's UI on loopback, or a browser where a server has the UI."""
    if is_server(uri):
        return f"python -m webbrowser {shlex.quote(without_password(uri))}"
    file = sqlite_file(uri)
    root = f" --default-artifact-root {shlex.quote((file.parent / 'mlartifacts').as_uri())}" if file else ""
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}{root} --host 127.0.0.1 --port 5000"


def without_password(text: str) -> str:
    """The text with user and password taken out of every URI in it."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """A nested config as MLflow parameters: dotted keys, values as YAML would show them, cut to MLflow's limit."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": text for inner, text in flatten(value).items()}
        else:
            flat[str(key)] = (value if isinstance(value, str) else json.dumps(value))[:PARAM_LENGTH]
    return flat


def points(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one line of the journal, by the names they have in MLflow; empty for what measures nothing.

    `tokens` is the axis to draw the others against; train numbers become `train/<name>`, and an eval's `losses` and
    `bits_per_byte` become `eval/<source>/loss` (nats) and `eval/<source>/bits_per_byte`. So do those of held_out, the
    last measure, on all held-out text.
    """
    if record["kind"] not in MEASURED:
        return {}
    named: dict[str, Any] = {}
    for key, value in record.items():
        if key == "tokens":
            named[key] = value
        elif isinstance(value, Mapping):
            measure = "loss" if key == "losses" else key
            named |= {f"{record['kind']}/{source}/{measure}": number for source, number in value.items()}
        elif key not in ("step", "time"):
            named[f"{record['kind']}/{key}"] = value
    return {key: float(value) for key, value in named.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Whether MLflow can draw it: a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
