"""What the fork server of the launcher's tests imports."""

from __future__ import annotations

from tinyllama.launch import forkserver

forkserver.serve()

import torch  # noqa: E402, F401

import tinyllama.engine.distributed  # noqa: E402, F401
