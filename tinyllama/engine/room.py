"""The room that a checkpoint takes on a disk. Without torch: a launcher looks for it before there are ranks."""

from __future__ import annotations

import errno
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
