"""What MLflow is told, and where it is."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.plan.plan import make_plan
from tinyllama.tracking import store


def test_flatten() -> None:
    config = {"lr": 3e-4, "name": "x", "on": True, "none": None, "betas": (0.9, 0.95), "data": {"a": {"w": 1}, "e": {}}}
    assert store.flatten(config) == {
        "lr": "0.0003",
        "name": "x",
        "on": "true",
        "none": "null",
        "betas": "[0.9, 0.95]",
        "data.a.w": "1",
        "data.e": "{}",
    }
    assert store.flatten(store.flatten(config)) == store.flatten(config)
    assert store.flatten({"long": "x" * 6001}) == {"long": "x" * 6000}


def test_points_of_a_train_line() -> None:
    line = {
        "kind": "train",
        "time": 1.5,
        "step": 3,
        "tokens": 96,
        "loss": 2.0,
        "mfu": None,
        "reason": {"mfu": "no peak"},
    }
    assert list(store.points(line).items()) == [("train/loss", 2.0), ("tokens", 96.0)], "the loss first"


def test_points_of_an_eval_line() -> None:
    line = {
        "kind": "eval",
        "time": 1.5,
        "step": 3,
        "tokens": 96,
        "losses": {"code": 1.5, "text": None},
        "bits_per_byte": {"code": 0.5},
        "reason": {"losses.text": "nan"},
    }
    assert store.points(line) == {"tokens": 96.0, "eval/code/loss": 1.5, "eval/code/bits_per_byte": 0.5}
    assert store.points({"kind": "checkpoint", "time": 1.5, "step": 3}) == {}


def test_stretches_that_were_measured_again() -> None:
    assert store.superseded_text([(81, 90), (41, 60)]) == "steps 41-60, 81-90: measured again"
    assert store.superseded_text([(41, 60), (51, 70), (71, 71), (80, 80)]) == "steps 41-71, 80: measured again"
    many = [(1000 * index, 1000 * index + 9) for index in range(1, 1001)]
    text = store.superseded_text(many)
    parts = text.removesuffix(": measured again").partition(" earlier stretches and steps ")
    assert 4900 < len(text) <= store.TAG_LENGTH
    assert parts[2].endswith("999000-999009, 1000000-1000009"), "the newest stay"
    assert int(parts[0]) + len(parts[2].split(", ")) == 1000


def test_the_mirror_of_a_run(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    plain = as_dict(config())
    mirror = store.Mirror.of(tmp_path / "moved" / "a", plain, digest="abc")
    assert mirror.uri == store.default_uri(tmp_path / "moved"), "a folder of runs that was moved has its store"
    assert (mirror.experiment, mirror.params["model.d_model"]) == ("tinyllama", "128")
    assert mirror.tags == {
        "model": "nano", "data": "stdlib", "budget": "tokens", "parallelism": "cpu", "digest": "abc"
    }  # fmt: skip
    assert "planned.learning_rate" not in mirror.params, "the folder has no plan"
    own = as_dict(config("run_dir=elsewhere/a"))
    assert store.Mirror.of(Path("elsewhere/a"), own, digest="abc").uri == store.default_uri(Path("runs"))
    own = as_dict(config("tracking.uri=http://host:1"))
    assert store.Mirror.of(tmp_path / "a", own, digest="abc").uri == "http://host:1"
    assert store.Mirror.of(tmp_path / "a", own, digest="abc", uri="http://b").uri == "http://b"


def test_the_mirror_shows_what_auto_became(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    auto = config("optimizer.lr=auto", "schedule=wsd")
    (tmp_path / "plan.json").write_text(json.dumps(make_plan(auto).as_dict()))
    params = store.Mirror.of(tmp_path, as_dict(auto), digest="abc").params
    assert (params["optimizer.lr"], params["planned.batch_tokens"]) == ("auto", "16384")
    assert float(params["planned.learning_rate"]) == pytest.approx(make_plan(auto).learning_rate, rel=1e-5)
    (tmp_path / "plan.json").write_text('{"steps": 3}')
    assert "planned.learning_rate" not in store.Mirror.of(tmp_path, as_dict(auto), digest="abc").params


def test_a_database_that_nobody_serves_is_known_at_once() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        uri = f"postgresql+psycopg2://me@127.0.0.1:{reserved.getsockname()[1]}/db"
        with pytest.raises(OSError, match="refused"):
            store.reach(uri, timeout=5)
        reserved.listen()
        store.reach(uri, timeout=5)
    store.reach("sqlite:////tmp/x.db", timeout=5)


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = store.default_uri(Path("my runs"))
    assert uri == f"sqlite:////{str(tmp_path)[1:]}/my runs/mlflow.db"
    assert store.sqlite_file(uri) == tmp_path / "my runs" / "mlflow.db"
    root = (tmp_path / "my runs" / "mlartifacts").as_uri()
    assert store.artifact_root(uri, runs_dir=Path("elsewhere")) == root
    stores = ["--backend-store-uri", uri, "--default-artifact-root", root]
    assert shlex.split(store.ui_command(uri)) == ["mlflow", "ui", *stores, "--host", "127.0.0.1", "--port", "5000"]
    with pytest.raises(ValueError, match=r"runs_dir=50%: an MLflow URI cannot hold \?, # or %; choose another folder"):
        store.default_uri(Path("50%"))


def test_a_server_keeps_artifacts_and_shows_its_own_page(tmp_path: Path) -> None:
    uri = "https://me:s3cret@tracker:5000"
    assert store.artifact_root(uri, runs_dir=tmp_path) is None
    assert store.sqlite_file(uri) is None
    assert store.ui_command(uri) == "python -m webbrowser https://tracker:5000"
    database = "postgresql://me:s3cret@host/db"
    assert store.artifact_root(database, runs_dir=tmp_path) == (tmp_path / "mlartifacts").as_uri()


def test_passwords_are_taken_out() -> None:
    text = "no route to postgresql://me:s3cret@host/db or https://host/a@b"
    assert store.without_password(text) == "no route to postgresql://host/db or https://host/a@b"


def test_the_package_imports_neither_mlflow_nor_torch() -> None:
    modules = "journal, record, store, mlflow, writer, tracker, sync, curve"
    code = (
        f"import sys; from tinyllama.tracking import {modules}; print(sorted({{'mlflow', 'torch'}} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
