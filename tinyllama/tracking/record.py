"""The records of a run folder: written whole or not at all, and what they say about where a run happened."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

PACKAGES = ("torch", "deepspeed", "triton", "sentencepiece", "mlflow", "hydra-core", "numpy")
_PROJECT = Path(__file__).resolve().parents[2]


def write_json(path: Path, obj: Any) -> None:
    """Writes an object as JSON so that the path holds either its former content or all of the new one.

    Errors: ValueError where it holds a non-finite float (write null and a reason), TypeError where it is not JSON; the
    former file is then untouched.
    """
    write_whole(path, (json.dumps(obj, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file through to the disk so that the path holds either its former content or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # process ids repeat themselves among machines
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself lives in the folder, which has to reach the disk as well.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse_what_is_there(out: Path, *, key: str) -> None:
    """Raise ValueError where something is at a place that is to be written: nothing is ever written over."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{key}: {out} is there already: name another place, or remove it first")


def environment() -> dict[str, Any]:
    """Where this process runs: Python, platform, host, CPU count, versions of the packages that matter, git state.

    Packages that are not installed are left out. Environment variables are never read, so no secret can be in it.
    """
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "git": git_state(_PROJECT),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """The commit that is checked out at a folder, and whether files differ from it (untracked ones included).

    Both are null, with a reason, where the folder is not itself the top of a git checkout: an installed package that
    lies somewhere inside another project must not be given that project's commit.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        if top.resolve() != folder.resolve():
            reason = f"{folder} is not the top of a git checkout"
        else:
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = "git did not answer within 10 s"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"git exited with {error.returncode}"])[0]
    return {"commit": None, "dirty": None, "reason": reason}
