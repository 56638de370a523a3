"""A disk: the room that a checkpoint takes on it, and that a file is there. Without torch: a launcher looks for room
before there are ranks."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

BYTES = 12
"""Of each parameter: its weight and two moments in fp32."""
SLACK = 16 << 20
"""Bytes to leave free beside a checkpoint, for the journal and what else a run writes."""


def check_room(folder: Path, n_bytes: int) -> None:
    """Raise OSError where the disk of a folder has no room for a checkpoint of so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SLACK:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint takes {n_bytes / 1e9:.3g} GB and the disk of {folder} has {free / 1e9:.3g} GB left: free "
            "some, or keep fewer with checkpoint.keep, and the same command goes on; or choose another runs_dir",
        )


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
