"""Where an MLflow store is and what it is told of a run: no function here needs mlflow."""

from __future__ import annotations

import json
import math
import re
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tinyllama.config.schema import Tracking
from tinyllama.tracking.folder import PLAN
from tinyllama.tracking.journal import MEASURED

PARAM_LENGTH = 6000
"""Characters that MLflow keeps of a parameter's value; longer ones are refused."""
TAG_LENGTH = 5000
"""Characters of a tag's value that every MLflow server takes."""
NAME_LENGTH = 250
"""Characters of a run's name that every MLflow database has room for."""
SUPERSEDED = "superseded"
"""The tag that says which steps were measured twice."""
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""
PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows one run under another."""
NOTE = "mlflow.json"
"""In a run folder: which MLflow runs mirror it."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Point(NamedTuple):
    """One number of one metric; the time in milliseconds since 1970."""

    key: str
    value: float
    milliseconds: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Which MLflow run mirrors a run folder, and what it says of it.

    Errors: ValueError for the experiment named Default, but on a server.
    """

    run_dir: Path
    uri: str
    experiment: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    label: str | None = None
    """What a new run is called; None is the folder's name."""

    def __post_init__(self) -> None:
        if self.experiment == "Default" and not is_server(self.uri):
            raise ValueError(
                "tracking.experiment=Default: MLflow would put its artifacts into ./mlruns; choose another name"
            )

    @classmethod
    def of(
        cls,
        run_dir: Path,
        config: Mapping[str, Any],
        *,
        digest: str,
        stretches: Sequence[tuple[int, int]] = (),
        uri: str | None = None,
    ) -> Mirror:
        """The MLflow run of a run folder, from its configuration as plain data; in another store where one is given.

        stretches are the steps that were measured again, as `journal.superseded` gives them. A folder that was not
        named by run_dir lies in its runs_dir, wherever that is by now.
        """
        runs_dir = run_dir.parent if config["run_dir"] is None else Path(config["runs_dir"])
        tags = {section: config[section]["name"] for section in ("model", "data", "budget", "parallelism")}
        if stretches:
            tags[SUPERSEDED] = superseded_text(stretches)
        mirror = cls(
            run_dir=run_dir,
            uri=uri or config["tracking"]["uri"] or default_uri(runs_dir),
            experiment=config["tracking"]["experiment"],
            params=flatten(config) | _planned(run_dir),
            tags={**tags, "digest": digest},
        )
        study = config.get("study", {})  # runs of earlier versions had none
        if study.get("folder") is None:
            return mirror
        parent = noted_run(Path(study["folder"]) / NOTE, mirror.place)
        tags = {**mirror.tags, "study": study["name"], "folder": run_dir.name, **({PARENT: parent} if parent else {})}
        return replace(mirror, tags=tags, label=study.get("point"))

    @classmethod
    def of_study(cls, folder: Path, config: Mapping[str, Any], *, name: str) -> Mirror:
        """The parent run of a study, from the configuration of one of its points."""
        return cls(
            run_dir=folder,
            uri=config["tracking"]["uri"] or default_uri(folder.parent),
            experiment=config["tracking"]["experiment"],
            params={"study.name": name},
            tags={"study": name, "role": "study"},
        )

    @property
    def place(self) -> dict[str, str]:
        """What a note of the run's id is found by."""
        return {"uri": without_password(self.uri), "experiment": self.experiment}


def _planned(run_dir: Path) -> dict[str, str]:
    """What runs are compared by, from the folder's plan."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        plan = json.loads((run_dir / PLAN).read_text())
        names = ("tokens", "tokens_per_param", "unique_tokens", "steps", "batch_tokens", "learning_rate")
        whole = {"parameters": plan["parameters"]["total"], **{name: plan[name] for name in names}}
        whole["flops"] = 6.0 * whole["parameters"] * whole["tokens"]
        known = {name: value for name, value in whole.items() if value is not None}
        return {f"planned.{name}": f"{n:.6g}" if isinstance(n, float) else str(n) for name, n in known.items()}
    return {}


def noted(note: Path) -> list[dict[str, str]]:
    """The MLflow runs that a run folder has had, one a store and experiment."""
    if not note.exists():
        return []
    runs = json.loads(note.read_text())
    return runs if isinstance(runs, list) else [runs]


def noted_run(note: Path, place: Mapping[str, str]) -> str | None:
    """The id of the one in a store and experiment; None where there is none."""
    return next((one["run_id"] for one in noted(note) if {key: one.get(key) for key in place} == place), None)


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


def page_of(uri: str, *, experiment_id: str, run_id: str) -> str:
    """Where a browser finds a run, at a server or at what `ui_command` starts."""
    host = without_password(uri).rstrip("/") if is_server(uri) else "http://127.0.0.1:5000"
    return f"{host}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def reach(uri: str, *, timeout: float) -> None:
    """Raise OSError where nobody listens at a database's address: MLflow itself would try for minutes.

    A server may be behind a proxy, and its calls have a limit of their own.
    """
    if is_server(uri):
        return
    address = urlsplit(uri)
    port = address.port or _PORTS.get(address.scheme.partition("+")[0])
    if address.hostname and port:
        socket.create_connection((address.hostname, port), timeout).close()


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


def superseded_text(stretches: Iterable[tuple[int, int]]) -> str:
    """The value of the tag: `steps 41-60, 81-90: measured again`, touching stretches joined, the last ones where all
    are longer than a tag."""
    joined: list[list[int]] = []
    for first, last in sorted(stretches):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in joined]
    text, dropped = ", ".join(parts), 0
    # 50 are for the words around the numbers
    while len(text) > TAG_LENGTH - 50:
        text, dropped = text.partition(", ")[2], dropped + 1
    before = f"{dropped} earlier stretches and " if dropped else ""
    return f"{before}steps {text}: measured again"


def series(record: Mapping[str, Any]) -> list[Point]:
    """The points of one line of the journal. The time is the line's: MLflow takes the same point only once."""
    return [Point(key, value, round(record["time"] * 1000), record["step"]) for key, value in points(record).items()]


def points(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one line of the journal, by the names they have in MLflow; empty for what measures nothing.

    `tokens` is the axis to draw the others against; train numbers become `train/<name>`, and an eval's `losses` and
    `bits_per_byte` become `eval/<source>/loss` (nats) and `eval/<source>/bits_per_byte`. So do those of held_out, the
    last measure, on all held-out text. The `scores` of tasks become `tasks/<task>/<metric>`.
    """
    if record["kind"] not in MEASURED:
        return {}
    named: dict[str, Any] = {}
    for key, value in record.items():
        if key == "scores":
            named |= {f"{record['kind']}/{name}": number for name, number in value.items()}
        elif isinstance(value, Mapping):
            measure = "loss" if key == "losses" else key
            named |= {f"{record['kind']}/{source}/{measure}": number for source, number in value.items()}
        elif key not in ("step", "time", "tokens"):
            named[f"{record['kind']}/{key}"] = value
    if "tokens" in record:
        named["tokens"] = record["tokens"]  # last: MLflow's comparison begins with the first of a run's metrics
    return {key: float(value) for key, value in named.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Whether MLflow can draw it: a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
