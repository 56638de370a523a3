"""Whether there are the tasks that are to be asked, before anything is begun for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tinyllama.config.load import Problem
from tinyllama.config.tasks import Evaluate


def problems(how: Evaluate) -> Iterator[Problem]:
    """What is wrong with the names of tasks and the folder of more. Takes seconds where there are names."""
    folder = Path(how.tasks_dir) if how.tasks_dir else None
    if folder and not folder.is_dir():
        yield Problem("evaluate.tasks_dir", f"{folder} is no folder: name one with the harness' YAML files, or null")
    elif how.tasks:
        from tinyllama.evaluate import harness

        for name, near in harness.unknown(how.tasks, folder).items():
            guess = f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks lists them"
            yield Problem("evaluate.tasks", f"{name} is no task of the harness{_nor(folder)}; {guess}")
            if folder:
                for path, why in harness.broken_files(folder).items():
                    yield Problem("evaluate.tasks_dir", f"{path} cannot be read ({why}): correct it, or move it away")


def _nor(folder: Path | None) -> str:
    return f" nor of {folder}" if folder else ""
