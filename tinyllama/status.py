"""The exit status that a piece of work ends with, and what is said where it ends badly."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from yaml import YAMLError

from tinyllama.config.load import ConfigError, broken_yaml, near_miss
from tinyllama.launch import launcher
from tinyllama.launch.signals import requests


def refuse(*reasons: str) -> int:
    """Say why nothing was done. Returns the exit status for it."""
    for reason in reasons:
        print("refused", reason.strip().replace("\n", "\n        "), file=sys.stderr)
    return 2


def refused(error: Exception) -> int:
    """Say what is wrong with a command line or with what it composes. Returns the exit status for it."""
    if isinstance(error, ConfigError):
        return refuse(*map(str, error.problems))
    if isinstance(error, YAMLError):
        return refuse(broken_yaml(error))
    requests.check()  # or what Hydra made of a request
    return refuse(near_miss(str(error)))


def attempt(work: Callable[[], int | None], *, console: Console, why: Callable[[str], None] = lambda _: None) -> int:
    """Do it, or say why not, which `why` is told as well. Returns the exit status."""
    try:
        return work() or 0
    except ConfigError as error:
        why(str(error))
        return refuse(*map(str, error.problems))
    except ValueError as error:
        requests.check()  # some libraries make another error of what a request raises
        why(str(error))
        return refuse(str(error))
    except (launcher.RankError, OSError) as error:
        ended = launcher.exit_status(error, requests)
        why(str(error))
        console.print("failed", error, style="red")
        return ended
