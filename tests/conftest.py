"""Composing the shipped configuration, the way every test does it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tinyllama import kernels
from tinyllama.config import resolvers
from tinyllama.config.load import load
from tinyllama.config.schema import RunConfig

ROOT = Path(__file__).parent.parent

# a shell's & and nohup have SIGINT ignored, which processes hand on: Ctrl-C is to be one in the tests that press it
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    # Triton looks at this when it is imported, and when it sees and runs a kernel; nothing else here is to have it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        kernels.select("triton", attention="triton", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def composed() -> Iterator[Callable[..., DictConfig]]:
    """Compose conf/config.yaml with overrides."""
    resolvers.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.fixture(scope="session")
def config(composed: Callable[..., DictConfig]) -> Callable[..., RunConfig]:
    """Compose and pass the gate."""
    return lambda *overrides: load(composed(*overrides))


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], Callable[[float], None]]:
    """Gives a module a clock that a machine has just started at 0, and what lets so many seconds pass on it."""

    def clock(module: ModuleType) -> Callable[[float], None]:
        now = 0.0

        def later(seconds: float) -> None:
            nonlocal now
            now += seconds

        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
        return later

    return clock
