"""Configuration that means harm: nothing it names is called, and nothing of the environment gets into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tinyllama.config.load import ConfigError, load

ROOT = Path(__file__).parents[2]
CANARY = "canary-81ab3e"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("name=${oc.env:HF_TOKEN}", "name"),
        ("generate.prompt=${oc.env:HF_TOKEN,nothing}", "generate.prompt"),
        ("generate.prompt='a ${oc.env:HF_TOKEN} b'", "generate.prompt"),
        ("spikes.skip=[${oc.env:HF_TOKEN}]", "spikes.skip[0]"),
        ("tracking.uri='${oc.decode:${oc.env:HF_TOKEN}}'", "tracking.uri"),
    ],
)
def test_a_value_from_the_environment_is_refused_unread(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, line: str, key: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with pytest.raises(ConfigError) as refused:
        load(composed(line))
    [problem] = refused.value.problems
    assert problem.key == key
    assert problem.says.startswith("takes HF_TOKEN from the environment, and run folders and MLflow would keep it")
    assert CANARY not in str(refused.value)


def run(here: Path, *line: str) -> subprocess.CompletedProcess[str]:
    secrets = dict.fromkeys(("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"), CANARY)
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *line],
        cwd=here,
        env=os.environ | secrets,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('!!python/object/apply:os.system ["touch PWNED"]', "python/object/apply:os.system"),
        ("!unknown x", "!unknown"),
        ("{a: 1, a: 2}", "duplicate key a"),
    ],
)
def test_a_tag_in_a_file_is_refused_and_not_acted_on(tmp_path: Path, value: str, told: str) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\nname: {value}\n")
    done = run(tmp_path, "--config-dir", "conf", "task=plan", "experiment=evil")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("refused ")
    assert "evil.yaml, line 2: " in line
    assert told in line
    assert "write plain YAML" in line
    assert not (tmp_path / "PWNED").exists()


def test_a_target_is_an_unknown_key(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    target = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["PWNED"]}}
    (folder / "evil.yaml").write_text(f"# @package _global_\n{json.dumps({'model': target, 'train': target})[1:-1]}")
    (folder / "evil.yaml").write_text(
        f"# @package _global_\nmodel: {json.dumps(target)}\ntrain: {json.dumps(target)}\n"
    )
    done = run(tmp_path, "--config-dir", "conf", "task=plan", "experiment=evil")
    assert done.returncode == 2
    assert "refused model._target_: no such key" in done.stderr
    assert "refused train._target_: no such key" in done.stderr
    assert not (tmp_path / "PWNED").exists()


def test_no_secret_of_the_environment_is_written_down_or_said(tmp_path: Path) -> None:
    done = run(tmp_path, "task=plan", "run_dir=runs/plan", "tracking.uri=http://127.0.0.1:9")
    assert done.returncode == 0
    refused = run(tmp_path, "name=${oc.env:HF_TOKEN}", "tracking.uri=http://me:${oc.env:HF_TOKEN}@host")
    assert refused.returncode == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    said = "".join((done.stdout, done.stderr, refused.stdout, refused.stderr, *(path.read_text() for path in files)))
    assert CANARY not in said
