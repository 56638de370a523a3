"""JSON files are whole or not there, and the environment record holds no secret."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from pathlib import Path

import pytest

from tinyllama.tracking import record


def test_write_json_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run" / "result.json"
    record.write_json(path, {"loss": 1.0})
    record.write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 2.0}
    assert os.listdir(path.parent) == ["result.json"]


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    record.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write_json(path, {"loss": math.nan})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        record.write_json(path, {"loss": 3.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert os.listdir(tmp_path) == ["result.json"]


def test_environment_is_json_and_reads_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-value")
    found = record.environment()
    assert "s3cret-value" not in json.dumps(found, allow_nan=False)
    assert set(found) == {"python", "platform", "host", "cpus", "packages", "git"}
    assert found["python"] == platform.python_version()
    assert found["packages"]["mlflow"].startswith("3.")
    assert set(found["packages"]) <= set(record.PACKAGES)


def test_packages_that_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PACKAGES", ("numpy", "no-such-package"))
    assert set(record.environment()["packages"]) == {"numpy"}


def test_git_state_follows_the_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    git("init")
    unborn = record.git_state(tmp_path)
    assert unborn["commit"] is None
    assert "HEAD" in unborn["reason"]
    git("commit", "--allow-empty", "-m", "one")
    clean = record.git_state(tmp_path)
    assert len(clean.pop("commit")) == 40
    assert clean == {"dirty": False}
    inner = tmp_path / "site-packages"
    inner.mkdir()
    (inner / "new.py").touch()
    assert record.git_state(tmp_path)["dirty"] is True
    reason = f"{inner} is not the top of a git checkout"
    assert record.git_state(inner) == {"commit": None, "dirty": None, "reason": reason}


def test_git_state_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.git_state(tmp_path) == {"commit": None, "dirty": None, "reason": "git is not installed"}
